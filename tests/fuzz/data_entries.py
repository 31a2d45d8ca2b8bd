"""Entry points that read prepared folders, packed rows and the files that an interrupted command resumes from."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from property import Entry, entry_point
from valid_files import SENTENCES, files_below, lines

from zipper_jax.data import check_audio, encode, prepared
from zipper_jax.data.inspect import inspect
from zipper_jax.data.packed_rows import RowStore, write_rows
from zipper_jax.data.prepare_examples import join, write_examples
from zipper_jax.data.prepare_fit import fit, open_source
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.data.prepare_shards import encode_shard
from zipper_jax.sequences import fill_template
from zipper_jax.speech.hubert import read_centroids
from zipper_jax.tasks import TASKS

_SETTINGS = PrepareSettings(text_vocabulary="bytes", text_length=32, speech_length=32, tasks=("asr",))
_UNITS = {"num_units": 20, "rate_hz": 50.0, "name": "n", "vocoder": ""}
_META = {"task": "asr", "split": "train", "lengths": {"text": 32, "speech": 32}, "dropped": {"empty": 0}, "fill": {}}


def _rows() -> list[list[object]]:
    contents = [{"text": np.arange(1, 4 + n), "speech": np.arange(5)} for n in range(3)]
    return [
        [fill_template(TASKS["asr"], content) for content in contents[:2]],
        [fill_template(TASKS["asr"], contents[2])],
    ]


def _write_corpus(corpus: Path) -> None:
    corpus.mkdir()
    rows = [
        {"id": f"u{n}", "split": "test" if n == 3 else "train", "text": text, "units": [n, 1, 2, 19], "seconds": 0.08}
        for n, text in enumerate(SENTENCES[:4])
    ]
    (corpus / "manifest.jsonl").write_bytes(lines(rows))
    about = {"format_version": 1, "settings": {}, "counts": {"train": 3}, "complete": True, "units": _UNITS}
    (corpus / "corpus.json").write_text(json.dumps(about))


@cache
def _prepared_files() -> dict[str, bytes]:
    with TemporaryDirectory() as name:
        corpus, folder = Path(name) / "corpus", Path(name) / "prepared"
        _write_corpus(corpus)
        write_examples(corpus, folder, _SETTINGS, overwrite=False, processes=1)
        write_rows(folder / "rows/asr/train", _rows(), _META)
        return {f"prepared/{file}": content for file, content in files_below(folder).items()}


def _prepared(source: Path, out: Path) -> None:
    folder = source / "prepared"
    list(inspect(folder))
    header, task_set = prepared.read_header(folder), prepared.read_task_set(folder)
    assert isinstance(header["made_with"]["settings"], dict)
    for split in prepared.splits(folder):
        examples = list(prepared.read_examples(folder, split))
        content = (folder / "examples" / f"{split}.jsonl").read_bytes()
        assert len(examples) == len([line for line in content.split(b"\n") if line])
        for example in examples:
            for modality in task_set.modalities:
                value = example[task_set.field_of(modality)]
                assert value is None or len(value) >= 0
                assert not isinstance(value, np.ndarray) or (value.ndim == 1 and value.dtype == np.int32)


@entry_point
def prepared_folder() -> Entry:
    files = {name: [content] for name, content in _prepared_files().items()}
    fuzzed = tuple(name for name in files if "rows" not in name and "vocabular" not in name)
    return Entry("prepared_folder", files, _prepared, ("data/prepared.py", "data/inspect.py", "tasks.py"), fuzzed)


@cache
def _shard_files() -> dict[str, bytes]:
    with TemporaryDirectory() as name:
        corpus, folder = Path(name) / "corpus", Path(name) / "prepared"
        _write_corpus(corpus)
        source = open_source(corpus, _SETTINGS)
        fit(source, folder, overwrite=False)
        encode_shard(source, folder, (0, 1), processes=1)
        return files_below(Path(name))


def _shards(source: Path, out: Path) -> None:
    """What is joined has the digests that the shard wrote down."""
    folder = source / "prepared"
    join(open_source(source / "corpus", _SETTINGS), folder)
    for split in ("test", "train"):
        wanted = _prepared_files()[f"prepared/examples/{split}.jsonl"]
        assert (folder / "examples" / f"{split}.jsonl").read_bytes() == wanted
    assert sorted(path.name for path in folder.iterdir()) == ["examples", "header.json", "vocabularies"]


@entry_point
def shards() -> Entry:
    files = {name: [content] for name, content in _shard_files().items()}
    modules = ("data/prepare_shards.py", "data/prepare_examples.py")
    return Entry("shards", files, _shards, modules, tuple(name for name in files if "/shards/" in name))


def _packed(source: Path, out: Path) -> None:
    store = RowStore(source / "rows")
    wanted = {tuple(span.tokens.tolist()) for row in _rows() for example in row for span in example}
    untouched = {name: (source / "rows" / f"{name}.npy").read_bytes() for name in ("tokens",)} == {
        "tokens": _row_files()["rows/tokens.npy"]
    }
    for number in range(len(store)):
        for example in store.row(number):
            for span in example:
                assert span.modality in ("text", "speech")
                assert span.tokens.dtype == np.int32
                assert (span.tokens >= 0).all()
                assert not untouched or tuple(span.tokens.tolist()) in wanted, "tokens of two spans are mixed"


@cache
def _row_files() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        write_rows(Path(folder) / "rows", _rows(), _META)
        return files_below(Path(folder))


@entry_point
def packed_rows() -> Entry:
    return Entry("packed_rows", {n: [c] for n, c in _row_files().items()}, _packed, ("data/packed_rows.py",))


def _resume(source: Path, out: Path) -> None:
    """A damaged line counts as not done; nothing else may happen."""
    for key, found in check_audio._lines(source / "checked.jsonl"):
        assert isinstance(key, str)
        assert found.seconds >= 0
        assert found.rate >= 0
        assert isinstance(found.problem, str)
    for row in encode.read_dropped(source / "train.jsonl").values():
        assert row["id"]
        encode.count_dropped({row["id"]: row})
    rows = [{"id": f"u{n}"} for n in range(3)]
    before = (source / "train.jsonl.partial").read_bytes()
    done = encode._keep_whole_rows(source / "train.jsonl.partial", rows)
    after = (source / "train.jsonl.partial").read_bytes()
    assert before.startswith(after)
    kept = [(line["id"], line.get("shift", 0)) for line in map(json.loads, filter(None, after.split(b"\n")))]
    assert len(set(kept)) == len(kept), "a line is kept twice"
    assert list(dict(kept)) == [row["id"] for row in rows[:done]]


@entry_point
def resume() -> Entry:
    files = {
        "checked.jsonl": [lines([[json.dumps([f"a{n}.wav", 0.0, None, None]), 1.5, 16_000, ""] for n in range(3)])],
        "train.dropped": [lines({"id": f"d{n}", "reason": "x", "message": "y"} for n in range(2))],
        "train.jsonl.partial": [
            lines({"id": f"u{n}", "units": [1], "shift": shift} for n in range(3) for shift in (0, 1))
        ],
    }
    return Entry("resume", files, _resume, ("data/check_audio.py", "data/encode.py"))


def _kmeans(source: Path, out: Path) -> None:
    centroids = read_centroids(source / "km.npy")
    assert centroids.ndim == 2
    assert np.isfinite(centroids).all()


@entry_point
def kmeans() -> Entry:
    with TemporaryDirectory() as folder:
        for name in ("<f4", "<f8"):
            np.save(Path(folder) / name[1:], np.ones((4, 3), name))
        contents = list(files_below(Path(folder)).values())
    return Entry("kmeans", {"km.npy": contents}, _kmeans, ("speech/hubert.py", "utils/arrays.py"))
