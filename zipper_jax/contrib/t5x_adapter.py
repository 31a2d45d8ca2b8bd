"""Adapter for training with google-research/t5x's ``t5x.train``. Needs t5x, which is on no package index.

`ZipperModel` provides parameters with logical axes, `packed_rows` provides batches; gin/t5x/fuse.gin uses both.
Differences from ``zipper train``: the optimizer has state for frozen leaves too (their gradient is zero), the loss is
normalised per microbatch, and a run resumes its position in the data only with
``SaveCheckpointConfig.save_dataset = True``.

Axis letters: B rows, T positions, N output tokens, V vocabulary.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import clu.metrics as clu_metrics
import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from clu.data import dataset_iterator
from flax.core import freeze as freeze_dict
from flax.linen.partitioning import AxisMetadata
from jaxtyping import Array, Float, Int
from t5x import metrics as t5x_metrics
from t5x import models as t5x_models

from zipper_jax.data.mixtures import RowMixture, batches
from zipper_jax.data.packed_rows import RowStore
from zipper_jax.decoding.generate import decode_span, for_decoding
from zipper_jax.decoding.sampling import SamplingConfig
from zipper_jax.models import zipper
from zipper_jax.models.cache import init_cache
from zipper_jax.models.choice import loss_terms
from zipper_jax.models.config import ZipperConfig
from zipper_jax.sequences import Layout, TowerBatch, make_layout
from zipper_jax.tasks import TEXT
from zipper_jax.training.partition_tree import FreezeConfig, split
from zipper_jax.utils import user_json
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import flatten, join_flat, unflatten
from zipper_jax.vocabularies import load_vocabulary

UNNAMED = "unnamed"
"""Name of unnamed axes: t5x requires a name for each."""


class _Position(msgspec.Struct):
    step: user_json.Natural


Params = Any
Batch = Mapping[str, Any]
"""``{"TOWER/FIELD": [B, T]}`` with the fields of `TowerBatch`."""


class ZipperModel(t5x_models.BaseModel):
    """A zipper (or a single tower, or the Single Decoder) as a t5x model.

    Args:
        config: The model.
        optimizer_def: A t5x optimizer.
        folder: The prepared folder, for its vocabularies.
        freeze: Leaves without gradient.
        loss_weights: Tower -> loss weight (lambda); default 1. That of its choices of the next modality is called
            ``TOWER/next_modality``.
        seed: Of the initial parameters (t5x's key is not used).
        output: Modality that ``predict_batch`` generates, from rows of one example, conditioned on the other towers.
        limit: max_new_tokens.
    """

    FEATURE_CONVERTER_CLS = None  # rows are made by `packed_rows`

    def __init__(
        self,
        config: ZipperConfig,
        optimizer_def: Any,
        folder: str,
        freeze: FreezeConfig = FreezeConfig(),
        loss_weights: Mapping[str, float] | None = None,
        seed: int = 0,
        output: str = TEXT,
        limit: int = 64,
    ):
        super().__init__(optimizer_def)
        self.config, self._freeze, self._seed = config, freeze, seed
        self._loss_weights = dict(loss_weights or {})
        self._layout = _layout(config, folder)
        if output not in self._layout:
            raise UserError(f"ZipperModel.output={output!r}: the model has {', '.join(sorted(self._layout))}")
        self._output, self._limit = output, limit

    def get_initial_variables(self, rng: Any, input_shapes: Any, input_types: Any = None) -> Any:
        """Parameters and the logical axis names of each."""
        del rng, input_shapes, input_types
        params = flatten(zipper.init_params(self.config, self._seed))
        axes = flatten(zipper.param_axes(self.config))
        named = {f"{path}_axes": AxisMetadata(tuple(name or UNNAMED for name in axes[path])) for path in params}
        return freeze_dict({"params": unflatten(params), "params_axes": unflatten(named)})

    def loss_fn(self, params: Params, batch: Batch, dropout_rng: Any = None) -> tuple[Float[Array, ""], dict[str, Any]]:
        """The loss of ``zipper train``, and t5x metrics."""
        del dropout_rng
        towers = _towers(batch)
        losses = zipper.bind_params(self.config, self._stopped(params)).losses(towers, choices=True)
        loss, weight, correct = jnp.float32(0.0), jnp.float32(0.0), jnp.float32(0.0)
        metrics: dict[str, Any] = {}
        terms = loss_terms(towers)
        for name, (summed, nll, right) in sorted(losses.items()):
            total = jnp.sum(terms[name])
            mean = summed / jnp.where(total > 0, total, 1.0)
            loss += self._loss_weights.get(name, 1.0) * mean
            if name in towers:
                weight, correct = weight + total, correct + jnp.sum(right)
            metrics[f"{name}/loss"] = clu_metrics.Average(total=jnp.sum(nll), count=total)
        rows = jnp.array(next(iter(batch.values())).shape[0])
        metrics |= {
            "loss": t5x_metrics.AveragePerStep(total=loss),
            "accuracy": clu_metrics.Average(total=correct, count=weight),
            "timing/seconds": t5x_metrics.Time(),
            "timing/steps_per_second": t5x_metrics.StepsPerTime.from_model_output(),
            "timing/seqs_per_second": t5x_metrics.TimeRate.from_model_output(numerator=rows),
        }
        return loss, metrics

    def score_batch(self, params: Params, batch: Batch, return_intermediates: bool = False) -> Float[Array, " B"]:
        """Weighted log probability of each row's targets, summed over towers."""
        if return_intermediates:
            raise NotImplementedError("zipper models keep no intermediates")
        towers = _towers(batch)
        losses = zipper.bind_params(self.config, _plain(params)).losses(towers)
        return -sum(jnp.sum(found.nll, axis=1) for found in losses.values())  # type: ignore[return-value]

    def predict_batch_with_aux(
        self, params: Params, batch: Batch, rng: Any = None
    ) -> tuple[Int[Array, "B N"], dict[str, Any]]:
        """Greedy decoding of ``output``, conditioned on the other towers' tokens; each row holds one example.

        Returns:
            Content tokens, N = limit + 2, padded with the end token; and their log probabilities.
        """
        towers, place = _towers(batch), self._layout[self._output]
        rows = next(iter(towers.values())).tokens.shape[0]
        capacity = {name: tower.tokens.shape[1] for name, tower in towers.items()}
        capacity[place.tower] = max(capacity[place.tower], self._limit + 2)
        plain = _plain(params)
        cache = init_cache(self.config, rows, capacity)
        given = {name: tower for name, tower in towers.items() if name != place.tower}
        if given:
            _, cache = zipper.bind_params(self.config, plain).hidden(given, cache)
        keys = jax.random.split(jax.random.key(0), rows)
        model = for_decoding(self.config, plain)
        _, (tokens, scores, _) = decode_span(
            model, cache, keys, place=place, limit=self._limit, sampling=SamplingConfig()
        )
        return tokens - place.offset, {"scores": scores}

    def _stopped(self, params: Params) -> Params:
        trainable, frozen = split(_plain(params), self._freeze)
        return unflatten(join_flat({**trainable, **jax.lax.stop_gradient(frozen)}))


class PackedRows(dataset_iterator.DatasetIterator):
    """Iterator over one process's batches for t5x; its position is one number, saved as JSON."""

    def __init__(self, rows: Any, batch_size: int, shard: int, shards: int):
        if batch_size % shards:
            raise UserError(f"BATCH_SIZE={batch_size} rows do not divide over {shards} hosts")
        self._rows, self._step = rows, 0
        self._mine = slice(shard * batch_size // shards, (shard + 1) * batch_size // shards)
        self.element_spec = {
            key: dataset_iterator.ArraySpec(value.dtype, value.shape) for key, value in self._batch(0).items()
        }

    element_spec: Any = None

    def __next__(self) -> dict[str, np.ndarray]:
        self._step += 1
        return self._batch(self._step - 1)

    def reset(self) -> None:
        """Back to the first batch."""
        self._step = 0

    def save(self, filename: Any) -> None:
        """Save the position."""
        Path(filename).write_text(json.dumps({"step": self._step}), encoding="utf-8")

    def restore(self, filename: Any) -> None:
        """Restore the position from `save`."""
        self._step = user_json.read_file(Path(filename), _Position, "it is damaged: restore it from a copy").step

    def _batch(self, step: int) -> dict[str, np.ndarray]:
        towers = self._rows.get(step)["towers"]
        return {
            f"{name}/{field}": np.asarray(value)[self._mine]
            for name, tower in towers.items()
            for field, value in tower._asdict().items()
        }


def packed_rows(
    cfg: Any,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: Any,
    *,
    folder: str,
    config: ZipperConfig,
    rates: Mapping[str, float] | None = None,
) -> PackedRows:
    """t5x's ``get_dataset_fn`` over rows that ``zipper data prepare`` wrote; bind ``folder``, ``config`` and ``rates``.

    Of ``cfg`` it uses mixture_or_task_name, task_feature_lengths (row length per tower), split, batch_size and seed.
    """
    del feature_converter_cls
    shares = dict(rates or {cfg.mixture_or_task_name: 1.0})
    stores = {task: RowStore(Path(folder) / "rows" / task / cfg.split) for task in shares}
    mixture = RowMixture(stores, shares, int(cfg.seed or 0))
    rows = batches(mixture, _layout(config, folder), dict(cfg.task_feature_lengths), cfg.batch_size)
    return PackedRows(rows, cfg.batch_size, shard_id, num_shards)


def factor_rules() -> dict[str, str]:
    """Factored dimensions of t5x's Adafactor: input and output features, never layers or zips."""
    rules = dict.fromkeys(("vocab", "heads", "kv_heads", "head_size", "mlp", "projection_out"), "col")
    rules |= dict.fromkeys(("embed", "projection"), "row")
    return {**rules, "layers": "batch", "zips": "batch", UNNAMED: "none"}


def axis_rules() -> list[tuple[str, str | None]]:
    """Logical axes to t5x's mesh axes: rows over ``data``; heads, hidden features and vocabulary over ``model``."""
    cut = ("vocab", "heads", "kv_heads", "mlp", "projection_out")
    whole = ("embed", "head_size", "layers", "zips", "projection", UNNAMED)
    return [("batch", "data"), *((name, "model") for name in cut), *((name, None) for name in whole)]


def _layout(config: ZipperConfig, folder: str) -> Layout:
    known = {name: load_vocabulary(Path(folder) / "vocabularies" / name) for name in config.modalities}
    return make_layout(config.modalities, known, folder)


def _towers(batch: Batch) -> dict[str, TowerBatch]:
    names = sorted({key.split("/")[0] for key in batch})
    return {name: TowerBatch(*(batch[f"{name}/{field}"] for field in TowerBatch._fields)) for name in names}


def _plain(params: Params) -> dict[str, Any]:
    """Plain nested dicts from t5x's containers."""
    return unflatten(flatten(params))
