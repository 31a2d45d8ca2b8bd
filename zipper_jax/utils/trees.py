"""Parameter trees as plain dicts: nested, or flat by '/'-paths, leaves optionally sliced along their first axis."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError

Flat = dict[str, Any]
"""``{path: array}``; paths of slices end in ``@START:STOP``."""


def compile_pattern(pattern: str, field: str) -> re.Pattern[str]:
    """``re.compile`` whose error names the config field."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{field}: {pattern!r} is not a regular expression ({error}); fix it") from None


def flatten(params: Mapping[str, Any], prefix: str = "") -> Flat:
    """Nested dicts to ``{'/'-path: leaf}``, in sorted path order."""
    flat: Flat = {}
    for name in sorted(params):
        path = f"{prefix}{name}"
        if isinstance(params[name], Mapping):
            flat.update(flatten(params[name], path + "/"))
        else:
            flat[path] = params[name]
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`flatten` (dicts without leaves are not kept)."""
    nested: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        node = nested
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return nested


def base_path(key: str) -> str:
    """The leaf's path without a slice's ``@START:STOP``."""
    return key.partition("@")[0]


def piece_of(leaf: Any, key: str) -> Any:
    """The part of a whole leaf that ``key`` names: all of it, or a slice."""
    _, _, bounds = key.partition("@")
    return leaf[slice(*map(int, bounds.split(":")))] if bounds else leaf


def require_match(pattern: re.Pattern[str], paths: Iterable[str], field: str) -> None:
    """Raise UserError unless the pattern matches a whole path."""
    known = [base_path(p) for p in paths]
    if not any(pattern.fullmatch(p) for p in known):
        bare = re.sub(r"[\\.*+?^$()\[\]|]+", "", pattern.pattern)
        raise UserError(
            f"{field}: {pattern.pattern!r} matches no parameter path (it must match a whole path; "
            f"use '.*' for any part){closest(bare, known)}"
        )


def known_of(keys: Iterable[str], known: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata (`zipper.parameters`) per key of a split tree; a slice has that of its leaf."""
    return {key: known[base_path(key)] for key in keys}


def join(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """The nested parameter tree; the exact inverse of `training.partition_tree.split`. Traceable."""
    return unflatten(join_flat({**frozen, **trainable}))


def join_flat(parts: Mapping[str, Any]) -> Flat:
    """Concatenate the slices of each leaf; other leaves are unchanged."""
    flat: Flat = {}
    slices: dict[str, list[tuple[int, Any]]] = {}
    for key, leaf in parts.items():
        path, _, bounds = key.partition("@")
        if bounds:
            slices.setdefault(path, []).append((int(bounds.split(":")[0]), leaf))
        else:
            flat[path] = leaf
    for path, pieces in slices.items():
        leaves = [leaf for _, leaf in sorted(pieces, key=lambda piece: piece[0])]
        host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
        flat[path] = np.concatenate(leaves) if host else jnp.concatenate(leaves)
    return flat
