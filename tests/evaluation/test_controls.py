"""Controls hold for any test set: no sentence is its own control, and what is not possible is reported."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import Page
from tiny_run import UNITS, write_run

from zipper_jax.cli.main import main
from zipper_jax.evaluation.controls import partners, sounds
from zipper_jax.metrics.normalisers import DEFAULT, policy
from zipper_jax.reports.report import write_report

SPELLINGS = ("on", "On!", "ON", "off", "off.", "go on", "go  on", "don't", "don’t", "é", "e\u0301")
"""Some are the same sentence once they are normalised."""


@given(st.lists(st.sampled_from(SPELLINGS), max_size=40) | st.lists(st.text(max_size=3), max_size=12))
def test_no_sentence_is_its_own_control_and_impossible_exactly_where_no_matching_exists(texts):
    keys = [DEFAULT(text) for text in texts]
    found = partners(texts)
    possible = len(keys) >= 2 and 2 * max(Counter(keys).values()) <= len(keys)
    assert isinstance(found, list) == possible, found
    if possible:
        assert sorted(found) == list(range(len(texts)))
        assert all(keys[i] != keys[k] for i, k in enumerate(found))
        assert found == partners(list(texts))
    else:
        assert found.startswith("not possible: ")


def test_sentences_read_by_several_speakers_are_never_their_own_control():
    """Sorted by speaker, as in CMU Arctic, VCTK, TIMIT: half the list further on is the same sentence."""
    texts = ["a", "b", "c"] * 2
    assert all(texts[i] != texts[k] for i, k in enumerate(partners(texts)))
    assert partners(list("abcdef")) == [3, 4, 5, 0, 1, 2]  # all differ: half the list further on


def test_controls_and_error_rates_use_one_policy(run, tmp_path):
    """By the text as written, spellings differ; by the default they are one sentence."""
    write_examples(run, ["go on", "Go on!", "go on.", "off"])
    command = ["eval", "--run", str(run), "--data", str(run.parent / "prepared"), "--split", "test"]
    assert main([*command, "--out", str(tmp_path), "--normaliser", "none"]) == 0
    results = json.loads((tmp_path / "utterances.json").read_text())
    assert isinstance(results["rates"]["asr_wer_shuffled_audio"], float)
    assert results["normaliser"] == policy("none").about
    assert {row["reference"] for row in results["utterances"]} == {"go on", "Go on!", "go on.", "off"}
    assert policy("none").about in Page((tmp_path / "utterances.html").read_text()).text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("controls"))


def write_examples(run, texts):
    examples = run.parent / "prepared" / "examples"
    examples.mkdir(exist_ok=True)
    lines = [
        {"id": f"u{k}", "split": "test", "text": text, "units": [(k + i) % UNITS for i in range(5)]}
        for k, text in enumerate(texts)
    ]
    (examples / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("texts", "possible"),
    [(["go on", "off"] * 2, True), (["go on", "Go on!", "go on.", "off"], False), (["go on"], False)],
)
def test_a_page_says_what_is_not_possible(run, tmp_path, texts, possible):
    write_examples(run, texts)
    command = ["eval", "--run", str(run), "--data", str(run.parent / "prepared"), "--split", "test"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    rates = json.loads((tmp_path / "utterances.json").read_text())["rates"]
    assert isinstance(rates["asr_wer_shuffled_audio"], float) == possible
    assert isinstance(rates["asr_wer_no_audio"], float)
    shown = Page((tmp_path / "utterances.html").read_text()).text
    assert ("not possible: " in shown) != possible
    if len(texts) > 1 and not possible:
        assert "not possible: 3 of 4 sentences are the same, at most half may be" in shown


def test_the_report_shows_why_a_control_is_not_possible(tmp_path):
    why = "not possible: 3 of 4 sentences are the same, at most half may be"
    results = {"asr_wer_test": 0.1, "asr_wer_shuffled_audio": why, "tts_wer_shuffled_text": why}
    (tmp_path / "results.json").write_text(json.dumps(results))
    shown = Page(write_report(tmp_path, {}).read_text()).text
    assert shown.count(why) == 4  # both rows, and the goal that compares with the first, which is shown twice


def test_noise_depends_on_the_recording_and_not_on_its_batch():
    recordings = [np.ones(n, np.float32) for n in (30, 20, 30)]
    whole = sounds(recordings)["noise"]
    parts = [*sounds(recordings[:1])["noise"], *sounds(recordings[1:], first=1)["noise"]]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(whole[0], whole[2])
