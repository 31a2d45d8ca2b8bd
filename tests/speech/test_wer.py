"""Word error rate: corpus level, one normaliser, empty hypotheses allowed."""

import numpy as np
import pytest

from zipper_jax.metrics.error_rates import normalise, per_sentence_errors, wer
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
    assert normalise(text) == expected


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
