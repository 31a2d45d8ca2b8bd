"""The device mesh, the sharding rules of a run, and the transfer of batches to the devices.

Mesh axes: ``slices`` (data parallelism over TPU slices or GPU nodes, joined by the slow network), ``data`` (data
parallelism within a slice), ``fsdp`` (batch rows, and parameters along embed_dim), ``tensor`` (parameters along heads,
hidden features and vocabulary). Batch rows are sharded over the first three.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zipper_jax.utils.configs import closest, freeze_fields
from zipper_jax.utils.errors import UserError

MESH_AXES = ("slices", "data", "fsdp", "tensor")
BATCH_AXES = ("slices", "data", "fsdp")

Rules = Mapping[str, str | None]
"""Logical axis of a parameter -> mesh axis; None: not sharded."""

_TENSOR: Rules = {
    "layers": None,
    "zips": None,
    "vocab": "tensor",
    "embed": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_size": None,
    "mlp": "tensor",
    "projection": None,
    "projection_out": "tensor",
}
STRATEGIES: dict[str, Rules] = {
    "sharded": {**_TENSOR, "embed": "fsdp", "projection": "fsdp"},
    "tensor": _TENSOR,
    "replicated": dict.fromkeys(_TENSOR),
}
"""Name -> rules. ``sharded`` uses both axes (training); ``tensor`` does not shard embed_dim, so parameters need no
all-gather (decoding); ``replicated`` shards nothing (small towers beside a large one)."""


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes and sharding rules.

    Attributes:
        slices: TPU slices or GPU nodes, each with replicas of its own; only gradients are sent between them.
        data: Replicas of the model in a slice, each with its own rows; -1: as many as the remaining devices allow.
        fsdp: Number of shards of both rows and parameters.
        tensor: Number of shards of heads, hidden features and vocabulary.
        strategy: A name in ``STRATEGIES``.
        towers: Tower -> another strategy, for its parameters, its input projection and the zips into it.
        rules: Logical axis -> mesh axis or None: overrides entries of every strategy.
    """

    slices: int = 1
    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    strategy: str = "sharded"
    towers: dict[str, str] = field(default_factory=dict)
    rules: dict[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        freeze_fields(self, "towers", "rules")
        for name in ("slices", "fsdp", "tensor"):
            if getattr(self, name) < 1:
                raise UserError(f"MeshConfig.{name}={getattr(self, name)}: give 1 or more")
        if self.data < 1 and self.data != -1:
            raise UserError(f"MeshConfig.data={self.data}: give 1 or more, or -1 for all remaining devices")
        named = {"strategy": self.strategy, **{f"towers[{tower!r}]": name for tower, name in self.towers.items()}}
        for place, name in named.items():
            if name not in STRATEGIES:
                known = ", ".join(STRATEGIES)
                raise UserError(f"MeshConfig.{place}={name!r}: choose one of {known}{closest(name, STRATEGIES)}")
        for logical, mesh_axis in self.rules.items():
            if logical not in _TENSOR:
                raise UserError(f"MeshConfig.rules[{logical!r}]: no such logical axis{closest(logical, _TENSOR)}")
            if mesh_axis is not None and mesh_axis not in MESH_AXES:
                raise UserError(
                    f"MeshConfig.rules[{logical!r}]={mesh_axis!r}: choose one of {', '.join(MESH_AXES)}, or None"
                )

    def rules_of(self, tower: str | None) -> Rules:
        """The rules for the parameters owned by a tower; None: for those owned by none."""
        return {**STRATEGIES[self.towers.get(tower or "", self.strategy)], **self.rules}

    def shape(self, devices: int) -> tuple[int, int, int, int]:
        """Sizes of ``MESH_AXES`` on the given number of devices.

        Raises:
            UserError: There are fewer devices than needed, or ``data`` = -1 cannot use them all.
        """
        rest = self.slices * self.fsdp * self.tensor
        data = self.data if self.data != -1 else max(devices // rest, 1)
        used = data * rest
        if used > devices or (self.data == -1 and used != devices):
            slices = f"slices={self.slices}, " if self.slices > 1 else ""
            raise UserError(
                f"MeshConfig {slices}data={self.data}, fsdp={self.fsdp}, tensor={self.tensor} needs a multiple of "
                f"{used} devices, there are {devices}; make the product of {'the four' if slices else 'the three'} "
                f"{devices}"
            )
        return self.slices, data, self.fsdp, self.tensor


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """The mesh over ``devices`` (None: all), with axes ``MESH_AXES``.

    With ``data`` = -1 every device is used; explicit sizes may leave some idle.

    Raises:
        UserError: The sizes do not fit the devices, leave some idle in a group of processes, or ``slices`` is not the
            number of TPU slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    size = int(np.prod(shape))
    if size < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"MeshConfig uses {size} of {len(devices)} devices in {jax.process_count()} processes: a group must use "
            "all; give sizes whose product is the number of devices"
        )
    devices = devices[:size]
    # GPUs have a slice_index too, but it does not describe how their nodes are connected.
    found = len({getattr(d, "slice_index", 0) for d in devices}) if devices[0].platform == "tpu" else 1
    if found > 1 and found != config.slices:
        raise UserError(
            f"MeshConfig.slices={config.slices}, but the devices are {found} TPU slices; give slices={found}"
        )
    if found > 1:
        from jax.experimental import mesh_utils

        within = (1, *shape[1:])
        array = mesh_utils.create_hybrid_device_mesh(within, (config.slices, 1, 1, 1), devices)
        return Mesh(array, MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    if config.slices > 1:  # no TPU slices: nodes, which number their devices one after another
        return Mesh(np.array(devices).reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    return jax.make_mesh(shape, MESH_AXES, (AxisType.Auto,) * 4, devices=devices)


def batch_ways(mesh: Mesh) -> int:
    """Number of shards of a batch's rows."""
    return _batch_ways(mesh.shape)


def _batch_ways(sizes: Mapping[str, int]) -> int:
    return int(np.prod([sizes[axis] for axis in BATCH_AXES]))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows sharded over ``slices``, ``data`` and ``fsdp``; all other axes replicated."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(batch_size: int, microbatches: int, sizes: Mapping[str, int]) -> None:
    """Raise UserError unless the rows divide over the devices (``sizes``: of the mesh axes) and microbatches."""
    ways = _batch_ways(sizes)
    if batch_size % (ways * microbatches):
        raise UserError(
            f"batch_size={batch_size} rows must be a multiple of {ways * microbatches} "
            f"(slices x data x fsdp = {ways} devices, {microbatches} microbatches); change batch_size, microbatches or "
            "the mesh"
        )


def own_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, in increasing order: int [rows].

    Processes whose devices hold shards of the same rows (``tensor`` across hosts) have the same rows.
    """
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[at] for at in held.values() if at is not None]))


def put_batch(batch: Any, mesh: Mesh, batch_size: int | None = None) -> Any:
    """Transfer a host batch to the mesh, asynchronously.

    Args:
        batch: NumPy arrays [rows, ...] of `own_rows`; in one process that is the whole batch.
        mesh: The mesh.
        batch_size: Rows of the global batch; None: those of ``batch``, which has all of them.
    """
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    size = len(jax.tree.leaves(batch)[0]) if batch_size is None else batch_size
    rows = np.arange(size) if batch_size is None else own_rows(mesh, size)

    def put(array: np.ndarray) -> jax.Array:
        def shard(at: Any) -> np.ndarray:
            return array[np.searchsorted(rows, np.arange(size)[at[0]])]

        return jax.make_array_from_callback((size, *array.shape[1:]), sharding, shard)

    return jax.tree.map(put, batch)


def put_flag(raised: bool, mesh: Mesh) -> Any:
    """This process's flag on each of its devices: int32, one element per device of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(MESH_AXES))
    return jax.make_array_from_callback((mesh.size,), sharding, lambda at: np.full(1, raised, np.int32))
