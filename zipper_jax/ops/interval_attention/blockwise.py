"""Interval attention with the scores of a block of queries at a time.

They are recomputed in the backward pass, so that float32 [B, N, T, S] is never allocated.

Axis letters: B rows, T queries, S keys, N query heads, K key/value heads, H head_dim, W distances.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from zipper_jax.ops.interval_attention import dense

_QUERY_BLOCK = 256


def attention(
    query: Array, key: Array, value: Array, start: Array, end: Array, scale: Any, softcap: Any,
    distance_bias: Array | None, return_lse: bool,
) -> Any:  # fmt: skip
    t = query.shape[1]
    blocks = -(-t // _QUERY_BLOCK)
    pad = blocks * _QUERY_BLOCK - t

    def split(x: Array, fill: int) -> Array:
        x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
        return jnp.moveaxis(x.reshape(x.shape[0], blocks, _QUERY_BLOCK, *x.shape[2:]), 1, 0)

    # checkpoint: the backward pass keeps each block's inputs and recomputes its scores.
    @jax.checkpoint
    def attend(block: tuple[Array, Array, Array]) -> Any:
        return dense.attention(block[0], key, value, block[1], block[2], scale, softcap, distance_bias, return_lse)

    def join(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], blocks * _QUERY_BLOCK, *x.shape[3:])[:, :t]

    parts = jax.lax.map(attend, (split(query, 0), split(start, key.shape[1]), split(end, key.shape[1])))
    return jax.tree.map(join, parts)
