"""Every format that needs no TensorFlow, from real small sources to a corpus folder; and what is wrong with sources."""

import bz2
import dataclasses
import gzip
import json
import lzma
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import making_sources as making
import pytest
import soundfile
from logged import logged
from making_sources import SENTENCES, sound, write

from zipper_jax.cli import main as cli
from zipper_jax.data import check_audio
from zipper_jax.data.import_corpus import import_corpus
from zipper_jax.data.sources.rows import ImportSettings, audio_files, split_of
from zipper_jax.speech.audio import load_audio
from zipper_jax.speech.corpus import read_header
from zipper_jax.speech.manifest import read_manifest
from zipper_jax.utils.errors import UserError

NONE_HELD_OUT = ImportSettings(validation=0, test=0)
ROOT = Path(__file__).resolve().parents[2]


def run(kind, path, out, settings=NONE_HELD_OUT, **options):
    """(header, manifest rows by id)."""
    header = import_corpus(kind, [path], out, settings, processes=1, **options)
    return header, {row["id"]: row for row in read_manifest(out)}


def problems(header):
    return {problem: about["count"] for problem, about in header["dropped"].items()}


def test_librispeech(tmp_path):
    source = making.librispeech(tmp_path / "LibriSpeech")
    header, rows = run("librispeech", source, tmp_path / "out", ImportSettings())
    assert header["counts"] == {"train": 4, "validation": 2, "test": 2, "test_other": 2}
    assert rows["19-198-0000"] == {
        "id": "19-198-0000",
        "split": "train",
        "text": "OPEN THE DOOR",
        "audio": str(source / "train-clean-100" / "19" / "198" / "19-198-0000.flac"),
        "voice": "19",
        "seconds": 0.3,
    }
    assert len(load_audio(tmp_path / "out" / rows["19-198-0000"]["audio"])) == 4800
    assert header["hours"] == pytest.approx(10 * 0.3 / 3600, abs=1e-4)
    assert header["splits"]["train"]["voices"] == 2
    assert header["shared_voices"] == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "corpus.json",
        "manifest.jsonl",
    ]  # no audio, no rest
    one, _ = run("librispeech", source / "train-clean-100", tmp_path / "one")
    assert one["counts"]["train"] == 4


def test_ljspeech_of_another_rate(tmp_path):
    header, rows = run("ljspeech", making.ljspeech(tmp_path / "lj"), tmp_path / "out", ImportSettings(-1, 2))
    assert rows["LJ001-0003"]["text"] == "close the door, number 3"  # the normalised text
    assert header["sample_rates"] == {"22050": 10}
    assert header["counts"] == {"train": 8, "validation": 0, "test": 2, "test_other": 0}
    assert {len(load_audio(row["audio"])) for row in rows.values()} == {4800}


@pytest.mark.parametrize("name", ["mine.tsv", "mine.csv"])
def test_table(tmp_path, name):
    header, rows = run("table", making.table(tmp_path / "t", name), tmp_path / "out", ImportSettings())
    assert header["counts"] == {"train": 8, "validation": 1, "test": 1, "test_other": 0}
    assert header["shared_voices"] == 2
    assert rows["u9"]["split"] == "test"
    assert rows["u1"]["voice"] == "v1"


def test_a_table_with_columns_of_other_names(tmp_path):
    """As Common Voice has them; paths begin in a folder of their own."""
    for number in range(3):
        sound(tmp_path / "clips" / "en" / f"c{number}.wav")
    lines = [f'me\ten/c{n}.wav\tsay "{n}\n' for n in range(3)]
    path = write(tmp_path / "validated.tsv", "client_id\tpath\tsentence\n" + "".join(lines))
    settings = ImportSettings(0, 0, text_field="sentence", audio_field="path", voice_field="client_id")
    with pytest.raises(UserError, match=r"nothing to train on.*3 transcript without audio \(first: .*validated.tsv:2"):
        run("table", path, tmp_path / "no", settings)
    there = ImportSettings(**vars(settings) | {"audio_folder": str(tmp_path / "clips")})
    _, rows = run("table", path, tmp_path / "out", there)
    assert rows["en-c1"]["text"] == 'say "1'
    assert rows["en-c1"]["voice"] == "me"


@pytest.mark.parametrize("name, mark", [("a.csv", ","), ("a.tsv", "\t")])
def test_a_line_with_more_cells_than_the_header_is_not_truncated(tmp_path, name, mark):
    for number in range(3):
        sound(tmp_path / f"{number}.wav")
    lines = [f"0.wav{mark}hello{mark} dear world", f"1.wav{mark}hello{mark}", f"2.wav{mark}good bye"]
    path = write(tmp_path / name, "\n".join([f"audio{mark}text", *lines]))
    header, rows = run("table", path, tmp_path / "out")
    assert problems(header) == {"more columns than the header": 1}
    assert {row["text"] for row in rows.values()} == {"hello", "good bye"}


def test_kaldi_with_one_folder_and_with_a_folder_per_split(tmp_path):
    header, rows = run("kaldi", making.kaldi(tmp_path / "all"), tmp_path / "out")
    assert header["counts"]["train"] == 6
    assert rows["utt1"]["voice"] == "spk1"
    for first, split in enumerate(("train", "dev", "test")):
        making.kaldi(tmp_path / "data" / split, first, 1)
    header, _ = run("kaldi", tmp_path / "data", tmp_path / "out2", ImportSettings())
    assert header["counts"] == {"train": 1, "validation": 1, "test": 1, "test_other": 0}


def test_a_linked_folder_keeps_the_name_of_its_link(tmp_path):
    making.kaldi(tmp_path / "data" / "exp_2020")
    (tmp_path / "data" / "test").symlink_to("exp_2020")
    with pytest.raises(UserError, match="6 held out"):
        run("kaldi", tmp_path / "data" / "test", tmp_path / "out")


def test_kaldi_segments_are_parts_of_files(tmp_path):
    folder = tmp_path / "seg"
    whole = sound(folder / "long.wav", seconds=2.0)
    write(folder / "wav.scp", "rec long.wav\n")
    write(folder / "segments", "a rec 0.0 0.5\nb rec 0.5 1.25\n")
    write(folder / "text", "a open the door\nb close it\n")
    _, rows = run("kaldi", folder, tmp_path / "out")
    assert rows["b"]["start"] == 0.5
    assert rows["b"]["seconds"] == 0.75
    part = load_audio(rows["b"]["audio"], start=rows["b"]["start"], seconds=rows["b"]["seconds"])
    assert part.tolist() == load_audio(whole)[8000:20000].tolist()


def test_audio_alone_is_cut_and_takes_its_speaker_from_the_folder(tmp_path):
    sound(tmp_path / "small" / "100" / "sea_fairies" / "01.flac", seconds=1.0)
    sound(tmp_path / "small" / "22" / "emma" / "01.flac", seconds=0.25)
    header, rows = run("audio", tmp_path / "small", tmp_path / "out", ImportSettings(0, 0, piece_seconds=0.4))
    pieces = [rows[f"100-sea_fairies-01~{n}"] for n in range(3)]
    assert [row["start"] for row in pieces] == [0.0, 0.3333, 0.6667]
    assert {row["seconds"] for row in pieces} == {0.3333}
    assert rows["22-emma-01"]["voice"] == "22"
    assert "start" not in rows["22-emma-01"]
    assert header["splits"]["train"] == {"hours": 0.0003, "words": 0, "units": 0, "voices": 2}
    assert "text" not in rows["22-emma-01"]


def test_text_in_every_wrapping(tmp_path):
    folder = tmp_path / "prose"
    write(folder / "a.txt", "\ufeffone line\r\n\r\nanother line\r\n")
    write(folder / "b.txt.gz", gzip.compress(b"zipped\n"))
    write(folder / "c.jsonl.bz2", bz2.compress(b'{"text": "from json", "split": "test"}\n\n{"text": "more"}\n'))
    write(folder / "sub" / "valid.txt.xz", lzma.compress("höher\n".encode()))
    header, rows = run("text", folder, tmp_path / "out")
    assert {row["text"]: row["split"] for row in rows.values()} == {
        "one line": "train",
        "another line": "train",
        "zipped": "train",
        "from json": "test",
        "more": "train",
        "höher": "validation",
    }
    assert all(row.keys() == {"id", "split", "text"} for row in rows.values())
    assert header["splits"]["train"]["words"] == 6
    assert header["dropped"] == {}


def test_text_files_take_their_split_from_their_name_else_from_the_nearest_folder(tmp_path):
    names = {
        "corpus/train/a.txt": "train",
        "corpus/test/b.txt": "test",
        "corpus/test/en/c.txt": "test",
        "corpus/train/valid.txt": "validation",
        "corpus/wiki.test.txt.gz": "test",
        "corpus/my.tests.txt": "train",
        "dev/d.txt": "validation",
    }
    for name in names:
        write(tmp_path / name, gzip.compress(name.encode()) if name.endswith("gz") else name)
    import_corpus("text", [tmp_path / "corpus", tmp_path / "dev"], tmp_path / "out", NONE_HELD_OUT)
    assert {row["text"]: row["split"] for row in read_manifest(tmp_path / "out")} == names


def test_shards_of_one_name_are_all_read(tmp_path):
    names = ["en/all.txt", "fr/all.txt", "de/all.txt", "de/x/y.txt", "de/x-y.txt", "de/all.jsonl"]
    for name in names:
        write(tmp_path / name, json.dumps({"text": name}) if name.endswith("jsonl") else name)
    paths = [tmp_path / name for name in ("en", "fr", "de", "de/all.txt")]
    header = import_corpus("text", paths, tmp_path / "out", NONE_HELD_OUT)
    texts = {row["id"]: row["text"] for row in read_manifest(tmp_path / "out")}
    assert sorted(texts.values()) == sorted(names)
    assert texts.keys() == {"all-1", "all-1-2", "all-1-3", "all-1-4", "x-y-1", "x-y-1-2"}
    assert problems(header) == {"id twice": 1}  # the file that was given twice


def test_pieces_take_no_other_rows_id(tmp_path):
    sound(tmp_path / "t" / "x.wav", seconds=0.6)
    sound(tmp_path / "t" / "x-1.wav")
    _, rows = run("audio", tmp_path / "t", tmp_path / "out", ImportSettings(0, 0, piece_seconds=0.4))
    assert rows.keys() == {"x~0", "x~1", "x-1"}


def test_linked_folders_are_read_and_loops_are_not_followed(tmp_path):
    source = making.librispeech(tmp_path / "LibriSpeech")
    for subset in ("train-clean-100", "test-clean"):
        (source / subset).rename(tmp_path / f"disk_{subset}")
        (source / subset).symlink_to(tmp_path / f"disk_{subset}")
    (source / "dev-clean" / "up").symlink_to("..")
    header, _ = run("librispeech", source, tmp_path / "out", ImportSettings())
    assert header["counts"] == {"train": 4, "validation": 2, "test": 2, "test_other": 2}
    assert header["dropped"] == {}
    write(tmp_path / "disk" / "a.txt", "linked")
    (tmp_path / "prose").mkdir()
    (tmp_path / "prose" / "en").symlink_to("../disk")
    assert list(run("text", tmp_path / "prose", tmp_path / "out2")[1]) == ["en-a-1"]
    assert [path.name for path in audio_files(source)][:2] == ["84-198-0000.flac", "84-198-0001.flac"]


def test_utf_16_is_no_text(tmp_path):
    write(tmp_path / "a" / "windows.txt", "\n".join(SENTENCES[:3]).encode("utf-16"))
    write(tmp_path / "a" / "good.txt", "one\n")
    header, rows = run("text", tmp_path / "a", tmp_path / "out")
    assert [row["text"] for row in rows.values()] == ["one"]
    assert problems(header) == {"text that is not UTF-8": 3}


def test_what_cannot_be_written_as_utf_8_is_dropped(tmp_path, capsys):
    latin = os.fsdecode(b"caf\xe9")
    write(tmp_path / "a" / "a.jsonl", r'{"text": "bad \ud83d emoji"}' + "\n" + r'{"text": "good \ud83d\ude00"}')
    write(tmp_path / "a" / f"{latin}.txt", "of a name that nobody needs")
    sound(tmp_path / "b" / "good.wav")
    sound(tmp_path / "b" / "bad.wav").rename(tmp_path / "b" / f"{latin}.wav")
    for kind, folder in (("text", "a"), ("audio", "b")):
        arguments = ["--out", str(tmp_path / kind), "--validation=0", "--test=0", "--processes=1"]
        assert cli.main(["data", "import", kind, str(tmp_path / folder), *arguments]) == 0
    assert {row["text"] for row in read_manifest(tmp_path / "text")} == {
        "good \U0001f600",
        "of a name that nobody needs",
    }
    assert problems(read_header(tmp_path / "text")) == {"text that is not UTF-8": 1}
    assert [row["id"] for row in read_manifest(tmp_path / "audio")] == ["good"]
    assert r"1 file name that is not UTF-8 (first: " in capsys.readouterr().err


def test_paragraphs_and_pieces(tmp_path):
    path = write(tmp_path / "book.txt", "it was a\ndark night\n\n\nand so\n" + "on " * 9)
    settings = ImportSettings(0, 0, documents="paragraphs", piece_words=5)
    _, rows = run("text", path, tmp_path / "out", settings)
    texts = [row["text"] for row in rows.values()]
    assert texts == ["it was a\ndark night", "and so\non on", "on on on", "on on on on"]


def test_units_with_their_header(tmp_path):
    header, rows = run("units", making.units(tmp_path / "u"), tmp_path / "out")
    assert header["units"] == {"num_units": 20, "rate_hz": 50, "name": "made up", "vocoder": ""}
    assert header["splits"]["train"]["units"] == 250
    assert header["splits"]["train"]["words"] == 30
    assert len(rows["u0"]["units"]) == 25


@pytest.mark.parametrize(
    "field, value, problem",
    [
        ("seconds", "0.5", "seconds that are no number"),
        ("seconds", float("nan"), "seconds that are no number"),
        ("voice", ["a"], "voice that is no name"),
    ],
)
def test_units_with_fields_of_other_types(tmp_path, field, value, problem):
    path = making.units(tmp_path / "u")
    row = json.loads(path.read_text().split("\n")[0])
    with path.open("a") as file:
        file.write(
            json.dumps({**row, "id": "bad", field: value}) + "\n" + json.dumps({**row, "id": "good", "voice": 7})
        )
    header, rows = run("units", path, tmp_path / "out")
    assert problems(header) == {problem: 1}
    assert rows["good"]["voice"] == "7"


def test_equal_sentences_stay_together_and_a_growing_source_keeps_its_splits(tmp_path):
    def drawn(lines, name, count):
        write(tmp_path / f"{name}.txt", "\n".join(lines))
        _, rows = run("text", tmp_path / f"{name}.txt", tmp_path / name, ImportSettings(count, count))
        return rows.values()

    lines = [f"sentence {n}" for n in range(60)]
    rows = drawn([*lines, *(line.upper() for line in lines), *(f" {line}" for line in lines)], "three", 9)
    split = {}
    for row in rows:
        assert split.setdefault(row["text"].lower(), row["split"]) == row["split"]
    assert [sum(row["split"] == one for row in rows) for one in ("train", "validation", "test")] == [162, 9, 9]
    before = {row["text"] for row in drawn(lines, "before", 5) if row["split"] == "test"}
    after = {row["text"] for row in drawn([*lines, "one more"], "after", 5) if row["split"] == "test"}
    assert len(before & after) >= 4


def test_a_training_sentence_that_is_held_out_is_dropped(tmp_path):
    path = making.table(tmp_path / "t")
    path.write_text(path.read_text() + f"extra\twav/u0.wav\t  {SENTENCES[9].upper()}\ttrain\tv0\n")
    header, rows = run("table", path, tmp_path / "out", ImportSettings())
    assert problems(header) == {"sentence of test in train": 1}
    assert "extra" not in rows
    with pytest.raises(UserError, match=r"--strict, and 1 of 11 rows.*sentence of test in train"):
        run("table", path, tmp_path / "no", ImportSettings(), strict=True)
    assert not (tmp_path / "no" / "manifest.jsonl").exists()


def test_bad_utterances_are_dropped_and_counted(tmp_path, capsys):
    path = making.table(tmp_path / "t", count=8)
    wav = path.parent / "wav"
    write(wav / "corrupt.wav", b"RIFF, then nothing of use")
    whole = sound(wav / "whole.flac").read_bytes()
    write(wav / "cut.flac", whole[: len(whole) // 2])
    sound(wav / "empty.wav", seconds=0.0)
    sound(wav / "silent.wav", level=0.0)
    sound(wav / "long.wav", seconds=1.5)
    sound(wav / "telephone.wav", rate=8_000)
    extra = [("corrupt", "a"), ("cut", "b"), ("empty", "c"), ("silent", "d"), ("long", "e"), ("gone", "f")]
    lines = [f"{n}\twav/{n}.{'flac' if n == 'cut' else 'wav'}\t{text}\ttrain\tv\n" for n, text in extra]
    lines += ["no_text\twav/u0.wav\t\ttrain\tv\n", "no_audio\t\thello\ttrain\tv\n", "u1\twav/u0.wav\tagain\ttrain\tv\n"]
    lines += ["telephone\twav/telephone.wav\tring\ttrain\tv\n"]
    content = path.read_bytes() + "".join(lines).encode() + b"latin\twav/u0.wav\tcaf\xe9\ttrain\tv\n"
    write(path, content)
    settings = ["--validation=0", "--test=0", "--max_seconds=1", "--processes=1"]
    assert cli.main(["data", "import", "table", str(path), "--out", str(tmp_path / "out"), *settings]) == 0
    header = read_header(tmp_path / "out")
    assert problems(header) == {
        "corrupt audio": 2,
        "transcript without audio": 2,
        "audio without transcript": 1,
        "id twice": 1,
        "empty audio": 1,
        "silent audio": 1,
        "longer than 1 s": 1,
        "text that is not UTF-8": 1,
    }
    assert header["counts"]["train"] == 9
    said = capsys.readouterr().err
    assert "1 silent audio (first: " in said
    assert "1 at 8000 Hz; resampled to 16000 Hz" in said
    assert "checking: 100%" in said
    arguments = ["data", "import", "table", str(path), "--out", str(tmp_path / "strict"), *settings, "--strict"]
    assert cli.main(arguments) == 2
    assert "error: --strict, and 10 of 19 rows cannot be used: 2 " in capsys.readouterr().err


def test_what_formats_lack_is_counted(tmp_path):
    source = making.librispeech(tmp_path / "ls")
    home = source / "train-clean-100" / "19" / "198"
    (home / "19-198-0000.flac").unlink()
    sound(home / "19-198-0009.flac")
    with (home / "19-198.trans.txt").open("ab") as file:
        file.write(b"19-198-0001x \xff\xfe\n")
    header, _ = run("librispeech", source, tmp_path / "a", ImportSettings())
    one = {"transcript without audio": 1, "audio without transcript": 1, "text that is not UTF-8": 1}
    assert problems(header) == one

    source = making.ljspeech(tmp_path / "lj")
    (source / "wavs" / "LJ001-0000.wav").rename(source / "wavs" / "other.wav")
    header, _ = run("ljspeech", source, tmp_path / "b")
    assert problems(header) == {"transcript without audio": 1, "audio without transcript": 1}

    source = making.kaldi(tmp_path / "kaldi")
    write(source / "text", (source / "text").read_text().replace("utt0 ", "utt9 ") + "utt3x\n")
    header, _ = run("kaldi", source, tmp_path / "c")
    assert problems(header) == {"transcript without audio": 2, "audio without transcript": 1}


def test_bad_units(tmp_path, capsys):
    path = making.units(tmp_path / "u")
    bad = [
        {"id": "a", "units": [0, -1]},
        {"id": "b", "units": [3, 20]},
        {"id": "c", "units": []},
        {"id": "d", "units": [1.5]},
        {"id": "e", "units": [1] * 50, "seconds": 2.0},  # 25 per second
        {"id": "u0", "units": [1]},
        {"units": [1]},
        {"id": "fine", "units": [1, 2]},
    ]
    path.write_text(path.read_text() + "".join(json.dumps(row) + "\n" for row in bad))
    arguments = ["data", "import", "units", str(path), "--validation=0", "--test=0"]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    for number, problem in ((11, "negative unit"), (12, "unit above 19"), (15, "not 50 units per second")):
        assert f"1 {problem} (first: {path}:{number})" in said
    header, rows = read_header(tmp_path / "out"), {row["id"]: row for row in read_manifest(tmp_path / "out")}
    assert problems(header) == {
        "negative unit": 1,
        "unit above 19": 1,
        "no units": 1,
        "units that are no list of integers": 1,
        "not 50 units per second": 1,
        "id twice": 1,
        'line that is no JSON object with "id" and "units"': 1,
    }
    assert rows["fine"] == {"id": "fine", "split": "train", "units": [1, 2], "seconds": 0.04}
    assert cli.main([*arguments, "--out", str(tmp_path / "strict"), "--strict"]) == 2
    assert "error: --strict, and 7 of 18 rows cannot be used: 1 negative unit (first: " in capsys.readouterr().err
    assert not (tmp_path / "strict" / "manifest.jsonl").exists()


def _librispeech_without_transcripts(folder):
    sound(folder / "train" / "1" / "2" / "1-2-0000.flac")
    return "librispeech", folder


def _kaldi_with_a_pipe(folder):
    making.kaldi(folder)
    write(folder / "wav.scp", "utt0 sph2pipe -f wav a.sph |\n")
    return "kaldi", folder


def _units_without_header(folder):
    path = making.units(folder)
    (folder / "header.json").unlink()
    return "units", path


def _silent(folder):
    sound(folder / "a.wav", level=0.0)
    return "audio", folder


def _half_gzip(folder):
    return "text", write(folder / "a.txt.gz", gzip.compress(b"text\n" * 1000)[:30])


def _unknown_split(folder):
    return "text", write(folder / "a.jsonl", '{"text": "x", "split": "holdout"}\n')


def _empty(kind):
    def make(folder):
        folder.mkdir()
        return kind, folder

    return make


def _file(kind, name, content):
    return lambda folder: (kind, write(folder / name, content))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: ("audio", folder), "'.*source' does not exist: check the path"),
        (lambda folder: ("libirspeech", folder), "format 'libirspeech' is unknown; did you mean 'librispeech'?"),
        (_empty("audio"), "holds no audio file"),
        (_empty("text"), r"holds no text: give one with files that end in \.txt or \.jsonl"),
        (_empty("librispeech"), r"holds no \*\.trans\.txt"),
        (_empty("ljspeech"), r"metadata\.csv' does not exist"),
        (_empty("kaldi"), r"holds no wav\.scp"),
        (_empty("table"), r"give a table that ends in \.tsv or \.csv"),
        (_empty("units"), r"give units as \.jsonl"),
        (_librispeech_without_transcripts, r"holds no \*\.trans\.txt"),
        (
            _kaldi_with_a_pipe,
            r"6 dropped .*1 command in wav\.scp, which is not executed: write .* \(first: .*wav\.scp:1",
        ),
        (_units_without_header, r"header\.json' does not exist: write {\"num_units\""),
        (_silent, r"nothing to train on: 1 rows read, 1 dropped \(1 silent audio \(first: .*a\.wav\)\)"),
        (_half_gzip, r"a\.txt\.gz' cannot be unpacked"),
        (_unknown_split, r"a\.jsonl:1: split 'holdout' is unknown: give one of train, validation, test, test_other"),
        (_file("text", "a.txt", "\n\n"), "nothing to train on: 0 rows read"),
        (_file("text", "a.pdf", "x"), r"a\.pdf' has an unknown ending"),
        (_file("text", "a.jsonl", '["x"]\n'), "1 line that is no JSON object"),
        (_file("text", "a.jsonl", '{"txt": "x"}\n'), "1 no text in field 'text'"),
        (_file("table", "a.csv", "id,wav\n"), r"has no column 'audio' \(there: id, wav\)"),
        (_file("table", "a.csv", 'audio,text\nx,"y\n'), r"a\.csv' line 2 is not valid \.csv"),
        (_file("kaldi", "wav.scp", "a a.wav\n"), "has wav.scp but no file text"),
        (_file("units", "a.txt", ""), "has an unknown ending"),
    ],
)
def test_sources_that_cannot_be_read(tmp_path, capsys, make, message):
    kind, path = make(tmp_path / "source")
    path = path.parent if kind == "kaldi" and path.name == "wav.scp" else path
    assert cli.main(["data", "import", kind, str(path), "--out", str(tmp_path / "out"), "--processes=1"]) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert not any(line.startswith("error") or "Traceback" in line for line in progress)
    assert re.search(message, error), error
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


@pytest.mark.parametrize(
    "header, message",
    [
        ("{", "header.json'"),
        ('{"num_units": 20}', "header.json.: rate_hz is missing; give num_units and rate_hz"),
        ('{"num_units": 0, "rate_hz": 50}', "num_units = 0: give a whole number"),
        ('{"num_units": 20, "rate_hz": -1}', "rate_hz = -1: give units per second"),
        ('{"num_units": 20, "rate_hz": 50, "vocoder": "speak {units}"}', "give a command with {units} and {wav}"),
        ('{"num_units": 20, "rate_hz": 50, "vocoder": 5}', "vocoder = 5: expected a string"),
    ],
)
def test_bad_headers_of_units(tmp_path, header, message):
    path = making.units(tmp_path / "u")
    write(path.parent / "header.json", header)
    with pytest.raises(UserError, match=message) as caught:
        run("units", path, tmp_path / "out")
    assert "header.json" in str(caught.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"test": 1, "validation": 0}, "test = 1: the source already has 1 rows of this split; omit --test"),
        ({"test": -2}, "test = -2"),
        ({"piece_seconds": 0.0}, "piece_seconds = 0.0: give more than 0"),
        ({"text_field": "txt"}, r"has no column 'txt' .*did you mean 'text'.*--text_field"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        run("table", making.table(tmp_path / "t"), tmp_path / "out", ImportSettings(**settings))


def test_more_held_out_than_there_is(tmp_path):
    with pytest.raises(UserError, match="validation = 8, test = 4: there are only 12 training rows"):
        run("text", write(tmp_path / "a.txt", "\n".join(SENTENCES)), tmp_path / "out", ImportSettings(8, 4))


def test_names_of_splits():
    theirs = ("train-clean-100", "train_other500", "dev-other", "test-clean", "test_other", "validated", "Eval", "val1")
    ours = ["train", "train", "validation", "test", "test_other", None, "test", "validation"]
    assert [split_of(name) for name in theirs] == ours
    assert split_of("testimony") is None


def test_a_finished_corpus_is_no_work_and_another_source_is_refused(tmp_path, capsys):
    source = write(tmp_path / "a.txt", "\n".join(SENTENCES))
    run("text", source, tmp_path / "out")
    write(source, "changed\n")
    with logged() as lines:
        _, rows = run("text", source, tmp_path / "out")
    assert len(rows) == 12
    assert "is complete (train 12); --overwrite reads the source again" in lines[0]
    with pytest.raises(UserError, match="holds a corpus with other settings; give --overwrite"):
        run("text", source, tmp_path / "out", ImportSettings(0, 0, piece_words=3))
    assert len(run("text", source, tmp_path / "out", overwrite=True)[1]) == 1


def test_an_interrupted_import_resumes_and_ends_the_same(tmp_path):
    source = making.table(tmp_path / "t")
    run("table", source, tmp_path / "whole", ImportSettings())

    def interrupted(items, **options):
        for count, item in enumerate(items):
            if count == 4:
                raise KeyboardInterrupt
            yield item

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zipper_jax.data.check_audio.progress", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run("table", source, tmp_path / "out", ImportSettings())
    journal = tmp_path / "out" / "checked.jsonl"
    assert [p.name for p in (tmp_path / "out").iterdir()] == [journal.name]
    with journal.open("a") as file:
        file.write('["half a li')
    sound(source.parent / "wav" / "u1.wav", seconds=0.4)  # changed meanwhile: has to be checked again
    with logged() as lines:
        _, rows = run("table", source, tmp_path / "out", ImportSettings())
    assert any(line.startswith("continuing: ") and " of 10 files were checked before" in line for line in lines)
    assert rows["u1"]["seconds"] == 0.4
    whole = {row["id"]: row for row in read_manifest(tmp_path / "whole")}
    assert {**rows, "u1": None} == {**whole, "u1": None}
    assert not journal.exists()


def test_ctrl_c_in_the_middle(tmp_path):
    """The real command, the real signal: exit status 130, one line, and what was there stays."""
    source = making.table(tmp_path / "t")
    run("table", source, tmp_path / "out", ImportSettings())
    before = (tmp_path / "out" / "manifest.jsonl").read_bytes()
    for number in range(400):
        shutil.copy(source.parent / "wav" / "u0.wav", source.parent / "wav" / f"more{number}.wav")
    with source.open("a") as file:
        file.writelines(f"m{number}\twav/more{number}.wav\tmore {number}\ttrain\tv0\n" for number in range(400))
    hears = (  # also where the tests themselves were started with Ctrl-C ignored
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from zipper_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["data", "import", "table", str(source), "--overwrite", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-c", hears, *arguments, "--processes=1"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    journal = tmp_path / "out" / "checked.jsonl"
    for _ in range(600):
        if journal.is_file() and journal.stat().st_size > 200:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert error.splitlines()[-1] == "interrupted; run the same command again to resume"
    assert "Traceback" not in error
    assert (tmp_path / "out" / "manifest.jsonl").read_bytes() == before
    assert read_header(tmp_path / "out")["complete"]


def test_a_manifest_that_no_import_wrote_is_left_alone(tmp_path, capsys):
    row = '{"id": "a", "units": [1, 2], "text": "go", "split": "train"}\n'
    write(tmp_path / "header.json", '{"num_units": 9, "rate_hz": 25}')
    manifest = write(tmp_path / "manifest.jsonl", row)
    for more in ([], ["--overwrite"]):
        assert cli.main(["data", "import", "units", str(manifest), "--out", str(tmp_path), *more]) == 2
        assert "has a manifest.jsonl that no import wrote" in capsys.readouterr().err
        assert manifest.read_text() == row


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """A real limit on the size of files, reached while the manifest is written."""
    source = write(tmp_path / "a.txt", "\n".join(f"sentence {n}" for n in range(400)))
    run("text", source, tmp_path / "out")
    before = (tmp_path / "out" / "manifest.jsonl").read_bytes()
    write(source, "\n".join(f"other {n}" for n in range(4000)))
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "from zipper_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["data", "import", "text", str(source), "--out", str(tmp_path / "out"), "--overwrite"]
    arguments += ["--validation=0", "--test=0"]
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: no room to write")
    assert (tmp_path / "out" / "manifest.jsonl").read_bytes() == before
    assert not list((tmp_path / "out").glob("*.partial"))


def test_silence_is_relative_to_full_scale(tmp_path):
    check = check_audio.make_checker()
    assert check((str(sound(tmp_path / "a.wav", level=0.0005)), 0.0, None, None)).problem == "silent audio"
    assert check((str(sound(tmp_path / "b.wav", level=0.01)), 0.0, None, None)) == (0.3, 16_000, "")
    assert soundfile.info(tmp_path / "b.wav").duration == 0.3


def test_further_fields_are_kept_and_what_has_them_is_never_cut(tmp_path):
    path = making.table(tmp_path / "t")
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([f"{head}\tphones", *(f"{line}\tHH AH{number}" for number, line in enumerate(lines))]))
    imported = ImportSettings(fields=("phones",))
    import_corpus("table", [path], tmp_path / "corpus", imported, processes=1)
    rows = read_manifest(tmp_path / "corpus")
    assert {row["id"]: row["phones"] for row in rows} == {f"u{number}": f"HH AH{number}" for number in range(10)}
    long = {"text": "word " * 9, "phones": "W ER D"}
    write(tmp_path / "long.jsonl", json.dumps(long) + "\n" + json.dumps({"text": "word " * 9}) + "\n")
    settings = dataclasses.replace(imported, piece_words=4, validation=0, test=0)
    import_corpus("text", [tmp_path / "long.jsonl"], tmp_path / "long", settings, processes=1)
    assert [row.get("phones") for row in read_manifest(tmp_path / "long")] == ["W ER D", None, None, None]
    with pytest.raises(UserError, match=r"no column 'phone' .*did you mean 'phones'"):
        import_corpus("table", [path], tmp_path / "no", ImportSettings(fields=("phone",)), processes=1)
    with pytest.raises(UserError, match="format 'kaldi' has no further fields"):
        import_corpus("kaldi", [path.parent], tmp_path / "no", imported, processes=1)
    with pytest.raises(UserError, match="fields = 'voice'"):
        ImportSettings(fields=("voice",))
