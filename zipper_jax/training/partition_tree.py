"""Splits a parameter tree into trainable and frozen leaves, by rules.

A *flat* tree is ``{'/'-path: array}``. Freezing splits the flat tree before gradients are taken, so a frozen leaf has
no gradient of its own and no optimizer state, while gradients still flow through the activations it touches.

A layer range splits a stacked ``[L, ...]`` leaf into slices along its first axis, keyed ``PATH@START:STOP``. Joining
them concatenates, which costs one extra copy of the split leaves per step.

Axes: L layers of a tower.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax

from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import Flat, compile_pattern, flatten, require_match


@dataclass(frozen=True)
class LayerRange:
    """Blocks ``start <= k < stop`` of one tower, counted from the input."""

    tower: str
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise UserError(
                f"LayerRange of tower {self.tower!r}: start={self.start}, stop={self.stop} is an empty range; "
                "give 0 <= start < stop"
            )


@dataclass(frozen=True)
class FreezeConfig:
    """Which leaves are frozen: those that any rule matches. Without rules everything is trained.

    Attributes:
        towers: Tower names; everything under ``towers/NAME/``. Zips, input projections and added embeddings have other
            paths and stay trained.
        paths: Regular expressions that must match a whole path, for example ``input_projections/text/.*``.
        layers: Ranges of blocks.
    """

    towers: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    layers: tuple[LayerRange, ...] = ()

    def __post_init__(self) -> None:
        for pattern in self.paths:
            compile_pattern(pattern, "FreezeConfig.paths")


@dataclass(frozen=True)
class Part:
    """One piece of one leaf: all of it (``start`` is None) or a slice of its first axis."""

    key: str
    path: str
    frozen: bool
    start: int | None = None
    stop: int | None = None


def plan(paths_and_lengths: Mapping[str, int], rules: FreezeConfig) -> tuple[Part, ...]:
    """Plan the parts, from each leaf's path and the length of its first axis (0 for a scalar).

    Raises:
        UserError: A rule matches nothing; the message has the closest existing name.
    """
    towers = sorted({path.split("/")[1] for path in paths_and_lengths if path.startswith("towers/")})
    for tower in (*rules.towers, *(r.tower for r in rules.layers)):
        if tower not in towers:
            known = ", ".join(towers)
            raise UserError(f"freeze: there is no tower {tower!r} (towers: {known}){closest(tower, towers)}")
    patterns = [compile_pattern(p, "FreezeConfig.paths") for p in rules.paths]
    for pattern in patterns:
        require_match(pattern, paths_and_lengths, "FreezeConfig.paths")

    parts: list[Part] = []
    for path, length in sorted(paths_and_lengths.items()):
        whole = any(path.startswith(f"towers/{t}/") for t in rules.towers) or any(p.fullmatch(path) for p in patterns)
        ranges = [r for r in rules.layers if path.startswith(f"towers/{r.tower}/blocks/")]
        if whole or not ranges:
            parts.append(Part(path, path, whole))
            continue
        for r in ranges:
            if r.stop > length:
                raise UserError(
                    f"freeze: layers {r.start}:{r.stop} of tower {r.tower!r}, but it has {length} blocks; "
                    f"give stop <= {length}"
                )
        frozen = [any(r.start <= k < r.stop for r in ranges) for k in range(length)]
        if all(frozen):
            parts.append(Part(path, path, True))
            continue
        edges = [0, *(k for k in range(1, length) if frozen[k] != frozen[k - 1]), length]
        for start, stop in pairwise(edges):
            parts.append(Part(f"{path}@{start}:{stop}", path, frozen[start], start, stop))
    return tuple(parts)


def split(params: Mapping[str, Any], rules: FreezeConfig) -> tuple[Flat, Flat]:
    """Split into ``(trainable, frozen)``, both flat. Leaves: JAX or NumPy arrays, or ``ShapeDtypeStruct``.

    Raises:
        UserError: A rule matches nothing.
    """
    flat = flatten(params)
    lengths = {path: leaf.shape[0] if leaf.shape else 0 for path, leaf in flat.items()}
    trainable: Flat = {}
    frozen: Flat = {}
    for part in plan(lengths, rules):
        leaf = flat[part.path]
        if part.start is not None:
            leaf = _slice(leaf, part.start, part.stop)
        (frozen if part.frozen else trainable)[part.key] = leaf
    return trainable, frozen


def _slice(leaf: Any, start: int, stop: int | None) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        assert stop is not None
        return jax.ShapeDtypeStruct((stop - start, *leaf.shape[1:]), leaf.dtype)
    return leaf[start:stop]
