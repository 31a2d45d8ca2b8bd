"""Changes that a cheat would survive: what a model says must depend on them (hard rule: no error rate without them)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax


def close_gates(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with every zip's gates at zero: what the model can do without the other tower."""
    zips = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if str(path[-1].key).endswith("_gate") else x, params["zips"]
    )
    return {**params, "zips": zips}


def others(items: Sequence[Any]) -> list[Any]:
    """Another sentence's item for each: turned by half the list."""
    half = len(items) // 2
    return [*items[half:], *items[:half]]
