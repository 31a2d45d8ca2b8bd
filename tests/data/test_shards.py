"""Shards of `data prepare` and `data import`: any number, in any order, killed or not, give the bytes of one."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import making_sources as making
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logged import logged
from test_prepare import SETTINGS, contents, write_corpus

from zipper_jax.cli import main as cli
from zipper_jax.data import check_audio, prepare_rows
from zipper_jax.data.import_corpus import check_shard, import_corpus
from zipper_jax.data.prepare_estimate import estimate
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.data.sources.rows import ImportSettings
from zipper_jax.speech.manifest import SPLITS, Manifest
from zipper_jax.tasks import Interleaving, TaskConfig, TaskSet
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.locks import locked

ROOT = Path(__file__).resolve().parents[2]
UNITS = PrepareSettings(text_length=40, speech_length=30, text_vocabulary="bytes", open_rows=2)
AUDIO = dataclasses.replace(SETTINGS, shifts=2)


def in_shards(corpus, folder, how, order, count):
    prepare_rows.prepare_fit(corpus, folder, how)
    for index in order:
        prepare_rows.prepare_shard(corpus, folder, how, (index, count), processes=1)
    return prepare_rows.prepare_finish(corpus, folder, how)


@st.composite
def corpora(draw):
    one = st.fixed_dictionaries(
        {"split": st.sampled_from(SPLITS)},
        optional={
            "text": st.text("ab é\n", min_size=1, max_size=12).filter(str.strip),
            "units": st.lists(st.integers(0, 9), min_size=1, max_size=30),
        },
    ).filter(lambda row: len(row) > 1)
    rows = [{"split": "train", "text": "a", "units": [1, 2]}, *draw(st.lists(one, max_size=12))]
    return [row | {"id": f"{'é' * draw(st.integers(0, 9))}{number}"} for number, row in enumerate(rows)]


@settings(max_examples=15)
@given(corpora(), st.integers(1, 9), st.randoms(use_true_random=False))
def test_any_number_of_shards_in_any_order_gives_the_same_bytes(tmp_path_factory, rows, count, random):
    home = tmp_path_factory.mktemp("any")
    (home / "corpus").mkdir()
    (home / "corpus" / "corpus.json").write_text(json.dumps({"units": {"num_units": 10, "rate_hz": 25}}))
    lines = [json.dumps(row, ensure_ascii=bool(number % 2)) for number, row in enumerate(rows)]
    (home / "corpus" / "manifest.jsonl").write_text("\n".join(lines) + "\n" * random.randint(0, 2))
    metas = prepare_rows.prepare(home / "corpus", home / "one", UNITS, processes=1)
    order = [*range(count), random.randrange(count)]  # one of them twice
    random.shuffle(order)
    assert in_shards(home / "corpus", home / "many", UNITS, order, count) == metas
    assert contents(home / "many") == contents(home / "one")


@given(st.lists(st.binary(max_size=6).map(lambda line: line.replace(b"\n", b"x"))), st.integers(1, 8), st.booleans())
def test_every_line_is_in_one_part(tmp_path_factory, lines, count, ended):
    folder = tmp_path_factory.mktemp("parts")
    (folder / "manifest.jsonl").write_bytes(b"\n".join(lines) + b"\n" * ended)
    found = [line for part in range(count) for line in Manifest(folder, part=(part, count))._lines()]
    assert b"".join(line for _, line in found) == (folder / "manifest.jsonl").read_bytes()
    assert [offset for offset, _ in found] == sorted({offset for offset, _ in found})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    made = write_corpus(tmp_path_factory.mktemp("shards") / "corpus")
    (made / "audio" / "train_3.flac").unlink()  # is dropped
    return made


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "whole"
    prepare_rows.prepare(corpus, folder, AUDIO, processes=2)
    return folder


def test_machines_with_copies_of_their_own(corpus, whole, tmp_path):
    """Each has what --fit wrote; what the shards wrote is brought together; then every step does nothing."""
    first = tmp_path / "first"
    prepare_rows.prepare_fit(corpus, first, AUDIO)
    for index in (2, 0, 1):
        own = shutil.copytree(first, tmp_path / f"machine{index}")
        prepare_rows.prepare_shard(corpus, own, AUDIO, (index, 3), processes=1)
    for index in range(3):
        name = f"shards/{index:05d}-of-00003"
        shutil.copytree(tmp_path / f"machine{index}" / name, first / name)
    prepare_rows.prepare_finish(corpus, first, AUDIO)
    assert contents(first) == contents(whole)
    left = first / "shards" / "00000-of-00003" / "train.jsonl"  # as if it was killed while it deleted them
    left.parent.mkdir(parents=True)
    left.touch()
    prepare_rows.prepare_finish(corpus, first, AUDIO)
    assert contents(first) == contents(whole)
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    in_shards(corpus, first, AUDIO, range(5), 5)
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == times


KILLED = """
import os, signal, sys
from zipper_jax.cli import main
from zipper_jax.data import encode
class Bar:
    left = int(sys.argv[1])
    def update(self):
        Bar.left -= 1
        if Bar.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def close(self): pass
encode.progress = lambda *a, **k: Bar()
sys.exit(main.main(sys.argv[2:]))
"""


def test_a_killed_shard_goes_on_where_it_was(corpus, whole, tmp_path):
    folder = tmp_path / "p"
    prepare_rows.prepare_fit(corpus, folder, AUDIO)
    words = ["data", "prepare", "--corpus", corpus, "--out", folder, "--text_length=24", "--speech_length=60"]
    words += ["--text_vocabulary_size=24", "--num_units=8", "--open_rows=3", "--max_unknown=1", "--shifts=2"]
    words += ["--unit_features=log-mel"]
    for lines in (2, 3):
        command = [sys.executable, "-c", KILLED, str(lines), *map(str, words), "--shard", "0/2", "--processes=1"]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (folder / "shards" / "00000-of-00002" / "done.json").exists()
    prepare_rows.prepare_shard(corpus, folder, AUDIO, (1, 2), processes=1)
    with pytest.raises(UserError, match=r"1 of 2 shards are not done: run --shard 0/2, then --finish"):
        prepare_rows.prepare_finish(corpus, folder, AUDIO)
    prepare_rows.prepare_shard(corpus, folder, AUDIO, (0, 2), processes=1)
    prepare_rows.prepare_finish(corpus, folder, AUDIO)
    assert contents(folder) == contents(whole)


def test_workers_on_the_command_line(corpus, whole, tmp_path, capsys):
    words = ["data", "prepare", "--corpus", str(corpus), "--out", str(tmp_path / "p"), "--text_length=24"]
    words += ["--speech_length=60", "--text_vocabulary_size=24", "--num_units=8", "--open_rows=3", "--max_unknown=1"]
    words += ["--unit_features=log-mel"]
    assert cli.main([*words, "--shifts=2", "--workers", "2"]) == 0
    assert contents(tmp_path / "p") == contents(whole)
    for wrong, message in (
        (["--shard", "3/3"], "error: --shard = 3/3: give I/N with I from 0 to N - 1"),
        (["--shard", "0/3", "--overwrite"], "error: --overwrite: give it to --fit"),
        (["--workers", "0"], "error: --workers = 0: give a whole number of at least 1"),
        (["--workers", "2", "--processes", "2"], "error: --processes 2: with --workers each shard encodes in one"),
        (["--price", "1"], "error: --rate, --price: only --estimate uses them"),
        (["--fit", "--finish"], "--finish: not allowed with argument --fit"),
    ):
        assert cli.main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_what_is_missing_damaged_or_anothers_is_named(corpus, tmp_path):
    folder, audio = tmp_path / "p", dataclasses.replace(AUDIO, shifts=1)
    with pytest.raises(UserError, match=r"fit.json' does not exist: run the same command with --fit first"):
        prepare_rows.prepare_shard(corpus, folder, audio, (0, 2))
    assert not folder.exists()
    prepare_rows.prepare_fit(corpus, folder, audio)
    with pytest.raises(UserError, match=r"has no shard: run --shard 0/N to --shard N-1/N first"):
        prepare_rows.prepare_finish(corpus, folder, audio)
    with pytest.raises(UserError, match=r"fit.json' is of another corpus or other settings"):
        prepare_rows.prepare_shard(corpus, folder, AUDIO, (0, 2))
    with (
        locked(folder / "shards" / "00001-of-00002"),
        pytest.raises(UserError, match=r"shards/00001-of-00002' is being written by process \d+ on "),
    ):
        prepare_rows.prepare_shard(corpus, folder, audio, (1, 2), processes=1)
    for index in (0, 1):
        prepare_rows.prepare_shard(corpus, folder, audio, (index, 2), processes=1)
    path = folder / "shards" / "00000-of-00002" / "train.jsonl"
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    with pytest.raises(UserError, match=r"00000-of-00002/train.jsonl' is missing or not whole: delete the folder"):
        prepare_rows.prepare_finish(corpus, folder, audio)
    path.write_bytes(before.replace(b'"voice": "v"', b'"voice": "w"', 1))
    with pytest.raises(UserError, match=r"00000-of-00002/train.jsonl' is damaged: delete the folder of this shard"):
        prepare_rows.prepare_finish(corpus, folder, audio)
    assert not json.loads((folder / "header.json").read_text())["complete"]
    path.write_bytes(before)
    fit = folder / "shards" / "fit.json"
    fit.write_text(fit.read_text().replace('"tokenizer": "', '"tokenizer": "0'))
    with pytest.raises(UserError, match=r"was made with other units or vocabularies: --fit ran more than once"):
        prepare_rows.prepare_finish(corpus, folder, audio)
    with pytest.raises(UserError, match=r"vocabularies/speech' has other units than fit.json: copy both"):
        prepare_rows.prepare_shard(corpus, folder, audio, (0, 3), processes=1)
    (folder / "shards" / "00000-of-00002" / "done.json").unlink()  # as if it was killed before the other fit
    with pytest.raises(UserError, match=r"00000-of-00002' was made with other units or vocabularies"):
        prepare_rows.prepare_shard(corpus, folder, audio, (0, 2), processes=1)


def test_the_audio_of_an_import_is_checked_in_shards(tmp_path, monkeypatch):
    table = making.table(tmp_path / "t")
    import_corpus("table", [table], tmp_path / "one", processes=1)
    out = tmp_path / "many"
    for index in (2, 0, 1):
        check_shard("table", [table], out, ImportSettings(), (index, 3), processes=1)
        check_shard("table", [table], out, ImportSettings(), (index, 3), processes=1)
    journal = out / "checked-00000-of-00003.jsonl"
    assert 0 < len(journal.read_bytes().split()) < len((out / "checked-00001-of-00003.jsonl").read_bytes().split()) * 3

    def none(target, setup, jobs, processes):
        assert not list(jobs), "audio is checked again"
        yield from ()

    monkeypatch.setattr(check_audio, "parallel_map", none)
    import_corpus("table", [table], out, processes=1)
    assert contents(out) == contents(tmp_path / "one")
    with logged() as lines:
        check_shard("table", [table], out, ImportSettings(), (0, 3), processes=1)
    assert any("is complete; --overwrite" in line for line in lines)
    assert contents(out) == contents(tmp_path / "one")
    with pytest.raises(UserError, match="--shard: audio of tfds:x is extracted"):
        check_shard("tfds:x", [], out, ImportSettings(), (0, 3))


def test_an_estimate_adds_up_the_manifest(tmp_path, capsys):
    rows = [{"id": f"u{i}", "split": "train", "audio": f"{i}.wav", "seconds": 36.0} for i in range(1000)]
    rows += [{"id": "t", "split": "test", "text": "open the door"}, {"id": "n", "split": "train", "audio": "n.wav"}]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data", "prepare", "--corpus", str(tmp_path), "--estimate"]
    assert cli.main([*words, "--rate=5", "--price=2", "--shifts=2", "--tasks=speech_lm"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "corpus: 1,002 rows, 10.0 hours of audio, 13 characters of text"
    assert said[1] == "of 1 rows with audio the manifest has no seconds: they are not counted"
    assert said[2].startswith("encoding: 4.0 core hours (5 hours of audio per core hour, --rate)")
    assert said[4].startswith("cost: 8.00 at 2 per core hour")
    units = 10 * 3600 * 50 * 2
    assert (
        f"(examples {(units * 4.9 + 2003 * 150 + 13) / 1e9:.2f}, rows {(units * 2 + 2002 * 40) / 1e9:.2f})" in said[5]
    )
    assert cli.main(words) == 0
    assert "hours of audio per core hour, as measured" in capsys.readouterr().out
    assert cli.main([*words, "--rate=0"]) == 2
    assert "rate = 0: give a positive number" in capsys.readouterr().err


def test_an_estimate_counts_the_copies_of_interleaved_examples(tmp_path):
    row = {"split": "train", "audio": "a.wav", "seconds": 36.0, "text": "open the door"}
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row | {"id": str(n)}) + "\n" for n in range(10_000)))

    def of_rows(copies):
        mixed = TaskConfig((("speech", 1.0), ("text", 1.0)), Interleaving({"speech": 0.5, "text": 0.5}, copies=copies))
        settings = PrepareSettings(tasks=("mixed",), task_set=TaskSet(tasks={"mixed": mixed}))
        return float(re.search(r"rows ([\d.]+)\)", list(estimate(tmp_path, settings))[-1])[1])

    one = (100 * 3600 * 50 * 2 + 10_000 * 40) / 1e9
    assert of_rows(1) == round(one, 2)
    assert of_rows(5) == round(5 * one, 2)
