"""Attention in which every query attends to one contiguous range of keys.

Causal order, sliding windows, packing and "everything of the other tower that came earlier" are all such ranges
(docs/architecture.md, idea 2), so one operation serves self- and cross-attention, training and decoding, and a mask is
two int32 arrays instead of a T x S matrix.

The contract, for every implementation:
  * query t of row b attends to keys s with ``start[b, t] <= s < end[b, t]``;
  * ``start`` and ``end`` never decrease along T, padding and empty ranges included (an empty range is
    ``start == end``; padding at the end of a row is ``start == end == S``);
  * a query without visible keys gets exactly 0 and finite gradients.

`registry.choose` says which implementation serves a call: ``dense``, ``blockwise`` or ``pallas_tpu``.

Axis letters: B rows, T queries, S keys, N query heads, K key/value heads, H head_dim, W distances.
"""

from typing import Any

from jaxtyping import Array, Float, Int

from zipper_jax.ops.interval_attention.dense import interval_weights
from zipper_jax.ops.interval_attention.merging import merge, merge_attention, merge_gated
from zipper_jax.ops.interval_attention.registry import Implementation, run

__all__ = ["Implementation", "interval_attention", "interval_weights", "merge", "merge_attention", "merge_gated"]


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
    implementation: Implementation | None = None,
    return_lse: bool = False,
    causal: bool = False,
) -> Any:
    """Softmax attention over the visible range of each query; scores and softmax in float32, output in query's dtype.

    Args:
        query, key, value: N must be a multiple of K (grouped-query attention).
        start, end: Attention range of each query, int32, see the contract above.
        scale: Factor on the scores; None: H ** -0.5.
        softcap: Scores become softcap * tanh(scores / softcap); None: no cap.
        distance_bias: Added to the scores by the distance from the key to the last visible key, which in self-attention
            is the query itself; the last entry is for distances of W - 1 and more.
        implementation: "dense" computes all scores at once; "blockwise" those of 256 queries at a time, recomputed in
            the backward pass, so that float32 [B, N, T, S] is never allocated; "pallas_tpu" is a kernel that skips the
            scores that no query sees; "auto" chooses by platform and shapes (`registry.choose`); None: the model's
            ``ZipperConfig.attention``, outside of a model "auto".
        causal: A promise: queries and keys are the same tokens, T = S, and no query sees a key after itself, so that
            on CPU "dense" and "blockwise" leave out scores that nobody sees.
        return_lse: Also return the log-sum-exp of each query's visible scores, for `merge_attention`.

    Returns:
        [B, T, N, H]; with ``return_lse`` a pair of it and the log-sum-exps, float32 [B, T, N], -inf where no key is
        visible.

    Raises:
        ValueError: N is not a multiple of K, the implementation is unknown, or T != S in causal attention.
    """
    if query.shape[2] % key.shape[2]:
        raise ValueError(f"{query.shape[2]} query heads are not a multiple of {key.shape[2]} key/value heads")
    if causal and query.shape[1] != key.shape[1]:
        raise ValueError(f"causal attention of {query.shape[1]} queries to {key.shape[1]} keys: give as many")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out, lse = run(query, key, value, start, end, scale, softcap, distance_bias, implementation, return_lse, causal)
    return (out, lse) if return_lse else out
