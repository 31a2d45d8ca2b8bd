"""What each token may see, as ranges of key slots (docs/architecture.md, idea 2).

Axis letters: B rows, T query slots, S key slots.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from zipper_jax.sequences import TowerBatch

Range = tuple[Int[Array, "B T"], Int[Array, "B T"]]


def self_visibility(segment_ids: Int[Array, "B T"]) -> Range:
    """Causal within each example: from the example's first slot up to and with the token itself."""
    slots = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    length = segment_ids.shape[1]
    real = segment_ids > 0
    # Padding above any segment id: an example's number may exceed T, since examples of other towers are counted too.
    ordered = _padding_last(segment_ids, jnp.iinfo(jnp.int32).max)
    first = jax.vmap(lambda row: jnp.searchsorted(row, row, side="left"))(ordered)
    return jnp.where(real, first, length).astype(jnp.int32), jnp.where(real, slots + 1, length).astype(jnp.int32)


def cross_visibility(queries: TowerBatch, keys: TowerBatch) -> Range:
    """All tokens of the other tower that came earlier in the same example's linear sequence (paper §3.1).

    An example without visible keys gets the empty range at its own place, so ``start`` and ``end`` never decrease.
    """
    num_slots = keys.tokens.shape[1]
    padding = 1 + jnp.maximum(jnp.max(keys.segment_ids, initial=0), jnp.max(queries.segment_ids, initial=0))
    longest = 1 + jnp.maximum(jnp.max(keys.global_positions, initial=0), jnp.max(queries.global_positions, initial=0))

    def ranges(key_segments, key_positions, query_segments, query_positions):
        # Slots lie in order of (segment, global position). One integer carries both: it stays below
        # (examples in a row + 2) * (longest example), far from 2 ** 31 for any row that fits a device.
        start = jnp.searchsorted(key_segments, query_segments, side="left")
        order = key_segments * longest + key_positions
        end = jnp.searchsorted(order, query_segments * longest + query_positions, side="left")
        return start, end

    start, end = jax.vmap(ranges)(
        _padding_last(keys.segment_ids, padding),
        keys.global_positions,
        _padding_last(queries.segment_ids, padding),
        queries.global_positions,
    )
    real = queries.segment_ids > 0
    return jnp.where(real, start, num_slots).astype(jnp.int32), jnp.where(real, end, num_slots).astype(jnp.int32)


def _padding_last(segment_ids: Int[Array, "B T"], padding: int | Int[Array, ""]) -> Int[Array, "B T"]:
    """Segment ids in sorted order: padding, which fills the end of a row, gets the id ``padding``, above all others."""
    return jnp.where(segment_ids > 0, segment_ids, padding)
