"""How much arithmetic a training step is, counted from the configuration, and what the device could do.

A matrix product of n weights costs 2n per token forward, 2n backward for the activations, and 2n more for the weights
when they are trained. Attention scores and values cost 4·S·N·H forward per query slot and twice that backward, halved
because of causality. Counted over all slots, padding too, since the device works on them. Recomputation under remat is
no progress: it is counted only where asked for.

Axes: T query slots, S key slots, N heads, H head size.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from zipper_jax.models.config import ZipperConfig
from zipper_jax.models.schedule import zip_pairs
from zipper_jax.training.partition_tree import base_path


def flops_per_row(
    config: ZipperConfig,
    shapes: Mapping[str, Any],
    axes: Mapping[str, tuple[str | None, ...]],
    trainable: Iterable[str],
    lengths: Mapping[str, int],
    recomputed: bool = False,
) -> float:
    """FLOP of forward and backward for one row of ``lengths`` slots.

    Args:
        config: The model.
        shapes: Flat tree of its leaves.
        axes: Logical axis names of the same keys.
        trainable: Keys of the leaves that are trained (slices count for their share).
        lengths: Slots per tower.
        recomputed: Count what ``config.remat`` computes a second time, too: what the device works, not what it is for.
    """
    trained = set(trainable)
    again = config.remat if recomputed else "none"
    matrix, attention = (2 if again == "full" else 0), (12 if again == "none" else 16)
    total = 0.0
    for key, leaf in shapes.items():
        names = axes[key]
        if len([n for n in names if n not in ("layers", "zips", None)]) < 2:
            continue  # norms, biases, gates, tables of positions and of a few added tokens
        slots = _slots(config, base_path(key), lengths)
        inside = "layers" in names or "zips" in names
        total += ((6 if key in trained else 4) + matrix * inside) * float(np.prod(leaf.shape)) * slots
    for name, tower in config.towers.items():
        for window in tower.window_of:
            seen = lengths[name] / 2 if not window else min(window, lengths[name] / 2)
            total += attention * tower.num_heads * tower.head_size * lengths[name] * seen
    for zip_config in config.zips:
        count = len(zip_pairs(zip_config, config.towers))
        for into in zip_config.receivers:
            heads = zip_config.num_heads or config.towers[into].num_heads
            size = zip_config.head_size or config.towers[into].head_size
            total += attention * count * heads * size * lengths[into] * lengths[zip_config.other(into)] / 2
    return total


def _slots(config: ZipperConfig, path: str, lengths: Mapping[str, int]) -> int:
    """Slots that go through a matrix. The embedding counts once: as the tied head (looking up is no product)."""
    top, name, *rest = path.split("/")
    if top in ("towers", "input_projections"):  # added_embeddings have no matrix that is counted
        if rest[0] == "embedding" and not config.towers[name].tied_head:
            return 0
        return lengths.get(name, 0)
    if top == "zips":
        receiver = rest[0].removeprefix("into_")
        source = next(z for z in config.zips if z.name == name).other(receiver)
        return lengths[source if rest[1] == "projection" or {"key", "value"} & set(rest) else receiver]
    return 0
