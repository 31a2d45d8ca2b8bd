"""Sentences of files: every one in one split only, and no held-out one in text for training."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipper_jax.cli.main import main
from zipper_jax.evaluation.evaluator import _jsgf
from zipper_jax.speech import sentences
from zipper_jax.speech.corpus import CorpusSettings, read_header, synthesise_corpus
from zipper_jax.speech.manifest import read_manifest
from zipper_jax.utils.errors import UserError

WORDNET = Path("/usr/share/wordnet")
LINES = [f"the {colour} box is {place} the {thing}" for colour in ("red", "green", "blue") for place in ("under", "on")
         for thing in ("table", "sofa", "window")]  # fmt: skip


@pytest.fixture
def files(tmp_path):
    (tmp_path / "spoken.txt").write_text("\n".join([*LINES, LINES[0].upper() + ".", "", "..."]))
    chosen = CorpusSettings(train=-1, validation=2, test=3, test_other=2, text_file=str(tmp_path / "spoken.txt"))
    return dataclasses.replace(chosen, text_only=str(tmp_path / "text.txt"))


def test_a_growing_file_keeps_its_order(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join([*LINES, LINES[0].upper() + "."]))
    found = sentences.read_sentences(tmp_path / "a.txt")
    assert sorted(found) == sorted(LINES)
    (tmp_path / "b.txt").write_text("\n".join([*reversed(LINES), "another one"]))
    assert [s for s in sentences.read_sentences(tmp_path / "b.txt") if s != "another one"] == found


def test_no_held_out_sentence_is_in_any_text_for_training(engine, files, tmp_path):
    held = sentences.read_sentences(files.text_file)[:7]
    text = ["nothing of the kind", f"he said that {held[0]}, and left", held[6].title() + "!", held[1][:-1], ""]
    (tmp_path / "text.txt").write_text("\n".join(text))
    synthesise_corpus(tmp_path / "corpus", files, processes=1)
    rows = read_manifest(tmp_path / "corpus")
    spoken = {split: [r["text"] for r in rows if r["split"] == split and "audio" in r] for split in
              ("train", "validation", "test", "test_other")}  # fmt: skip
    assert [len(spoken[split]) for split in spoken] == [11, 2, 3, 2]
    assert sorted(s for found in spoken.values() for s in found) == sorted(LINES)
    assert {s for split in ("validation", "test", "test_other") for s in spoken[split]} == set(held)
    assert [r["text"] for r in rows if "audio" not in r] == ["nothing of the kind", held[1][:-1]]
    assert {r["split"] for r in rows if "audio" not in r} == {"train"}
    assert _jsgf(tmp_path / "corpus") is None  # the judge of the grammar knows none of these
    (tmp_path / "text.txt").write_text("another text")
    with pytest.raises(UserError, match="other sentences in its files"):  # although it is complete
        synthesise_corpus(tmp_path / "corpus", files, processes=1)
    header = read_header(tmp_path / "corpus")
    (tmp_path / "corpus" / "corpus.json").write_text(json.dumps(header | {"complete": False}))
    with pytest.raises(UserError, match="other sentences in its files"):
        synthesise_corpus(tmp_path / "corpus", files, processes=1)


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(" ".join), min_size=4, unique=True))
def test_no_training_sentence_holds_a_held_out_one(found):
    counts = {"test": 1, "validation": 1, "test_other": 1, "train": -1}
    chosen = list(sentences.assign(found, counts))
    held = [f" {text} " for split, text in chosen if split != "train"]
    training = [text for split, text in chosen if split == "train"]
    assert len(held) == 3
    assert not [text for text in training for other in held if other in f" {text} "]
    left = [text for text in found[3:] if not any(other in f" {text} " for other in held)]
    assert training == left
    few = [text for split, text in sentences.assign(found, counts | {"train": 2}) if split == "train"]
    assert few == left[:2]


def test_settings_that_do_not_go_together(engine, files, tmp_path):
    with pytest.raises(UserError, match="train = -1"):
        CorpusSettings(train=-1)
    with pytest.raises(UserError, match="grammar = 'wide'"):
        CorpusSettings(grammar="wide", text_file="x")
    with pytest.raises(UserError, match="18 different sentences"):
        synthesise_corpus(tmp_path / "c", dataclasses.replace(files, test=20, text_only=""))
    with pytest.raises(UserError, match="cannot be read"):
        synthesise_corpus(tmp_path / "c", dataclasses.replace(files, text_file=str(tmp_path / "none.txt")))


def test_the_option_is_a_number_or_a_file(engine, files, tmp_path, capsys):
    command = ["data", "synth", "--out", str(tmp_path / "c"), "--validation", "1", "--test", "1", "--test_other", "1"]
    assert main([*command, "--sentences", "3", "--train", "4"]) == 2
    assert "--train = 4" in capsys.readouterr().err
    assert main([*command, "--sentences", files.text_file, "--train", "4"]) == 0
    assert len(read_manifest(tmp_path / "c", "train")) == 4


@pytest.mark.skipif(not WORDNET.is_dir(), reason="Debian's wordnet-base is not installed")
def test_the_open_corpus(tmp_path, capsys):
    assert main(["data", "sentences", "--wordnet", str(WORDNET), "--out", str(tmp_path / "open")]) == 0
    spoken = sentences.read_sentences(tmp_path / "open" / sentences.SPOKEN)
    assert len(spoken) > 8000
    assert all(5 <= len(sentence.split()) <= 14 for sentence in spoken)
    text = sentences.read_sentences(tmp_path / "open" / sentences.TEXT_ONLY)
    assert not set(text) & set(spoken)
    assert "Princeton University" in (tmp_path / "open" / sentences.NOTICE).read_text()
    assert main(["data", "sentences", "--wordnet", str(WORDNET), "--out", str(tmp_path / "open")]) == 0  # nothing to do
    (tmp_path / "open" / sentences.SPOKEN).write_text("another\n")
    assert main(["data", "sentences", "--wordnet", str(WORDNET), "--out", str(tmp_path / "open")]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["data", "sentences", "--wordnet", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "data.noun' does not exist" in capsys.readouterr().err
