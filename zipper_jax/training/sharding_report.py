"""How each array is sharded: path, shape, spec, bytes per device; warns of large replicated arrays."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from zipper_jax.models.config import ZipperConfig
from zipper_jax.sharding.mesh import MESH_AXES, MeshConfig
from zipper_jax.sharding.rules import param_specs
from zipper_jax.training import partition_tree as tree
from zipper_jax.training.optimizer import OptimizerConfig, make_optimizer
from zipper_jax.training.program import parameter_shapes
from zipper_jax.utils.readable import size as readable_size

LARGE = 16 * 2**20
"""Smallest replicated array to warn of, in bytes."""


def sharding_lines(
    model: ZipperConfig, freeze: tree.FreezeConfig, optimizer: OptimizerConfig, mesh: MeshConfig, devices: int
) -> Iterator[str]:
    """Format the output of ``zipper inspect --sharding``; needs no device.

    Raises:
        UserError: The mesh does not fit the number of devices.
    """
    sizes = dict(zip(MESH_AXES, mesh.shape(devices), strict=True))
    trainable, frozen, known = parameter_shapes(model, freeze)
    leaves = {**trainable, **frozen}
    specs, notes = param_specs(leaves, known, sizes, mesh)
    state = _state_bytes(optimizer, trainable, {key: found.axes for key, found in known.items()})
    yield "mesh         " + " x ".join(f"{name} {size}" for name, size in sizes.items()) + f", {devices} devices"
    totals = {"parameters": 0.0, "optimizer": 0.0}
    warnings: list[str] = []
    for key, leaf in sorted(leaves.items()):
        ways = _ways(specs[key], sizes)
        size = float(np.prod(leaf.shape)) * leaf.dtype.itemsize
        kept = state.get(key, 0.0) / ways
        totals["parameters"] += size / ways
        totals["optimizer"] += kept
        spec = ", ".join("-" if entry is None else str(entry) for entry in specs[key]) or "-"
        note = "frozen" if key in frozen else f"+ {readable_size(kept)} optimizer"
        shape = ", ".join(map(str, leaf.shape))
        yield f"array        {key} [{shape}] ({spec}): {readable_size(size / ways)} per device, {note}"
        if ways == 1 and devices > 1 and size >= LARGE:
            warnings.append(f"{key} is replicated on every device: {readable_size(size)}")
    for name, size in totals.items():
        yield f"per device   {name}: {readable_size(size)}"
    for note in notes:
        yield f"note         {note}"
    for warning in warnings:
        yield f"warning      {warning}"


def _ways(spec: PartitionSpec, sizes: Mapping[str, int]) -> int:
    return int(np.prod([sizes[axis] for axis in spec if axis is not None], initial=1))


def _state_bytes(optimizer: OptimizerConfig, trainable: Mapping[str, Any], axes: Mapping[str, Any]) -> dict[str, float]:
    """Bytes of optimizer state per parameter over all devices, of state arrays with the parameter's shape."""
    made = make_optimizer(optimizer, {key: axes[key] for key in trainable}, optimizer.warmup_steps + 1)
    found: dict[str, float] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.eval_shape(made.init, dict(trainable))):
        for entry in path:
            key = getattr(entry, "key", None)
            if isinstance(key, str) and key in trainable and leaf.shape == trainable[key].shape:
                found[key] = found.get(key, 0.0) + float(np.prod(leaf.shape)) * leaf.dtype.itemsize
    return found
