"""Groups of stacked tokens without a model: which close where, in rows at once and in passes with a cache."""

import jax.numpy as jnp
import numpy as np
import pytest

from zipper_jax.models.masks import Order
from zipper_jax.models.stacking import group, last_states, new_groups, stack_states

# (segment, global positions): two runs of 4 and 3 tokens, an example of 2 that follows at once, one that starts late.
ROW = [(1, (0, 1, 2, 3, 7, 8, 9)), (2, (0, 1)), (3, (5, 6, 7))]
SIZE = 14


def order():
    """Three rows: ROW, its last two examples, none."""
    rows = [[(s, p) for s, places in examples for p in places] for examples in (ROW, ROW[1:], [])]
    padded = np.array([[*row, *[(0, 0)] * (SIZE - len(row))] for row in rows], np.int32)
    return Order(jnp.asarray(padded[..., 0]), jnp.asarray(padded[..., 1]))


@pytest.mark.parametrize(
    ("k", "wanted"),
    [
        (1, [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 4], []]),
        (2, [[1, 3, 5, 8, 10], [1, 3], []]),
        (3, [[2, 6, 11], [4], []]),
        (4, [[3], [], []]),
        (5, [[], [], []]),
    ],
)
def test_groups_close_within_runs(k, wanted):
    """The last token of each group of k, and its place; a remainder of a run closes none."""
    found = group(order(), k)
    assert found.last.shape == (3, SIZE // k)
    for row, closed in enumerate(wanted):
        assert [x for x in found.last[row].tolist() if x < SIZE] == closed
        for field in ("segment_ids", "global_positions"):
            places = getattr(order(), field)[row, np.array(closed, int)].tolist()
            assert getattr(found.order, field)[row].tolist() == [*places, *[0] * (SIZE // k - len(closed))]


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_groups_of_passes_are_those_of_the_whole_row(k, seed):
    """Passes of any lengths, unequal in their rows: the same groups, in the same places, of the same states."""
    rng, tokens = np.random.default_rng(seed), order()
    states = rng.normal(size=(3, SIZE, 5)).astype(np.float32)
    total = np.asarray((tokens.segment_ids > 0).sum(axis=1))
    groups = group(tokens, k)
    wanted = np.asarray(stack_states(jnp.asarray(states), jnp.zeros((3, 0, 5)), groups))
    found = np.full((3, SIZE // k + 1, k, 5), np.nan, np.float32)
    before, earlier = np.zeros(3, int), jnp.full((3, k - 1, 5), np.nan)
    while (before < total).any():
        counts = np.minimum(rng.integers(0, 5, 3), total - before)
        width = int(counts.max()) + int(rng.integers(0, 2))
        after = before + counts
        known = np.arange(SIZE) < after[:, None]
        so_far = Order(*(jnp.where(known, x, 0) for x in tokens))
        new, slots = new_groups(group(so_far, k), jnp.asarray(before), width)
        passed = np.zeros((3, width, 5), np.float32)
        for b in range(3):
            passed[b, : counts[b]] = states[b, before[b] : after[b]]
        stacked = stack_states(jnp.asarray(passed), earlier, new)
        for b in range(3):
            for slot, states_of_group in zip(slots[b].tolist(), np.asarray(stacked)[b], strict=True):
                found[b, slot] = states_of_group
        earlier, before = last_states(jnp.asarray(passed), earlier, jnp.asarray(counts)), after
    for b in range(3):
        closed = int((groups.last[b] < SIZE).sum())
        np.testing.assert_array_equal(found[b, :closed], wanted[b, :closed])
        assert np.isnan(found[b, closed:-1]).all(), "and no others; the last place is that of padding"
