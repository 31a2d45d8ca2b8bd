"""Traces of real runs: of the updates asked for, with the model's scopes, and nothing else changes."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from running import log, run

from zipper_jax.training import traces
from zipper_jax.training.config import ProfileConfig
from zipper_jax.utils.errors import UserError

SCOPES = ("towers/text", "self_attention", "norm", "loss", "optimizer")


def traced(config) -> bytes:
    """The file of the run's one trace. (jax 0.12's own reader aborts on it.)"""
    [path] = (Path(config.model_dir) / traces.FOLDER).rglob("*.xplane.pb")
    return path.read_bytes()


@dataclass
class Asking:
    """Sends the signal for a trace before one batch."""

    batches: Any
    before: int

    def get(self, step):
        if step == self.before:
            os.kill(os.getpid(), traces.SIGNAL)
        return self.batches.get(step)


def test_a_trace_has_the_updates_and_scopes_and_changes_no_loss(text_run, tmp_path):
    plain = text_run(model_dir=str(tmp_path / "plain"))
    run(plain)
    assert not (tmp_path / "plain" / traces.FOLDER).exists()
    config = text_run(model_dir=str(tmp_path / "traced"), profile=ProfileConfig(start_step=3, steps=2))
    _, shown = run(config)
    assert "tracing updates 3 to 4" in shown
    content = traced(config)
    assert all(name.encode() in content for name in (*SCOPES, "train", "step_num"))
    assert log(config) == log(plain)


def test_a_signal_starts_a_trace_and_the_end_of_the_run_ends_it(text_run, tmp_path):
    config = text_run(model_dir=str(tmp_path / "run"), profile=ProfileConfig(steps=50))
    before = signal.getsignal(traces.SIGNAL)
    result, shown = run(config, wrap_batches=lambda batches: Asking(batches, 4))
    assert result.status == "finished"
    assert "tracing updates 5 to 54" in shown
    assert b"step_num" in traced(config)
    assert signal.getsignal(traces.SIGNAL) == before


def test_wrong_numbers_are_refused():
    with pytest.raises(UserError, match=r"ProfileConfig: start_step=-1, steps=5: give 0 \(none\) or more"):
        ProfileConfig(start_step=-1)
    with pytest.raises(UserError, match="steps=0"):
        ProfileConfig(steps=0)
