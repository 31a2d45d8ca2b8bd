"""One policy of text per corpus: splits, leak checks, vocabularies, prompts, controls and error rates follow it."""

import dataclasses
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making_sources import SENTENCES, write

from zipper_jax.api import load
from zipper_jax.checkpoint.run_format import read_config
from zipper_jax.cli import main as cli
from zipper_jax.data import prepared, splits
from zipper_jax.data.inspect import inspect
from zipper_jax.data.prepare_examples import write_examples
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.data.sources.rows import ImportSettings, Row
from zipper_jax.data.text_forms import read_text_form
from zipper_jax.metrics.normalisers import TextForm, policy
from zipper_jax.metrics.task_metrics import under, unit_error_rate, word_error_rate
from zipper_jax.speech.manifest import read_manifest
from zipper_jax.utils.errors import UserError

SPELLINGS = ("on", "On!", "ON", "off", "off.", "ofF", "go on", "go  on", "é", "e\u0301", "!", "?", "ß", "ss")
FORMS = [TextForm(), TextForm("none"), TextForm("jiwer:ToLowerCase"), TextForm("default", normalised=True)]


@given(
    st.lists(st.tuples(st.sampled_from(("train", "test", "validation")), st.sampled_from(SPELLINGS)), max_size=30),
    st.sampled_from(FORMS),
)
def test_no_training_sentence_equals_a_held_out_one(rows, form):
    rows = [Row(f"r{n}", f"line {n}", split, text) for n, (split, text) in enumerate(rows)]
    found = splits.drop_leaks(rows, form)
    held_out = {form.key(row.text) for row in found if row.split != "train"}
    for row in found:
        assert bool(row.problem) == (row.split == "train" and form.key(row.text) in held_out)


@settings(max_examples=30)
@given(st.lists(st.sampled_from(SPELLINGS), min_size=4, max_size=30), st.sampled_from(FORMS))
def test_sentences_that_are_equal_by_the_policy_are_drawn_together(texts, form):
    encode = "normalised" if form.normalised else "as_written"
    asked = ImportSettings(validation=1, test=1, normaliser=form.normaliser, encode_text=encode)
    drawn = splits.assign([Row(f"r{n}", "", "", text) for n, text in enumerate(texts)], asked)
    of = {}
    for row in drawn:
        of.setdefault(form.key(row.text), set()).add(row.split)
    assert all(len(found) == 1 for found in of.values())


def imported(folder, lines, *arguments):
    """A corpus of lines SPLIT TEXT."""
    rows = [dict(zip(("split", "text"), line.split(" ", 1), strict=True)) for line in lines]
    path = write(folder / "source.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["data", "import", "text", str(path), "--out", str(folder / "c"), *arguments]) == 0
    return folder / "c"


LINES = [*(f"train {sentence}" for sentence in SENTENCES), "train Open the DOOR!", "test open the door."]


def test_the_policy_decides_what_a_leak_is_and_is_stored_and_shown(tmp_path):
    corpus = imported(tmp_path, LINES)
    assert json.loads((corpus / "corpus.json").read_text())["text_form"] == {
        "normaliser": "default",
        "normalised": False,
    }
    assert all(policy("default")(row["text"]) != "open the door" for row in read_manifest(corpus, "train"))
    assert f"text: compared by default ({policy('default').about}); encoded as written (NFC)" in list(inspect(corpus))

    other = imported(tmp_path / "none", LINES, "--normaliser", "none")
    assert "Open the DOOR!" in {row["text"] for row in read_manifest(other, "train")}
    write_examples(other, tmp_path / "p", PrepareSettings(text_vocabulary_size=64), False, 1)
    assert read_text_form(tmp_path / "p") == TextForm("none")


def test_an_unknown_policy_is_refused_before_anything_is_read(tmp_path, capsys):
    arguments = ["data", "import", "text", str(tmp_path), "--out", str(tmp_path / "c"), "--normaliser", "defualt"]
    assert cli.main(arguments) == 2
    assert "'defualt' is unknown; did you mean 'default'" in capsys.readouterr().err
    with pytest.raises(UserError, match="normaliser"):
        ImportSettings(normaliser="jiwer:NoSuch")


def trained(data, folder):
    flags = {
        "TRAIN_STEPS": 1,
        "OptimizerConfig.warmup_steps": 0,
        "BATCH_SIZE": 8,
        "DATA": f"'{data}'",
        "MODEL_DIR": f"'{folder}'",
    }
    arguments = [f"--gin.{name}={value}" for name, value in flags.items()]
    assert cli.main(["train", "--gin_file=runs/pretrain_text.gin", *arguments]) == 0
    return load(folder)


def test_normalised_texts_are_fitted_encoded_and_prompted_alike(tmp_path):
    corpus = imported(tmp_path, LINES, "--encode_text", "normalised")
    data = tmp_path / "p"
    flags = ["--text_vocabulary_size", "64", "--tasks", "text_lm", "--text_length", "32"]
    assert cli.main(["data", "prepare", "--corpus", str(corpus), "--out", str(data), *flags]) == 0
    texts = [example["text"] for split in prepared.splits(data) for example in prepared.read_examples(data, split)]
    assert texts == [policy("default")(text) for text in texts]
    written = dataclasses.asdict(TextForm(normalised=True))
    assert prepared.read_header(data)["text_form"] == written
    model = trained(data, tmp_path / "run")
    assert read_config(tmp_path / "run")["text_form"] == written
    np.testing.assert_array_equal(model.encode("text", "OPEN the door!"), model.encode("text", "open the door"))

    exported = tmp_path / "m"
    assert cli.main(["convert", "export", str(tmp_path / "run"), "--out", str(exported)]) == 0
    assert load(exported).text_form == TextForm(normalised=True)


def test_composed_and_decomposed_letters_are_the_same_text(tmp_path):
    composed = unicodedata.normalize("NFC", "öffne the café")
    decomposed = unicodedata.normalize("NFD", composed)
    corpus = imported(tmp_path, [*LINES, f"train {composed}", f"test {decomposed} now"])
    write_examples(corpus, tmp_path / "p", PrepareSettings(text_vocabulary="bytes"), False, 1)
    texts = [example["text"] for example in prepared.read_examples(tmp_path / "p", "test")]
    assert f"{composed} now" in texts


def test_metrics_of_the_training_loop_follow_the_policy():
    names = [metric.__name__ for metric in under(policy("none"), (word_error_rate, unit_error_rate))]
    assert names == ["word_error_rate", "unit_error_rate"]
    (rate,) = under(policy("none"), (word_error_rate,))
    assert rate(["Go on."], ["go on"]) == {"wer": 1.0}
    assert word_error_rate(["Go on."], ["go on"]) == {"wer": 0.0}
