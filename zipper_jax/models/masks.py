"""Attention ranges: the contiguous range of keys that each query attends to (docs/architecture.md, idea 2).

Axis letters: B rows, T queries, S keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

Range = tuple[Int[Array, "B T"], Int[Array, "B T"]]
"""``start`` and ``end`` of each query's visible keys, int32; see `ops.interval_attention` for the contract."""

_FEW_QUERIES = 16  # up to so many, comparing with every key is faster than a binary search


class Order(NamedTuple):
    """The order of one tower's tokens: each row is sorted by (segment, global position), padding at the end.

    Attributes:
        segment_ids: The example's number in the row, from 1; 0: padding.
        global_positions: Index in the example's linear sequence.
    """

    segment_ids: Int[Array, "B S"]
    global_positions: Int[Array, "B S"]


def attention_range(queries: Order, keys: Order, *, inclusive: bool) -> Range:
    """The keys that precede each query in its own example (paper §3.1).

    Args:
        queries: Order of the attending tower's tokens.
        keys: Order of the attended tower's tokens.
        inclusive: Include keys at the query's own global position (self-attention).

    Returns:
        ``start`` and ``end``. A query without visible keys has an empty range at the start of its example, padding has
        (S, S), so both never decrease along T.
    """
    num_keys = keys.segment_ids.shape[1]
    real = queries.segment_ids > 0
    if queries.segment_ids.shape[1] <= _FEW_QUERIES:
        start, end = _counted(queries, keys, inclusive)
    else:
        start, end = _searched(queries, keys, inclusive)
    return jnp.where(real, start, num_keys).astype(jnp.int32), jnp.where(real, end, num_keys).astype(jnp.int32)


def _counted(queries: Order, keys: Order, inclusive: bool) -> Range:
    """`attention_range` by comparing every query with every key."""
    segments, positions = (x[:, None, :] for x in keys)
    own, at = (x[:, :, None] for x in queries)
    in_front = (segments > 0) & (segments < own)
    earlier = (segments == own) & (positions <= at if inclusive else positions < at)
    start = jnp.sum(in_front, axis=-1, dtype=jnp.int32)
    return start, start + jnp.sum(earlier, axis=-1, dtype=jnp.int32)


def _searched(queries: Order, keys: Order, inclusive: bool) -> Range:
    """`attention_range` by binary search over (segment, global position)."""
    padding = 1 + jnp.maximum(jnp.max(keys.segment_ids, initial=0), jnp.max(queries.segment_ids, initial=0))
    longest = 1 + jnp.maximum(jnp.max(keys.global_positions, initial=0), jnp.max(queries.global_positions, initial=0))

    def ranges(keys: Order, queries: Order) -> tuple[Array, Array]:
        # One int32 encodes (segment, global position). It stays below (examples in a row + 2) * (longest example), far
        # below 2 ** 31 for any row that fits on a device.
        key_order = _padding_last(keys.segment_ids, padding) * longest + keys.global_positions
        segments = _padding_last(queries.segment_ids, padding) * longest
        start = jnp.searchsorted(key_order, segments, side="left")
        side = "right" if inclusive else "left"
        end = jnp.searchsorted(key_order, segments + queries.global_positions, side=side)
        return start, end

    return jax.vmap(ranges)(keys, queries)


def _padding_last(segment_ids: Int[Array, " S"], padding: Int[Array, ""]) -> Int[Array, " S"]:
    """Segment ids in sorted order: padding, at the end of a row, gets the id ``padding``, above all others."""
    return jnp.where(segment_ids > 0, segment_ids, padding)
