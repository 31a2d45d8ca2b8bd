"""What ``zipper eval`` refuses before it starts. What it measures is tested by the quick smoke run, end to end."""

import pytest

from zipper_jax.checkpoint.run_format import write_config
from zipper_jax.evaluation.evaluator import Sources, _grammar, evaluate
from zipper_jax.speech.corpus import FORMAT_VERSION
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_json


def test_the_judge_uses_the_grammar_of_the_corpus(tmp_path):
    def corpus(settings):
        write_json(tmp_path / "corpus.json", {"format_version": FORMAT_VERSION, "settings": settings})

    corpus({"voices": ["slt"], "grammar": "wide"})
    assert _grammar(tmp_path) == "wide"
    corpus({"voices": ["slt"]})
    assert _grammar(tmp_path) == "home"
    corpus({"format": "librispeech"})
    run = tmp_path / "zipper"
    run.mkdir()
    write_config(run, {"model": {}, "train": {"initialise_from": {}}})
    with pytest.raises(UserError, match=r"this corpus has none .* give --split test"):
        evaluate(Sources({"zipper": run}, tmp_path / "prepared", tmp_path), tmp_path / "out")


def test_a_missing_tower_run_is_reported_before_anything_else(tmp_path):
    """Perplexity before fusion is measured last; it must not fail then."""
    run = tmp_path / "zipper"
    run.mkdir()
    write_config(run, {"model": {}, "train": {"initialise_from": {"text": str(tmp_path / "moved")}}})
    sources = Sources({"zipper": run}, tmp_path / "prepared", tmp_path / "corpus")
    with pytest.raises(UserError, match=r"initialised its tower 'text' from .*moved.* restore that folder"):
        evaluate(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()
