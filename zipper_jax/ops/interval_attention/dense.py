"""Interval attention with all scores at once.

Axis letters: B rows, T queries, S keys, N query heads, K key/value heads, G = N // K, H head_dim, W distances.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zipper_jax.ops.cpu_layout import held_on_cpu

EMPTY = float(np.finfo(np.float32).min) / 2
"""The largest score of a query without visible keys; no real score is as low."""


def interval_weights(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    start: Int[Array, "B T"],
    end: Int[Array, "B T"],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    distance_bias: Float[Array, "N W"] | None = None,
) -> Float[Array, "B K G T S"]:
    """Attention weights, float32 (dense: for figures and tests); 0 for queries without visible keys."""
    unnormalised, _, total = _exponentials(query, key, start, end, scale, softcap, distance_bias)
    return unnormalised / total


def _exponentials(
    query: Array, key: Array, start: Array, end: Array, scale: Any, softcap: Any, distance_bias: Array | None
) -> tuple[Array, Array, Array]:
    """(exp(score - largest) [B, K, G, T, S], largest score, their sum), the latter two [B, K, G, T, 1].

    A query without visible keys has the exponentials 0, the sum 1 and the largest score `EMPTY`.
    """
    b, t, n, h = query.shape
    k, s = key.shape[2], key.shape[1]
    scale = h**-0.5 if scale is None else scale
    # Heads first and the group's queries in one axis: plain batched matrix products, forward and backward.
    by_head = query.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4).reshape(b, k, -1, h)
    if t > 1:
        key = held_on_cpu(key, (0, 2, 3, 1))  # for its gradient
    scores = scale * jnp.einsum("BKXH,BSKH->BKXS", by_head, key, preferred_element_type=jnp.float32)
    scores = scores.reshape(b, k, n // k, t, s)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    slots = jnp.arange(s)
    if distance_bias is not None:
        distance = jnp.clip(end[..., None] - 1 - slots, 0, distance_bias.shape[1] - 1)
        by_slot = jnp.take(distance_bias.astype(jnp.float32), distance, axis=1)  # [N, B, T, S]
        scores = scores + by_slot.reshape(k, n // k, b, t, s).transpose(2, 0, 1, 3, 4)
    visible = (slots >= start[..., None]) & (slots < end[..., None])
    scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
    # Never the fill value itself: its difference to the fill value would be 0 and exp 1, in queries without keys.
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=EMPTY))
    unnormalised = jnp.exp(scores - largest)
    total = jnp.sum(unnormalised, axis=-1, keepdims=True)
    return unnormalised, largest, jnp.where(total == 0.0, 1.0, total)


def attention(
    query: Array, key: Array, value: Array, start: Array, end: Array, scale: Any, softcap: Any,
    distance_bias: Array | None, return_lse: bool,
) -> Any:  # fmt: skip
    b, t, n, h = query.shape
    weights, largest, total = _exponentials(query, key, start, end, scale, softcap, distance_bias)
    _, k, g, _, s = weights.shape
    by_head = weights.astype(value.dtype).reshape(b, k, g * t, s)
    mixed = jnp.einsum("BKXS,BKSH->BKXH", by_head, value.swapaxes(1, 2), preferred_element_type=jnp.float32)
    # Divided after the product: H numbers a query instead of S.
    out = mixed.reshape(b, k, g, t, h) / total
    out = out.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h).astype(query.dtype)
    if not return_lse:
        return out, None
    lse = jnp.where(largest == EMPTY, -jnp.inf, largest + jnp.log(total))
    return out, lse[..., 0].reshape(b, n, t).swapaxes(1, 2)
