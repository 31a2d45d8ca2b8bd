"""What `zipper data inspect` prints and writes of corpora and prepared folders."""

import dataclasses
import json
import sys

import making_sources as making
import numpy as np
import pytest
import soundfile
from making_sources import write

from zipper_jax.cli import main as cli
from zipper_jax.data import prepared
from zipper_jax.data.import_corpus import import_corpus
from zipper_jax.data.inspect import inspect
from zipper_jax.data.prepare_examples import write_examples
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.data.sources.rows import ImportSettings
from zipper_jax.speech.given_units import run_vocoder
from zipper_jax.utils.errors import UserError

SETTINGS = PrepareSettings(
    text_length=24, speech_length=80, text_vocabulary_size=24, num_units=8, unit_features="log-mel"
)
SPEAKS = """
import sys, numpy, soundfile
units = [int(word) for word in open(sys.argv[1]).read().split()]
soundfile.write(sys.argv[2], numpy.repeat(numpy.array(units) / 100, 320), 16000)
"""


def test_a_corpus(tmp_path, capsys):
    path = making.table(tmp_path / "t")
    making.sound(path.parent / "wav" / "u3.wav", level=0.0)
    import_corpus("table", [path], tmp_path / "corpus", processes=1)
    out = tmp_path / "look"
    assert cli.main(["data", "inspect", str(tmp_path / "corpus"), "--out", str(out), "--examples", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"corpus {tmp_path / 'corpus'}, from table, 9 rows"
    assert lines[1].startswith("train: 7 rows, 0.00 hours, 21 words, 2 voices")
    assert "voices: 2 of the held-out ones are in training too" in lines
    assert any(line.startswith("dropped: 1 silent audio (first: ") for line in lines)
    assert "words per example: 3 to 3, median 3" in lines
    assert sum(line.startswith("example u") for line in lines) == 2
    assert soundfile.info(out / "u0.wav").duration == 0.3
    assert (out / "lengths.png").read_bytes()[:4] == b"\x89PNG"


def test_a_manifest_written_by_hand(tmp_path):
    write(tmp_path / "manifest.jsonl", json.dumps({"id": "x", "split": "train", "text": "two words"}) + "\n")
    lines = list(inspect(tmp_path))
    assert lines[:2] == [f"corpus {tmp_path}, from unknown, 1 rows", "train: 1 rows, 2 words"]


def test_a_prepared_folder(tmp_path):
    import_corpus("table", [making.table(tmp_path / "t")], tmp_path / "corpus", processes=1)
    write_examples(tmp_path / "corpus", tmp_path / "p", SETTINGS, False, 1)
    lines = list(inspect(tmp_path / "p", 2, tmp_path / "look"))
    assert "vocabulary speech: units, 10 tokens" in lines
    assert "train: 8 examples, 0.00 hours" in lines
    assert "units per example: 8 to 8, median 8" in lines
    assert any(line.startswith("  8 units: ") for line in lines)
    assert len(list((tmp_path / "look").glob("*_units.wav"))) == 2
    assert soundfile.info(tmp_path / "look" / "u0_units.wav").frames == 8 * 640


def test_given_units_are_synthesised_only_when_their_command_may_run(tmp_path):
    script = write(tmp_path / "speaks.py", SPEAKS)
    path = making.units(tmp_path / "u", vocoder=f"{sys.executable} {script} {{units}} {{wav}}")
    import_corpus("units", [path], tmp_path / "corpus", ImportSettings(validation=0, test=0), processes=1)
    settings = dataclasses.replace(SETTINGS, num_units=20)
    write_examples(tmp_path / "corpus", tmp_path / "p", settings, False, 1)
    lines = list(inspect(tmp_path / "p", 1, tmp_path / "look"))
    assert any(line.startswith("  no audio: these units (made up, 20 at 50 Hz) have no built-in") for line in lines)
    assert not list((tmp_path / "look").glob("*.wav"))
    list(inspect(tmp_path / "p", 1, tmp_path / "look", vocoder=True))
    heard, _ = soundfile.read(tmp_path / "look" / "u0_units.wav")
    units = next(prepared.read_examples(tmp_path / "p", "train"))["units"]
    np.testing.assert_allclose(heard[::320], units / 100, atol=1e-3)


@pytest.mark.parametrize(
    "command, message",
    [
        ("no-such-program {units} {wav}", "the vocoder 'no-such-program' cannot be run"),
        (f"{sys.executable} -c 'raise SystemExit(3)' {{units}} {{wav}}", "failed with exit status 3: no error output"),
        (f"{sys.executable} -c 'pass' {{units}} {{wav}}", "speech.wav' does not exist"),
        ("speak {units}", "give a command with {units} and {wav}"),
    ],
)
def test_vocoders_that_fail(command, message):
    with pytest.raises(UserError, match=message):
        run_vocoder(command, np.array([1, 2], np.int32))


def test_neither_a_corpus_nor_a_prepared_folder(tmp_path, capsys):
    assert cli.main(["data", "inspect", str(tmp_path)]) == 2
    assert "is neither a corpus (no manifest.jsonl) nor a prepared folder" in capsys.readouterr().err
