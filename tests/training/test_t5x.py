"""t5x's own training loop over our model and rows. Runs where google-research/t5x is importable (it is on no index)."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import LENGTHS, zipper_model

pytest.importorskip("t5x", reason="t5x is not installed")

from passes import forward
from t5x import adafactor, partitioning, trainer, utils
from t5x import train as t5x_train

from zipper_jax.contrib import t5x_adapter
from zipper_jax.data.mixtures import RowMixture, batches
from zipper_jax.data.packed_rows import RowStore
from zipper_jax.models import zipper
from zipper_jax.ops.losses import cross_entropy
from zipper_jax.training.partition_tree import FreezeConfig
from zipper_jax.utils.trees import flatten

pytestmark = pytest.mark.filterwarnings("ignore")  # t5x has its own

RATES = {"asr": 1.0, "tts": 1.26}


def model(prepared):
    optimizer = adafactor.Adafactor(decay_rate=0.8, logical_factor_rules=t5x_adapter.factor_rules())
    return t5x_adapter.ZipperModel(
        zipper_model(), optimizer, str(prepared), FreezeConfig(towers=("text",)), output="text", limit=6
    )


def rows(prepared):
    stores = {task: RowStore(Path(prepared) / "rows" / task / "train") for task in RATES}
    layout = t5x_adapter._layout(zipper_model(), str(prepared))
    return batches(RowMixture(stores, RATES, 0), layout, LENGTHS, 8, ahead=0)


def flat_batch(batch):
    return {f"{n}/{f}": jnp.asarray(v) for n, tower in batch["towers"].items() for f, v in tower._asdict().items()}


def test_t5x_trains_our_model_and_leaves_the_frozen_tower_alone(prepared, tmp_path):
    ours = model(prepared)
    # t5x puts all CPU devices on its model axis; the tiny vocabularies do not divide over eight.
    whole = [(name, None if axis == "model" else axis) for name, axis in t5x_adapter.axis_rules()]
    step, state = t5x_train.train(
        model=ours,
        train_dataset_cfg=utils.DatasetConfig(
            mixture_or_task_name="asr_tts", task_feature_lengths=LENGTHS, split="train", batch_size=8, shuffle=False,
            seed=0, pack=True,
        ),
        train_eval_dataset_cfg=None,
        infer_eval_dataset_cfg=None,
        checkpoint_cfg=utils.CheckpointConfig(save=utils.SaveCheckpointConfig(period=2, save_dataset=False)),
        partitioner=partitioning.PjitPartitioner(num_partitions=1, logical_axis_rules=whole),
        trainer_cls=functools.partial(trainer.Trainer, num_microbatches=None, learning_rate_fn=lambda step: 1e-2),
        model_dir=str(tmp_path),
        total_steps=4,
        eval_steps=0,
        eval_period=0,
        random_seed=0,
        summarize_config_fn=lambda *_: None,
        get_dataset_fn=functools.partial(
            t5x_adapter.packed_rows, folder=str(prepared), config=zipper_model(), rates=RATES
        ),
    )  # fmt: skip
    assert step == 4
    before, after = flatten(zipper.init_params(zipper_model(), 0)), flatten(state.params)
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        if path.startswith("towers/text/"):
            np.testing.assert_array_equal(np.asarray(after[path]), leaf)
    assert any(not np.array_equal(np.asarray(after[p]), leaf) for p, leaf in before.items())
    assert list(tmp_path.glob("checkpoint_*"))


def test_loss_and_scores_are_ours(prepared):
    ours, batch = model(prepared), rows(prepared).get(0)
    params = jax.tree.map(jnp.asarray, zipper.init_params(zipper_model(), 0))
    loss, metrics = ours.loss_fn(params, flat_batch(batch))
    towers = jax.tree.map(jnp.asarray, batch["towers"])
    logits = forward(zipper_model(), params, towers)
    want, scores = 0.0, np.zeros(8)
    for name, tower in towers.items():
        nll = np.asarray(cross_entropy(logits[name], tower.targets, tower.weights).nll, np.float64)
        want += nll.sum() / tower.weights.sum()
        scores -= nll.sum(axis=1)
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    np.testing.assert_allclose(ours.score_batch(params, flat_batch(batch)), scores, rtol=1e-5)
    assert float(metrics["loss"].compute()) == pytest.approx(want, rel=1e-6)


def test_predictions_are_those_of_our_decoder(prepared):
    from zipper_jax.decoding.generate import Generator
    from zipper_jax.sequences import rows_to_towers

    store = RowStore(Path(prepared) / "rows" / "asr" / "validation")
    examples = [store.row(index)[0] for index in range(4)]
    layout = t5x_adapter._layout(zipper_model(), str(prepared))
    ours, params = model(prepared), zipper.init_params(zipper_model(), 0)
    towers = rows_to_towers([[example] for example in examples], layout, LENGTHS)
    tokens = jax.jit(ours.predict_batch)(params, flat_batch({"towers": towers}))
    given = [[("speech", example[0].tokens)] for example in examples]
    for row, (generated,) in zip(
        np.asarray(tokens), Generator(zipper_model(), params, layout)(given, ("text",), {"text": 6}), strict=True
    ):
        n = len(generated.tokens)
        np.testing.assert_array_equal(row[:n], generated.tokens)
        assert (row[n:] == layout["text"].end).all()


def test_the_shipped_gin_file_trains(prepared, tmp_path):
    root = Path(t5x_adapter.__file__).parents[1]
    command = [
        sys.executable, str(Path(t5x_train.__file__)), f"--gin_search_paths={root / 'gin'}", "--gin_file=t5x/fuse.gin",
        f"--gin.DATA='{prepared}'", f"--gin.MODEL_DIR='{tmp_path}/run'", "--gin.TRAIN_STEPS=2", "--gin.BATCH_SIZE=8",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((tmp_path / "run").glob("checkpoint_*"))
