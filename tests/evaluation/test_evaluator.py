"""What ``zipper eval`` refuses before it starts. What it measures is tested by the quick smoke run, end to end."""

import pytest

from zipper_jax.errors import UserError
from zipper_jax.evaluation.evaluator import Sources, evaluate
from zipper_jax.training.run_format import write_config


def test_a_tower_run_that_is_gone_is_said_before_anything_else(tmp_path):
    """Perplexity before fusion is measured last; it must not fail then."""
    run = tmp_path / "zipper"
    run.mkdir()
    write_config(run, {"model": {}, "train": {"initialise_from": {"text": str(tmp_path / "moved")}}})
    sources = Sources({"zipper": run}, tmp_path / "prepared", tmp_path / "corpus")
    with pytest.raises(UserError, match=r"took its tower 'text' from .*moved.* put that folder back"):
        evaluate(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()
