"""Evaluation inside the loop, and what t5x's users look for: decoded metrics, TensorBoard names."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from running import log, run

import zipper_jax
from zipper_jax.checkpoint import checkpoints
from zipper_jax.evaluation import in_loop
from zipper_jax.metrics.task_metrics import unit_error_rate
from zipper_jax.tasks import Interleaving, TaskConfig, TaskSet
from zipper_jax.training.config import InferEvalConfig, SaveCheckpointConfig
from zipper_jax.utils.errors import UserError


def exact(targets, predictions):
    """A user's own metric, with seqio's signature."""
    assert len(targets) == len(predictions) == 5
    return {"exact": np.mean([list(t) == list(p) for t, p in zip(targets, predictions, strict=True)])}


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """tag -> step -> value of TensorBoard's event files, read by TFRecord's definition."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = {}
    for path in folder.iterdir():
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
            data = data[16 + size :]
    return found


@pytest.fixture
def evaluated(zipper_run):
    """Units on both sides here, so the metrics are named instead of taken from the table."""
    return zipper_run(
        steps=4,
        eval_period=1,
        infer_eval=InferEvalConfig(
            period=2,
            examples=5,
            metrics={
                "asr": ("test_in_loop:exact", "zipper_jax.metrics.task_metrics:unit_error_rate"),
                "tts": ("zipper_jax.metrics.task_metrics:unit_error_rate",),
            },
        ),
        save=SaveCheckpointConfig(period=2, keep=1, keep_best=1, best_metric="inference/tts/unit_error_rate"),
    )


@pytest.mark.slow
def test_validation_examples_are_decoded_and_scored_in_the_loop(evaluated, prepared):
    result, shown = run(evaluated, infer=in_loop.make(evaluated))
    assert result.status == "finished"
    lines = [line for line in log(evaluated) if line["split"] == "inference"]
    assert [line["step"] for line in lines] == [2, 4]
    assert set(lines[0]["tasks"]) == {"asr", "tts"}
    assert set(lines[0]["tasks"]["asr"]) == {"exact", "unit_error_rate"}
    assert "decoded" in shown

    # The same through the front door: the last checkpoint, the same five examples.
    from zipper_jax.data.packed_rows import RowStore

    store = RowStore(Path(prepared) / "rows" / "tts" / "validation")
    examples = [example for index in range(len(store)) for example in store.row(index)][:5]
    model = zipper_jax.load(evaluated.model_dir)
    rows = model.generate([[("text", e[0].tokens)] for e in examples], ("speech",))
    targets, heard = [e[1].tokens for e in examples], [row[0].content for row in rows]
    assert lines[-1]["tasks"]["tts"] == pytest.approx(unit_error_rate(targets, heard))

    best = min(lines, key=lambda line: line["tasks"]["tts"]["unit_error_rate"])["step"]
    assert checkpoints.steps(evaluated.model_dir) == sorted({best, 4})


@pytest.mark.slow
def test_tensorboard_has_the_names_that_t5x_users_know(evaluated):
    run(evaluated, infer=in_loop.make(evaluated))
    events = scalars(Path(evaluated.model_dir) / "tensorboard")
    assert {
        "train/loss", "train/learning_rate", "train/grad_norm", "train/asr/loss", "train/towers/text/accuracy",
        "train/tokens_per_second", "train/goodput", "seconds/compile", "seconds/steps",
        "training_eval/loss", "training_eval/asr/loss", "inference_eval/asr/exact",
    } <= set(events)  # fmt: skip
    logged = {line["step"]: line["loss"] for line in log(evaluated) if line["split"] == "train"}
    assert events["train/loss"] == pytest.approx(logged)


def test_in_loop_evaluation_that_cannot_be_is_refused_before_training(text_run, zipper_run):
    with pytest.raises(UserError, match=r"InferEvalConfig.period=3 must be a multiple"):
        zipper_run(eval_period=2, infer_eval=InferEvalConfig(period=3))
    with pytest.raises(UserError, match="text_lm has no default metric"):
        in_loop.make(text_run(eval_period=1, infer_eval=InferEvalConfig(period=1)))
    with pytest.raises(UserError, match=r"'nowhere:bleu' cannot be imported"):
        in_loop.make(
            zipper_run(eval_period=1, infer_eval=InferEvalConfig(period=1, metrics={"asr": ("nowhere:bleu",)}))
        )
    mixed = TaskConfig((("text", 1.0), ("speech", 1.0)), Interleaving({"text": 0.5, "speech": 0.5}))
    named = zipper_run(eval_period=1, infer_eval=InferEvalConfig(period=1, metrics={"mixed": ("test_in_loop:exact",)}))
    with pytest.raises(UserError, match=r"task 'mixed' is interleaved, so its last span has no one modality"):
        in_loop.make(replace(named, data=replace(named.data, task_set=TaskSet(tasks={"mixed": mixed}))))
    assert in_loop.make(zipper_run()) is None
