"""How arrays are sharded: from a mesh, its rules and the logical axes of each parameter.

Everything is ``jax.jit`` with ``NamedSharding`` over Auto axes. The model knows logical names only; parameters are
sharded here, activations where the model calls :class:`Placement`, and the compiler propagates the rest. One device is
the mesh (1, 1, 1, 1), without special cases.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zipper_jax.models.zipper import Parameter
from zipper_jax.sharding.mesh import BATCH_AXES, MeshConfig, Rules, batch_ways
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError


def spec_of(
    key: str, shape: tuple[int, ...], axes: tuple[str | None, ...], sizes: Mapping[str, int], rules: Rules
) -> tuple[PartitionSpec, list[str]]:
    """Spec of one leaf, and a note for each axis that is replicated because the mesh axis does not divide it.

    Args:
        key: The leaf's path.
        shape: Its shape.
        axes: Its logical axis names.
        sizes: Mesh axis -> number of devices.
        rules: Logical axis -> mesh axis.
    """
    used: set[str] = set()
    entries: list[str | None] = []
    notes: list[str] = []
    for size, name in zip(shape, axes, strict=True):
        mesh_axis = rules[name] if name is not None else None
        ways = sizes[mesh_axis] if mesh_axis is not None else 1
        if mesh_axis is None or ways == 1 or mesh_axis in used:
            entries.append(None)
        elif size % ways:
            entries.append(None)
            notes.append(f"{key}: axis '{name}' of size {size} does not divide over '{mesh_axis}' = {ways}; replicated")
        else:
            used.add(mesh_axis)
            entries.append(mesh_axis)
    return PartitionSpec(*entries), notes


def param_specs(
    shapes: Mapping[str, Any], known: Mapping[str, Parameter], sizes: Mapping[str, int], config: MeshConfig
) -> tuple[dict[str, PartitionSpec], list[str]]:
    """Spec of every leaf of a flat tree, and the notes of :func:`spec_of`.

    Args:
        shapes: Leaves with a ``shape``.
        known: `zipper.parameters` for the same keys.
        sizes: Mesh axis -> number of devices (``mesh.shape``).
        config: Has the rules.

    Raises:
        UserError: ``config.towers`` names an unknown tower.
    """
    towers = {known[key].owner for key in shapes}
    for tower in config.towers:
        if tower not in towers:
            raise UserError(f"MeshConfig.towers: the model has no tower {tower!r}{closest(tower, towers)}")
    specs: dict[str, PartitionSpec] = {}
    notes: list[str] = []
    for key, leaf in shapes.items():
        rules, axes = config.rules_of(known[key].owner), known[key].axes
        if len(leaf.shape) != len(axes) or any(a is not None and a not in rules for a in axes):
            raise ValueError(f"{key}: axes {axes} do not fit shape {leaf.shape} or name no rule")
        specs[key], new = spec_of(key, leaf.shape, axes, sizes, rules)
        notes += new
    return specs, notes


def param_shardings(
    shapes: Mapping[str, Any], known: Mapping[str, Parameter], mesh: Mesh, config: MeshConfig
) -> tuple[dict[str, NamedSharding], list[str]]:
    """`param_specs` as shardings over a mesh."""
    specs, notes = param_specs(shapes, known, mesh.shape, config)
    return {key: NamedSharding(mesh, spec) for key, spec in specs.items()}, notes


def optimizer_shardings(
    opt_state: Any, shapes: Mapping[str, Any], params: Mapping[str, NamedSharding], mesh: Mesh
) -> Any:
    """Shardings of an optimizer state: a leaf of a parameter's shape is sharded like the parameter.

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


@dataclass(frozen=True)
class Placement:
    """Sharding constraints inside the model: called with an array, its tower and its logical axes.

    Without them the compiler may all-reduce activations of the whole batch instead of gathering parameters that are
    sharded along embed_dim.
    """

    mesh: Mesh
    config: MeshConfig

    def __call__(self, x: jax.Array, tower: str, *names: str | None, in_use: bool = False) -> jax.Array:
        """``x`` with its axes sharded.

        Args:
            x: The array.
            tower: Whose rules apply.
            names: Per axis: ``batch`` (rows), a parameter's logical axis, or None.
            in_use: A parameter as it is used: gathered over the mesh axes that shard rows (``fsdp``).
        """
        if self.mesh.size == 1:
            return x
        spec = self.spec(x.shape, tower, *names, in_use=in_use)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def spec(self, shape: tuple[int, ...], tower: str, *names: str | None, in_use: bool = False) -> PartitionSpec:
        """The spec that :meth:`__call__` applies; an axis that does not divide is replicated."""
        inner = [None if name == "batch" else name for name in names]
        rules = self.config.rules_of(tower)
        if in_use:
            rules = {name: None if axis in BATCH_AXES else axis for name, axis in rules.items()}
        spec, _ = spec_of(tower, shape, tuple(inner), self.mesh.shape, rules)
        ways = batch_ways(self.mesh)
        rows = [name == "batch" and size % ways == 0 for name, size in zip(names, shape, strict=True)]
        # A mesh axis that shards rows cannot shard another axis of the same array.
        rest = [None if any(rows) and entry in BATCH_AXES else entry for entry in spec]
        return PartitionSpec(*(BATCH_AXES if cut else entry for cut, entry in zip(rows, rest, strict=True)))
