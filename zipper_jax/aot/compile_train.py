"""Ahead-of-time compilation of the training step."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from zipper_jax.aot.bounds import bounds
from zipper_jax.aot.report import Compiled, compiled, mesh_advice
from zipper_jax.sequences import TowerBatch
from zipper_jax.sharding.mesh import MESH_AXES, batch_sharding
from zipper_jax.training import program
from zipper_jax.training.config import TrainConfig


def compile_train(config: TrainConfig, devices: list[Any]) -> Compiled:
    """Compile the step that ``zipper train`` runs.

    Args:
        config: The run; its data and folders are not read.
        devices: From ``topology.devices``.

    Raises:
        UserError: Mesh or batch do not fit, or the program exceeds the devices' memory.
    """
    built = program.build(config, len(config.data.tasks), devices)
    lowered = built.train_step.lower(built.like, *batch_shapes(config, built))
    advice = [mesh_advice(config), f"TrainConfig.microbatches (now {config.microbatches}) higher"]
    if config.model.remat != "full":
        advice.append(f"ZipperConfig.remat = 'full' (now {config.model.remat!r})")
    done = compiled(lowered, advice, built.mesh, bounds(config, built), built.notes)
    return replace(done, model_flops=built.flops_per_step / built.mesh.size)


def batch_shapes(config: TrainConfig, built: program.Program) -> tuple[dict[str, Any], Any]:
    """Shapes and shardings of a batch and of the stop flag, as in the training loop."""
    rows, sharding = config.batch_size, batch_sharding(built.mesh)

    def of(slots: int) -> TowerBatch:
        dtypes = [np.float32 if name == "weights" else np.int32 for name in TowerBatch._fields]
        leaves: list[Any] = [jax.ShapeDtypeStruct((rows, slots), dtype, sharding=sharding) for dtype in dtypes]
        return TowerBatch(*leaves)

    towers = {name: of(slots) for name, slots in config.data.lengths.items()}
    every = NamedSharding(built.mesh, PartitionSpec(MESH_AXES))
    flag = jax.ShapeDtypeStruct((built.mesh.size,), np.int32, sharding=every)
    return {"towers": towers, "task": jax.ShapeDtypeStruct((rows,), np.int32, sharding=sharding)}, flag
