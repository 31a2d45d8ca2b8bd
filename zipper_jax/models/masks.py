"""What each token attends to, as ranges of key positions (docs/architecture.md, idea 2).

Axis letters: B rows, T queries, S keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

Range = tuple[Int[Array, "B T"], Int[Array, "B T"]]
"""``start`` and ``end`` of the keys that each query attends to; see `ops.interval_attention` for the contract."""

_FEW_QUERIES = 16  # up to so many, comparing with every key is faster than a binary search


class Order(NamedTuple):
    """Where the tokens of one tower stand: within a row in order of (segment, global position), padding at the end.

    Attributes:
        segment_ids: The example's number in the row, from 1; 0: padding.
        global_positions: Index in the example's linear sequence.
    """

    segment_ids: Int[Array, "B S"]
    global_positions: Int[Array, "B S"]


def attention_range(queries: Order, keys: Order, *, inclusive: bool) -> Range:
    """The keys that came earlier in each query's own example (paper §3.1).

    Args:
        queries: Of the tower that attends.
        keys: Of the tower that is attended to.
        inclusive: Keys at the query's own position, too: self-attention.

    A query that sees nothing gets the empty range at its example's place, padding (S, S), so ``start`` and ``end``
    never decrease along T.
    """
    num_keys = keys.segment_ids.shape[1]
    padding = 1 + jnp.maximum(jnp.max(keys.segment_ids, initial=0), jnp.max(queries.segment_ids, initial=0))
    longest = 1 + jnp.maximum(jnp.max(keys.global_positions, initial=0), jnp.max(queries.global_positions, initial=0))
    method = "compare_all" if queries.segment_ids.shape[1] <= _FEW_QUERIES else "scan"

    def ranges(keys: Order, queries: Order):
        # One integer carries (segment, global position): it stays below (examples in a row + 2) * (longest example),
        # far from 2 ** 31 for any row that fits a device.
        key_order = _padding_last(keys.segment_ids, padding) * longest + keys.global_positions
        segments = _padding_last(queries.segment_ids, padding) * longest
        start = jnp.searchsorted(key_order, segments, side="left", method=method)
        side = "right" if inclusive else "left"
        end = jnp.searchsorted(key_order, segments + queries.global_positions, side=side, method=method)
        return start, end

    start, end = jax.vmap(ranges)(keys, queries)
    real = queries.segment_ids > 0
    return jnp.where(real, start, num_keys).astype(jnp.int32), jnp.where(real, end, num_keys).astype(jnp.int32)


def _padding_last(segment_ids: Int[Array, " S"], padding: Int[Array, ""]) -> Int[Array, " S"]:
    """Segment ids in sorted order: padding, which fills the end of a row, gets the id ``padding``, above all others."""
    return jnp.where(segment_ids > 0, segment_ids, padding)
