"""Word error rate: corpus level, one normaliser, empty hypotheses allowed."""

import numpy as np
import pytest

from zipper_jax.metrics.error_rates import NORMALISER, per_sentence_errors, wer
from zipper_jax.metrics.normalisers import DEFAULT, policy
from zipper_jax.metrics.task_metrics import word_error_rate
from zipper_jax.utils.errors import UserError


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Turn the  light OFF, please!", "turn the light off please"),
        ("don’t 'quote' it_now", "don't quote it now"),
        (" ... ", ""),
        ("zażółć 42", "zażółć 42"),
        ("e\u0301tude", "\u00e9tude"),  # one word, however its accent is written
        ("नमस्ते, दुनिया!", "नमस्ते दुनिया"),
    ],
)
def test_normaliser(text, expected):
    assert DEFAULT(text) == expected


def test_a_sentence_without_words_ends_no_training_run():
    assert word_error_rate(["go on", "?!"], ["go", "x"]) == {"wer": 0.5}
    assert np.isnan(word_error_rate(["..."], ["x"])["wer"])


def test_rate_is_over_the_corpus_not_over_sentences():
    references = ["one two three four", "five"]
    assert wer(references, references) == 0
    assert wer(references, ["One, two three four.", "six"]) == pytest.approx(1 / 5)
    assert wer(references, ["", ""]) == 1
    assert wer(references, ["one one one one one two three four", "five five five five"]) == pytest.approx(7 / 5)


def test_per_sentence():
    rows = per_sentence_errors(["a b c", "d e"], ["a x", ""])
    assert [(r["substitutions"], r["deletions"], r["insertions"], r["errors"]) for r in rows] == [
        (1, 1, 0, 2),
        (0, 2, 0, 2),
    ]
    assert [row["words"] for row in rows] == [3, 2]


@pytest.mark.parametrize(
    "references, hypotheses, message",
    [([], [], "no sentences"), (["a"], [], "1 references but 0"), (["a", "!"], ["a", "b"], "reference 1 has no words")],
)
def test_bad_input(references, hypotheses, message):
    with pytest.raises(UserError, match=message):
        wer(references, hypotheses)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("default", "Don’t turn it_ON, please: twenty-one!", "don't turn it on please twenty one"),
        ("none", " Don’t  turn it ON! ", "Don’t turn it ON!"),
        ("basic", "Don't [noise] turn it ON (please)!", "don t turn it on"),
        ("whisper-english", "Um, don't turn it ON: twenty-one colours!", "do not turn it on 21 colors"),
        ("jiwer:ToLowerCase,RemovePunctuation", "Don't turn it ON!", "dont turn it on"),
    ],
)
def test_policies_by_name_decide_what_is_an_error(name, text, expected):
    if name in ("basic", "whisper-english"):
        pytest.importorskip("whisper_normalizer")
    chosen = policy(name)
    assert chosen(text) == expected
    assert chosen(chosen(text)) == expected
    assert chosen.about
    assert wer([text], [expected], chosen) == 0
    assert per_sentence_errors([text], [expected], chosen)[0]["reference"] == expected


def test_the_default_policy_is_the_normaliser_that_figures_were_made_with():
    assert NORMALISER == "lower case; only letters, digits and apostrophes inside words; single spaces"
    assert policy("default") is DEFAULT
    assert wer(["Twenty one!"], ["21"]) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("whisper_english", "--normaliser = 'whisper_english' is unknown; did you mean 'whisper-english'"),
        ("jiwer:ToLowercase", "'ToLowercase' is no transform from text to text; did you mean 'ToLowerCase'"),
        ("jiwer:ReduceToListOfWords", "'ReduceToListOfWords' is no transform from text to text"),
        ("jiwer:", "'' is no transform from text to text"),
    ],
)
def test_an_unknown_policy_is_named(name, message):
    with pytest.raises(UserError, match=message):
        policy(name)
