"""FLOPs of a training step, counted from the configuration.

A matrix product with n weights costs 2n per token forward, 2n backward for the activations, and 2n more for the weights
when they are trained. Attention scores and values cost 4·S·N·H forward per query and twice that backward, halved
because of causality. All positions count, padding included, since the device computes them. Recomputation (remat)
counts only on request.

Axis letters: T queries, S keys, N heads, H head_dim.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from zipper_jax.models.config import ZipperConfig
from zipper_jax.models.fusion import fusion_class
from zipper_jax.models.schedule import read_alone, soft_tokens, zip_pairs
from zipper_jax.models.zipper import Parameter


def flops_per_row(
    config: ZipperConfig,
    shapes: Mapping[str, Any],
    known: Mapping[str, Parameter],
    trainable: Iterable[str],
    lengths: Mapping[str, int],
    recomputed: bool = False,
) -> float:
    """FLOPs of the forward and backward pass of one row.

    Args:
        config: The model.
        shapes: Flat tree of its leaves.
        known: `zipper.parameters` of the same keys.
        trainable: Keys of the leaves that are trained (slices count for their share).
        lengths: Positions per tower.
        recomputed: Also count what ``config.remat`` recomputes (hardware FLOPs instead of model FLOPs).
    """
    trained = set(trainable)
    again = config.remat if recomputed else "none"
    matrix, attention = (2 if again == "full" else 0), (12 if again == "none" else 16)
    total = 0.0
    for key, leaf in shapes.items():
        if known[key].use == "product" or known[key].output:  # looking up a table is no product
            per_weight = (6 if key in trained else 4) + matrix * known[key].stacked
            tokens = sum(share * lengths.get(tower, 0) for tower, share in known[key].tokens.items())
            total += per_weight * float(np.prod(leaf.shape)) * tokens
    alone = read_alone(config)
    for name, tower in config.towers.items():
        soft = soft_tokens(config, name)
        for block, window in enumerate(tower.window_of, 1):
            length = lengths[name] + sum(s.most(lengths) for s in soft if s.block <= block)
            runs = [length] + [lengths[name]] * (block <= alone.get(name, 0))
            for length in runs:
                seen = length / 2 if not window else min(window, length / 2)
                total += attention * tower.num_heads * tower.head_dim * length * seen
    for z in config.zips:
        count = len(zip_pairs(z, config.towers))
        for into in z.receivers:
            heads, size = fusion_class(z.fusion).heads(z, config.towers[into])
            total += attention * count * heads * size * lengths[into] * lengths[z.other(into)] / 2
    return total
