"""Entry points that read corpora: import formats, manifests, audio."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from property import Entry, entry_point
from valid_files import SENTENCES, lines, sound

from zipper_jax.data import check_audio
from zipper_jax.data.import_corpus import import_corpus
from zipper_jax.data.inspect import inspect
from zipper_jax.data.sources.rows import ImportSettings
from zipper_jax.speech.audio import load_audio
from zipper_jax.speech.manifest import read_manifest

_ALL = ImportSettings(validation=0, test=0)
_SOURCES = ("data/sources/lines.py", "data/import_corpus.py", "data/splits.py")

# Import formats. Every line of the source is a row of the corpus or a dropped row that is counted.


def _import(kind: str, path: Path, out: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of the manifest, and how many were dropped. Audio is checked in this process."""
    parallel_map = check_audio.parallel_map
    check_audio.parallel_map = lambda target, setup, jobs, processes: (check_audio.make_checker()(job) for job in jobs)
    try:
        header = import_corpus(kind, [path], out, _ALL, processes=1)
    finally:
        check_audio.parallel_map = parallel_map
    for _ in inspect(out):
        pass
    return read_manifest(out), sum(about["count"] for about in header["dropped"].values())


def _source_lines(path: Path) -> list[str | None]:
    """The lines, without empty ones; None: not UTF-8."""
    found: list[str | None] = []
    for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            text = None if b"\0" in line else line.rstrip(b"\r\n").decode()
        except UnicodeDecodeError:
            text = None
        if text is None or text.strip():
            found.append(text)
    return found


def _count(path: Path, rows: list[dict[str, Any]], dropped: int, headers: int = 0) -> None:
    whole = {row["id"].split("~")[0] for row in rows}
    expected = len(_source_lines(path)) - headers
    assert len(whole) + dropped == expected, f"{len(whole)} rows and {dropped} dropped of {expected} lines"


def _text(source: Path, out: Path) -> None:
    for number, name in enumerate(("a.txt", "b.jsonl")):
        rows, dropped = _import("text", source / name, out / str(number))
        _count(source / name, rows, dropped)
        if name == "a.txt":
            words = [word for line in _source_lines(source / name) if line for word in line.split()]
            mine = [word for row in rows for word in row["text"].split()]
            assert dropped or words == mine, "the words of the corpus are not those of the source"


def _units(source: Path, out: Path) -> None:
    rows, dropped = _import("units", source / "units.jsonl", out)
    _count(source / "units.jsonl", rows, dropped)
    given = [json.loads(line)["units"] for line in _source_lines(source / "units.jsonl") if line] if not dropped else []
    assert dropped or [row["units"] for row in rows] == given


def _table(source: Path, out: Path) -> None:
    for number, name in enumerate(("t.tsv", "t.csv")):
        rows, dropped = _import("table", source / name, out / str(number))
        records = (source / name).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        if name == "t.csv" and b'"' not in (source / name).read_bytes():
            filled = [line for line in records if line.rstrip(b"\r\n")]
            assert len(rows) + dropped == len(filled) - 1, f"{len(rows)} rows, {dropped} dropped, {len(filled)} lines"


def _ljspeech(source: Path, out: Path) -> None:
    rows, dropped = _import("ljspeech", source, out)
    named = {line.split("|")[0].strip() for line in _source_lines(source / "metadata.csv") if line}
    kept = {row["id"] for row in rows}
    assert kept <= named | {name.replace("/", "-") for name in named}
    assert len(kept) + dropped >= len(named - {""})


def _librispeech(source: Path, out: Path) -> None:
    rows, dropped = _import("librispeech", source, out)
    assert len(rows) + dropped >= len(_source_lines(source / "train-clean-100/19/198/19-198.trans.txt"))


def _kaldi(source: Path, out: Path) -> None:
    rows, dropped = _import("kaldi", source, out)
    assert len(rows) + dropped >= len(_source_lines(source / "text"))


_ROWS = [{"id": f"u{n}", "units": [n, 1, 2, 19], "text": text, "seconds": 0.08} for n, text in enumerate(SENTENCES)]
_JSONL = lines({"text": text, "split": "train", "title": n} for n, text in enumerate(SENTENCES))


def _manifest(source: Path, out: Path) -> None:
    rows = read_manifest(source)
    lines = [line for line in (source / "manifest.jsonl").read_bytes().split(b"\n") if line.strip()]
    assert [json.dumps(row) for row in rows] == [json.dumps(json.loads(line)) for line in lines]
    for _ in inspect(source):
        pass


def _audio(source: Path, out: Path) -> None:
    for path in sorted(source.iterdir()):
        waveform = load_audio(path)
        assert waveform.dtype == np.float32
        assert waveform.ndim == 1
        assert waveform.size
        assert np.isfinite(waveform).all()
        seconds, rate, problem = check_audio.make_checker()((str(path), 0.0, None, None))
        assert problem or (seconds > 0 and rate > 0)


@entry_point
def text() -> Entry:
    files = {"a.txt": ["\n".join(SENTENCES).encode() + b"\n"], "b.jsonl": [_JSONL]}
    return Entry("text", files, _text, ("data/sources/text.py", *_SOURCES))


@entry_point
def units() -> Entry:
    files = {"units.jsonl": [lines(_ROWS)], "header.json": [b'{"num_units": 20, "rate_hz": 50, "name": "n"}']}
    return Entry("units", files, _units, ("data/sources/units.py", "speech/given_units.py", *_SOURCES))


@entry_point
def table() -> Entry:
    header = ["id", "audio", "text", "split", "voice", "start", "end"]
    records = [header] + [[f"u{n}", "a.wav", t, "train", "v", "0.01", "0.09"] for n, t in enumerate(SENTENCES[:4])]
    quoted = io.StringIO()
    csv.writer(quoted, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(records)
    tabs, commas = ("".join(mark.join(r) + "\n" for r in records).encode() for mark in "\t,")
    files = {"t.tsv": [tabs], "t.csv": [commas, quoted.getvalue().encode()], "a.wav": [sound()]}
    return Entry(
        "table", files, _table, ("data/sources/table.py", "data/sources/columns.py", *_SOURCES), ("t.tsv", "t.csv")
    )


@entry_point
def ljspeech() -> Entry:
    lines = "".join(f"a{n}|{text}, {n}|{text}\n" for n, text in enumerate(SENTENCES[:3]))
    files = {"metadata.csv": [lines.encode()], **{f"wavs/a{n}.wav": [sound()] for n in range(3)}}
    return Entry("ljspeech", files, _ljspeech, ("data/sources/ljspeech.py", *_SOURCES), ("metadata.csv",))


@entry_point
def librispeech() -> Entry:
    home = "train-clean-100/19/198/19-198"
    lines = "".join(f"19-198-{n:04d} {text.upper()}\n" for n, text in enumerate(SENTENCES[:2]))
    files = {f"{home}.trans.txt": [lines.encode()], **{f"{home}-{n:04d}.flac": [sound("FLAC")] for n in range(2)}}
    modules = ("data/sources/librispeech.py", *_SOURCES)
    return Entry("librispeech", files, _librispeech, modules, (f"{home}.trans.txt",))


@entry_point
def kaldi() -> Entry:
    files = {
        "wav.scp": [b"r r.wav\nq r.wav\n"],
        "text": [b"a open the door\nb close the box\n"],
        "segments": [b"a r 0.01 0.05\nb q 0 -1 0\n"],
        "utt2spk": [b"a x\nb y\n"],
    }
    return Entry("kaldi", files | {"r.wav": [sound()]}, _kaldi, ("data/sources/kaldi.py", *_SOURCES), tuple(files))


@entry_point
def manifest() -> Entry:
    rows = [{"id": "a", "split": "train", "text": "open it"}, {"id": "b", "split": "test", "units": [1, 2]}]
    rows += [{"id": "c", "split": "train", "audio": "c.wav", "start": 0.5, "seconds": 1.0, "voice": "v", "text": "x"}]
    about = {
        "format_version": 1,
        "settings": {},
        "counts": {"train": 2},
        "complete": True,
        "units": {"num_units": 9, "rate_hz": 25},
    }
    files = {"manifest.jsonl": [lines(rows)], "corpus.json": [json.dumps(about).encode()]}
    return Entry("manifest", files, _manifest, ("speech/corpus.py", "utils/user_json.py", "data/inspect.py"))


@entry_point
def audio() -> Entry:
    files = {
        "a.wav": [sound(), sound(channels=2, rate=44_100)], "b.flac": [sound("FLAC")],
        "c.ogg": [sound("OGG")], "d.mp3": [sound("MP3")], "e.aiff": [sound("AIFF")],
    }  # fmt: skip
    return Entry("audio", files, _audio, ("speech/audio.py", "data/check_audio.py"))
