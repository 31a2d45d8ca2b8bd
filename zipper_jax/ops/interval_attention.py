"""Attention in which every query attends to one contiguous range of keys.

Causal order, sliding windows, packing and "everything of the other tower that came earlier" are all such ranges
(docs/architecture.md, idea 2), so one operation serves self- and cross-attention, training and decoding, and a mask is
two int32 arrays instead of a T x S matrix.

The contract, for fused kernels too:
  * query t of row b attends to keys s with ``start[b, t] <= s < end[b, t]``;
  * ``start`` and ``end`` never decrease along T, padding and empty ranges included (an empty range is
    ``start == end``; padding at the end of a row is ``start == end == S``);
  * a query without visible keys gets exactly 0 and finite gradients.

Axis letters: B rows, T queries, S keys, N query heads, K key/value heads, G = N // K, H head_dim, W distances.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Implementation = Literal["auto", "dense", "blockwise"]

# Up to this many scores per head the dense form is faster, and its memory is small.
_DENSE_LIMIT = 1024 * 1024
_QUERY_BLOCK = 256


def interval_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    start: Int[Array, "B T"],
    end: Int[Array, "B T"],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    distance_bias: Float[Array, "N W"] | None = None,
    implementation: Implementation = "auto",
    return_lse: bool = False,
) -> Any:
    """Softmax attention over the visible range of each query; scores and softmax in float32, output in query's dtype.

    Args:
        query, key, value: N must be a multiple of K (grouped-query attention).
        start, end: Attention range of each query, int32, see the contract above.
        scale: Factor on the scores; None: H ** -0.5.
        softcap: Scores become softcap * tanh(scores / softcap); None: no cap.
        distance_bias: Added to the scores by the distance from the key to the last visible key, which in self-attention
            is the query itself; the last entry is for distances of W - 1 and more.
        implementation: "dense" builds all scores; "blockwise" builds those of 256 queries at a time and recomputes them
            in the backward pass, so that float32 [B, N, T, S] is never allocated; "auto" is dense while T * S is small.
        return_lse: Also return the log-sum-exp of each query's visible scores, for `merge_attention`.

    Returns:
        [B, T, N, H]; with ``return_lse`` a pair of it and the log-sum-exps, float32 [B, T, N], -inf where no key is
        visible.

    Raises:
        ValueError: N is not a multiple of K, or the implementation is unknown.
    """
    if query.shape[2] % key.shape[2]:
        raise ValueError(f"{query.shape[2]} query heads are not a multiple of {key.shape[2]} key/value heads")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if implementation == "auto":
        implementation = "dense" if query.shape[1] * key.shape[1] <= _DENSE_LIMIT else "blockwise"
    if implementation == "dense":
        out, lse = _dense(query, key, value, start, end, scale, softcap, distance_bias, return_lse)
    elif implementation == "blockwise":
        out, lse = _blockwise(query, key, value, start, end, scale, softcap, distance_bias, return_lse)
    else:
        raise ValueError(f"unknown attention implementation {implementation!r}; known: auto, dense, blockwise")
    return (out, lse) if return_lse else out


def merge_attention(
    parts: Sequence[tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]],
) -> Float[Array, "B T N H"]:
    """Merge several calls into one softmax over all their keys, from their outputs and log-sum-exps.

    out = sum_i out_i * exp(lse_i) / sum_i exp(lse_i); exactly 0, with finite gradients, where no key is visible.

    Args:
        parts: (output, log-sum-exp) of each call.

    Returns:
        Computed in float32, in the dtype of the first output.
    """
    lses = jnp.stack([lse for _, lse in parts])
    largest = jax.lax.stop_gradient(jnp.max(lses, axis=0))
    seen = lses > -jnp.inf
    # Where no key is visible, -inf - -inf would be NaN, in the gradient too: replaced before exp, masked after it.
    shares = jnp.where(seen, jnp.exp(jnp.where(seen, lses - jnp.where(seen, largest, 0.0), 0.0)), 0.0)
    total = jnp.sum(shares, axis=0)
    shares = shares / jnp.where(total == 0.0, 1.0, total)
    outs = jnp.stack([out.astype(jnp.float32) for out, _ in parts])
    return jnp.sum(outs * shares[..., None], axis=0).astype(parts[0][0].dtype)


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
    return _softmax(query, key, start, end, scale, softcap, distance_bias)[0]


def _softmax(
    query: Array, key: Array, start: Array, end: Array, scale: Any, softcap: Any, distance_bias: Array | None
) -> tuple[Array, Array, Array]:
    """(weights [B, K, G, T, S], largest score, sum of exp(score - largest)), both [B, K, G, T, 1]."""
    b, t, n, h = query.shape
    k, s = key.shape[2], key.shape[1]
    scale = h**-0.5 if scale is None else scale
    # Heads first and the group's queries in one axis: plain batched matrix products, forward and backward.
    by_head = query.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4).reshape(b, k, -1, h)
    scores = scale * jnp.einsum("BKXH,BKSH->BKXS", by_head, key.swapaxes(1, 2), preferred_element_type=jnp.float32)
    scores = scores.reshape(b, k, n // k, t, s)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    slots = jnp.arange(s)
    if distance_bias is not None:
        distance = jnp.clip(end[..., None] - 1 - slots, 0, distance_bias.shape[1] - 1)
        by_slot = jnp.take(distance_bias.astype(jnp.float32), distance, axis=1)  # [N, B, T, S]
        scores = scores + by_slot.reshape(k, n // k, b, t, s).transpose(2, 0, 1, 3, 4)
    visible = (slots >= start[..., None]) & (slots < end[..., None])
    visible = visible[:, None, None]
    scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    # With an empty range the largest score is the fill value: exp would be 1 everywhere, so exp is masked as well.
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=jnp.finfo(jnp.float32).min))
    unnormalised = jnp.where(visible, jnp.exp(scores - largest), 0.0)
    total = jnp.sum(unnormalised, axis=-1, keepdims=True)
    return unnormalised / jnp.where(total == 0.0, 1.0, total), largest, total


def _dense(
    query: Array, key: Array, value: Array, start: Array, end: Array, scale: Any, softcap: Any,
    distance_bias: Array | None, return_lse: bool,
) -> Any:  # fmt: skip
    b, t, n, h = query.shape
    weights, largest, total = _softmax(query, key, start, end, scale, softcap, distance_bias)
    _, k, g, _, s = weights.shape
    by_head = weights.astype(value.dtype).reshape(b, k, g * t, s)
    mixed = jnp.einsum("BKXS,BKSH->BKXH", by_head, value.swapaxes(1, 2)).reshape(b, k, g, t, h)
    out = mixed.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h).astype(query.dtype)
    if not return_lse:
        return out, None
    empty = total == 0.0
    lse = jnp.where(empty, -jnp.inf, largest + jnp.log(jnp.where(empty, 1.0, total)))
    return out, lse[..., 0].reshape(b, n, t).swapaxes(1, 2)


def _blockwise(
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
        return _dense(block[0], key, value, block[1], block[2], scale, softcap, distance_bias, return_lse)

    def join(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], blocks * _QUERY_BLOCK, *x.shape[3:])[:, :t]

    parts = jax.lax.map(attend, (split(query, 0), split(start, key.shape[1]), split(end, key.shape[1])))
    return jax.tree.map(join, parts)
