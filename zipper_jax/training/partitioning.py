"""Where arrays live: a mesh, one table of rules (logical axis to mesh axis), and the shardings that follow from it.

Everything is ``jax.jit`` with ``NamedSharding`` over Auto axes: the model says nothing about devices, the compiler
propagates. One device is the mesh (1, 1, 1), with no special case anywhere.

Mesh axes: ``data`` (batch rows only), ``fsdp`` (batch rows, and parameters cut along their width), ``tensor``
(parameters cut along heads, hidden features and vocabulary).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zipper_jax.configs import closest
from zipper_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

RULES: dict[str, str | None] = {
    "layers": None,
    "zips": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_size": None,
    "mlp": "tensor",
    "projection": "fsdp",
    "projection_out": "tensor",
}
"""Logical axis of a parameter to mesh axis; None: not cut."""


@dataclass(frozen=True)
class MeshConfig:
    """How many ways each mesh axis is cut.

    Attributes:
        data: Copies of the model, each with its own rows; -1: as many as the remaining devices allow.
        fsdp: Ways both rows and parameters are cut.
        tensor: Ways heads, hidden features and vocabulary are cut.
        rules: Replacements for entries of ``RULES``.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: dict[str, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("fsdp", "tensor"):
            if getattr(self, name) < 1:
                raise UserError(f"MeshConfig.{name}={getattr(self, name)}: give 1 or more")
        if self.data < 1 and self.data != -1:
            raise UserError(f"MeshConfig.data={self.data}: give 1 or more, or -1 for all remaining devices")
        for logical, mesh_axis in self.rules.items():
            if logical not in RULES:
                raise UserError(f"MeshConfig.rules[{logical!r}]: no such logical axis{closest(logical, RULES)}")
            if mesh_axis is not None and mesh_axis not in MESH_AXES:
                raise UserError(
                    f"MeshConfig.rules[{logical!r}]={mesh_axis!r}: choose one of {', '.join(MESH_AXES)}, or None"
                )


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """The mesh over the devices (all, unless given), axes ``data``, ``fsdp``, ``tensor``.

    With ``data`` = -1 every device is used; sizes that are all given may leave some idle.

    Raises:
        UserError: More devices are needed than there are, or -1 cannot use them all.
    """
    devices = jax.devices() if devices is None else devices
    rest = config.fsdp * config.tensor
    data = config.data if config.data != -1 else max(len(devices) // rest, 1)
    used = data * rest
    if used > len(devices) or (config.data == -1 and used != len(devices)):
        raise UserError(
            f"MeshConfig data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} needs a multiple of "
            f"{used} devices, there are {len(devices)}; make the product of the three {len(devices)}"
        )
    shape = (data, config.fsdp, config.tensor)
    return jax.make_mesh(shape, MESH_AXES, (AxisType.Auto,) * 3, devices=devices[:used])


def spec_of(
    key: str, shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh, rules: Mapping[str, str | None]
) -> tuple[PartitionSpec, list[str]]:
    """Spec of one leaf, and a note for each axis that is replicated because its size does not divide."""
    used: set[str] = set()
    entries: list[str | None] = []
    notes: list[str] = []
    for size, name in zip(shape, axes, strict=True):
        mesh_axis = rules[name] if name is not None else None
        ways = mesh.shape[mesh_axis] if mesh_axis is not None else 1
        if mesh_axis is None or ways == 1 or mesh_axis in used:
            entries.append(None)
        elif size % ways:
            entries.append(None)
            notes.append(f"{key}: axis '{name}' of size {size} is not cut {ways} ways over '{mesh_axis}' (replicated)")
        else:
            used.add(mesh_axis)
            entries.append(mesh_axis)
    return PartitionSpec(*entries), notes


def param_shardings(
    shapes: Mapping[str, Any],
    axes: Mapping[str, tuple[str | None, ...]],
    mesh: Mesh,
    rules: Mapping[str, str | None] | None = None,
) -> tuple[dict[str, NamedSharding], list[str]]:
    """Sharding of every leaf of a flat tree, and the notes of :func:`spec_of`.

    Args:
        shapes: Leaves with a ``shape``.
        axes: Logical names, one per axis, for the same keys.
        mesh: From :func:`make_mesh`.
        rules: Replacements for entries of ``RULES``.
    """
    table = {**RULES, **(rules or {})}
    shardings: dict[str, NamedSharding] = {}
    notes: list[str] = []
    for key, leaf in shapes.items():
        if len(leaf.shape) != len(axes[key]) or any(a is not None and a not in table for a in axes[key]):
            raise ValueError(f"{key}: axes {axes[key]} do not fit shape {leaf.shape} or name no rule")
        spec, new = spec_of(key, leaf.shape, axes[key], mesh, table)
        shardings[key] = NamedSharding(mesh, spec)
        notes += new
    return shardings, notes


def optimizer_shardings(
    opt_state: Any, shapes: Mapping[str, Any], params: Mapping[str, NamedSharding], mesh: Mesh
) -> Any:
    """Shardings of an optimizer state: a leaf kept per parameter, of its shape, lies where the parameter lies.

    Everything else (counters, Adafactor's row and column means) is small and replicated.

    Args:
        opt_state: Arrays or ``ShapeDtypeStruct``; parameters appear under their flat key.
        shapes: The trainable leaves.
        params: Their shardings.
        mesh: The mesh.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def of(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for entry in reversed(path):
            key = getattr(entry, "key", None)
            if isinstance(key, str) and key in params:
                return params[key] if leaf.shape == shapes[key].shape else replicated
        return replicated

    return jax.tree_util.tree_map_with_path(of, opt_state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over ``data`` and ``fsdp``; every other axis whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """UserError unless the rows divide over devices and microbatches."""
    ways = int(np.prod([mesh.shape[a] for a in BATCH_AXES]))
    if batch_size % (ways * microbatches):
        raise UserError(
            f"batch_size={batch_size} rows must be a multiple of {ways * microbatches} "
            f"(data x fsdp = {ways} devices, {microbatches} microbatches); change batch_size, microbatches or the mesh"
        )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """A host batch (numpy, the same global rows in every process) onto the mesh, without waiting."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda a: jax.make_array_from_callback(a.shape, sharding, lambda at: a[at]), batch)


def put_flag(raised: bool, mesh: Mesh) -> Any:
    """This process's flag onto each of its devices: int32, one element per device of the mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(MESH_AXES))
    return jax.make_array_from_callback((mesh.size,), sharding, lambda at: np.full(1, raised, np.int32))
