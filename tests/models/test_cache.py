"""The cache without a model: where tokens are recorded, what is written where, which rows are selected."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TRIO_LAYOUT, random_example, trio

from zipper_jax.models.cache import Cache, TowerCache, init_cache, next_tokens, place_tokens, write
from zipper_jax.sequences import rows_to_towers

CAPACITY = {"text": 24, "speech": 25, "image": 26}
CHUNK = 5


@pytest.mark.parametrize("seed", range(5))
def test_places_of_tokens_are_those_of_the_linear_sequence(seed):
    """Fed in chunks of any sizes, rows of different towers at a time: positions are those of the whole example."""
    rng = np.random.default_rng(seed)
    examples = [random_example(rng, TRIO_LAYOUT, most_spans=4, longest=4) for _ in range(3)]
    wanted = rows_to_towers([[e] for e in examples], TRIO_LAYOUT, CAPACITY)
    queues = [[TRIO_LAYOUT[s.modality].tower for s in e for _ in range(len(s.tokens) + 2)] for e in examples]
    cache = init_cache(trio(), 3, CAPACITY)
    while any(queues):
        tower, counts = next(q[0] for q in queues if q), []
        for queue in queues:
            run = sum(1 for _ in itertools.takewhile(tower.__eq__, queue))
            counts.append(min(run, int(rng.integers(0, CHUNK + 1))))
            del queue[: counts[-1]]
        batch = next_tokens(cache, tower, jnp.zeros((3, CHUNK), jnp.int32), jnp.array(counts, jnp.int32))
        own, slots = place_tokens(cache.towers[tower], batch)
        for b, n in enumerate(counts):
            before = int(cache.lengths[tower][b])
            assert slots[b].tolist() == [*range(before, before + n), *[CAPACITY[tower]] * (CHUNK - n)]
            for field in ("local_positions", "global_positions", "segment_ids"):
                found, of_row = getattr(batch, field)[b], getattr(wanted[tower], field)[b]
                assert found.tolist() == [*of_row[before : before + n], *[0] * (CHUNK - n)], field
        cache = cache._replace(towers={**cache.towers, tower: own})
    for tower, batch in wanted.items():
        np.testing.assert_array_equal(cache.towers[tower].order.segment_ids, batch.segment_ids)
        np.testing.assert_array_equal(cache.towers[tower].order.global_positions, batch.global_positions)
        np.testing.assert_array_equal(cache.lengths[tower], (batch.segment_ids > 0).sum(axis=1))


def test_padding_is_written_nowhere():
    """Not even where a row is full."""
    kept = {"a": np.arange(12, dtype=np.float32).reshape(2, 2, 3), "b": np.zeros((2, 2, 3, 4), np.float32)}
    slots = np.array([[1, 2, 3], [3, 3, 3]], np.int32)
    new = {"a": -np.ones((2, 3), np.float32), "b": np.ones((2, 3, 4), np.float32)}
    found = write(jax.tree.map(jnp.asarray, kept), 1, jnp.asarray(slots), new)
    kept["a"][1, 0, 1:], kept["b"][1, 0, 1:] = -1, 1
    for name, array in kept.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1, 0, 2]], ids=str)
def test_rows_are_taken_of_everything(rows):
    rng = np.random.default_rng(0)
    empty = jax.eval_shape(lambda: init_cache(trio(), 3, CAPACITY))
    cache = jax.tree.map(lambda x: rng.integers(0, 99, x.shape).astype(x.dtype), empty)
    taken = cache.take_rows(jnp.array(rows))
    axes = {name: TowerCache(1, 1, jax.tree.map(lambda _: 0, tower.order), 0) for name, tower in cache.towers.items()}
    wanted = Cache(
        jax.tree.map(lambda axis, x: np.take(x, rows, axis), axes, cache.towers),
        jax.tree.map(lambda x: np.take(x, rows, 1), cache.zips),
        jax.tree.map(lambda x: np.take(x, rows, 1), cache.alone),
        jax.tree.map(lambda x: np.take(x, rows, 1), cache.open_groups),
    )
    jax.tree.map(np.testing.assert_array_equal, taken, wanted)
