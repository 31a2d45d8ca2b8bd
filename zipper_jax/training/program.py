"""The program of one run: model, optimizer, mesh, shardings and step functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zipper_jax.checkpoint.orbax_trees import cast as cast_leaf
from zipper_jax.checkpoint.state import TrainState
from zipper_jax.models import zipper
from zipper_jax.models.config import ZipperConfig
from zipper_jax.models.dropout import Dropout
from zipper_jax.models.flops import flops_per_row
from zipper_jax.ops.losses import Losses
from zipper_jax.sharding.chips import chip
from zipper_jax.sharding.mesh import check_batch_size, make_mesh
from zipper_jax.sharding.rules import Placement, optimizer_shardings, param_shardings
from zipper_jax.training import partition_tree as tree
from zipper_jax.training.config import TrainConfig
from zipper_jax.training.initial import Leaf
from zipper_jax.training.optimizer import learning_rate_schedule, make_optimizer
from zipper_jax.training.step import make_eval_step, make_train_step, new_guard
from zipper_jax.utils import trees
from zipper_jax.utils.errors import UserError


@dataclass(frozen=True)
class Program:
    """What :func:`build` returns.

    Attributes:
        mesh: The devices.
        like: Abstract state: shapes, dtypes and shardings; the target of a checkpoint restore.
        optimizer: optax transformation over the flat trainable leaves.
        schedule: Learning rate of the update after ``step`` updates.
        losses: ``(params, towers) -> losses per tower``, with sharding constraints on its activations; with dropout
            where it gets keys of rows.
        train_step: ``(state, batch, stop) -> (state, metrics)``, donating the state.
        eval_step: ``(params, batch) -> sums``.
        notes: Notes for the user, for example axes that are replicated because the mesh does not divide them.
        flops_per_step: Estimated FLOP, see `models.flops`.
        work_per_step: The same, recomputation included.
        peak_flops: FLOP/s of all devices together; None when unknown.
        freeze: The run's freeze rules.
    """

    mesh: Mesh
    like: TrainState
    optimizer: Any
    schedule: Any
    losses: Any
    train_step: Any
    eval_step: Any
    notes: list[str]
    flops_per_step: float
    work_per_step: float
    peak_flops: float | None
    freeze: tree.FreezeConfig

    def start(self, params: Mapping[str, Any], keep: Callable[[trees.Flat], None] | None = None) -> TrainState:
        """Build the state of step 0, sharded over the mesh.

        Args:
            params: Path -> `initial.Leaf`, each evaluated once, of which this process keeps only its own shards; or
                nested arrays.
            keep: Is given the frozen leaves as they are stored, before kernels are rounded for products.
        """
        leaves, keys = trees.flatten(params), dict[str, list[str]]()
        for key in {**self.like.trainable, **self.like.frozen}:
            keys.setdefault(trees.base_path(key), []).append(key)
        placed: trees.Flat = {}

        def place(path: str) -> None:
            leaf = leaves.pop(path)
            array = leaf.make() if isinstance(leaf, Leaf) else leaf
            for key in keys[path]:
                like = self.like.trainable.get(key, self.like.frozen.get(key))
                dtype = like.dtype if keep is None or key in self.like.trainable else leaf.dtype
                piece = np.asarray(trees.piece_of(array, key), dtype)
                placed[key] = jax.make_array_from_callback(like.shape, like.sharding, partial(_part, piece))

        # The frozen leaves first: as they are stored they may take twice the memory that they do in training.
        for path in [path for path in leaves if any(key in self.like.frozen for key in keys[path])]:
            place(path)
        frozen = {key: placed.pop(key) for key in self.like.frozen}
        if keep is not None:
            keep(frozen)
        for key, like in self.like.frozen.items():
            frozen[key] = cast_leaf(frozen[key], like)
        for path in list(leaves):
            place(path)
        trainable = {key: placed[key] for key in self.like.trainable}
        shardings = jax.tree.map(lambda s: s.sharding, self.like.opt_state)
        opt_state = jax.jit(self.optimizer.init, out_shardings=shardings)(trainable)
        number = jax.device_put(np.int32(0), self.like.step.sharding)
        guard = jax.device_put(new_guard(), jax.tree.map(lambda s: s.sharding, self.like.guard))
        return TrainState(number, trainable, frozen, opt_state, guard)


def _part(array: np.ndarray, index: Any) -> np.ndarray:
    return np.asarray(array[index])


def _kept(config: TrainConfig) -> list[str]:
    if config.mesh.fsdp == 1 or config.model.remat != "none":
        return []
    return ["ZipperConfig.remat='none' stores every gathered kernel for the backward pass; 'dots' and 'full' do not"]


def _state_shapes(
    trainable: trees.Flat, frozen: trees.Flat, placed: dict[str, NamedSharding], optimizer: Any, mesh: Mesh
) -> TrainState:
    """The abstract state of a run: shapes, dtypes and shardings."""
    opt_shapes = jax.eval_shape(optimizer.init, trainable)
    opt_placed = optimizer_shardings(opt_shapes, trainable, placed, mesh)

    def with_sharding(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    replicated = NamedSharding(mesh, PartitionSpec())
    return TrainState(
        cast(Any, jax.ShapeDtypeStruct((), np.int32, sharding=replicated)),
        {key: with_sharding(leaf, placed[key]) for key, leaf in trainable.items()},
        {key: with_sharding(leaf, placed[key]) for key, leaf in frozen.items()},
        jax.tree.map(with_sharding, opt_shapes, opt_placed),
        jax.tree.map(lambda leaf: with_sharding(leaf, replicated), new_guard()),
    )


def parameter_shapes(
    model: ZipperConfig, freeze: tree.FreezeConfig
) -> tuple[trees.Flat, trees.Flat, dict[str, zipper.Parameter]]:
    """The shapes and dtypes of a run's ``(trainable, frozen)`` leaves as training holds them, and each key's metadata.

    Raises:
        UserError: A freeze rule matches nothing.
    """
    trainable, frozen = tree.split(zipper.abstract_params(model), freeze)
    known = trees.known_of([*trainable, *frozen], zipper.parameters(model))
    dtypes = {key: zipper.frozen_dtype(model, known[key], leaf.dtype) for key, leaf in frozen.items()}
    held = {key: jax.ShapeDtypeStruct(leaf.shape, dtypes[key]) for key, leaf in frozen.items()}
    return trainable, held, known


def build(config: TrainConfig, num_tasks: int, devices: list[Any] | None = None) -> Program:
    """Build the program of a run; nothing is allocated or compiled yet.

    Args:
        config: The run.
        num_tasks: Number of tasks in the mixture.
        devices: Devices to compile for, possibly of an ahead-of-time topology (``zipper compile``); None:
            ``jax.devices()``.

    Raises:
        UserError: Freeze rules, multipliers, mesh or batch size do not fit the model or the devices.
    """
    devices = jax.devices() if devices is None else devices
    mesh = make_mesh(config.mesh, devices)
    check_batch_size(config.batch_size, config.microbatches, mesh.shape)
    platform = mesh.devices.flat[0].platform
    for name in config.xla_options:
        if platform != "tpu" and name.startswith(("xla_tpu_", "xla_jf_")):
            raise UserError(
                f"TrainConfig.xla_options: {name!r} is for TPUs, but the devices are {platform}s; remove "
                "--gin_file=xla/tpu.gin"
            )
    trainable, frozen, known = parameter_shapes(config.model, config.freeze)
    placed, notes = param_shardings({**trainable, **frozen}, known, mesh, config.mesh)
    optimizer = make_optimizer(config.optimizer, {key: known[key].axes for key in trainable}, config.steps)
    like = _state_shapes(trainable, frozen, placed, optimizer, mesh)
    placement = Placement(mesh, config.mesh)

    def losses(params: dict[str, Any], towers: dict[str, Any], keys: Any = None) -> dict[str, Losses]:
        dropout = None if keys is None else Dropout(config.dropout, keys, config.token_noise)
        return zipper.bind_params(config.model, params, placement).losses(towers, config.z_loss, dropout, True)

    train_step = make_train_step(
        losses,
        optimizer,
        num_tasks=num_tasks,
        loss_weights=config.term_weights,
        microbatches=config.microbatches,
        guard=config.guard,
        gates=[path for path, found in known.items() if found.use == "gate"],
        dropout_seed=config.dropout_seed,
        state_shardings=jax.tree.map(lambda s: s.sharding, like),
        compiler_options=config.xla_options,
        debug_nans=config.debug_nans,
    )
    idle = len(devices) - mesh.size
    chips = [chip(d.device_kind) for d in mesh.devices.flat]
    counted = (config.model, {**trainable, **frozen}, known, trainable, config.data.lengths)
    return Program(
        mesh=mesh,
        like=like,
        optimizer=optimizer,
        schedule=learning_rate_schedule(config.optimizer, config.steps),
        losses=losses,
        train_step=train_step,
        eval_step=make_eval_step(losses, num_tasks=num_tasks),
        notes=_kept(config) + [f"{idle} of {len(devices)} devices are idle (MeshConfig)"] * bool(idle) + notes,
        flops_per_step=flops_per_row(*counted) * config.batch_size,
        work_per_step=flops_per_row(*counted, recomputed=True) * config.batch_size,
        peak_flops=None if None in chips else float(sum(c.flops for c in chips if c is not None)),
        freeze=config.freeze,
    )
