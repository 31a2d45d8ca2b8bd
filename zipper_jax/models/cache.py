"""The decoding cache: order, keys and values of each tower's tokens, and what each zip caches of its source tokens.

A row of a cache is one sequence (or packed row) with a length of its own, without padding between the tokens of
different passes. A pass writes first, then reads: `Zipper.__call__` with a cache is the same code as without.

Axis letters: B rows, T new tokens, S cache positions, L layers, Z zips, K key/value heads, H head_dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zipper_jax.models.config import ZipperConfig
from zipper_jax.models.fusion import CacheEntry, fusion_class
from zipper_jax.models.masks import Order
from zipper_jax.models.module import Placer, unsharded
from zipper_jax.models.schedule import SoftTokens, read_alone, soft_tokens, zip_pairs
from zipper_jax.sequences import TowerBatch


class TowerCache(NamedTuple):
    """One tower's cached tokens.

    Attributes:
        key, value: Of every block.
        order: Segment and global position of each token; segment 0 from ``lengths`` on.
        lengths: Number of cached tokens.
    """

    key: Float[Array, "L B K S H"]
    value: Float[Array, "L B K S H"]
    order: Order
    lengths: Int[Array, " B"]


class KeyValue(NamedTuple):
    """Keys and values of soft tokens in every block of their receiver, or of a tower on its unimodal path."""

    key: Float[Array, "L B K S H"]
    value: Float[Array, "L B K S H"]


class Cache(NamedTuple):
    """The cache of a model.

    Attributes:
        towers: Tower -> its cache.
        zips: (zip, receiver) -> what its fusion caches of source tokens, [Z, B, S, ...]; a `KeyValue` of soft tokens.
        alone: Tower whose unimodal path is the source of soft tokens -> its keys and values there.
        open_groups: (zip, receiver) of soft tokens that stack k source tokens -> the last k - 1 states of the source.
    """

    towers: dict[str, TowerCache]
    zips: dict[tuple[str, str], Any]
    alone: dict[str, KeyValue]
    open_groups: dict[tuple[str, str], Float[Array, "1 B O C"]]

    @property
    def lengths(self) -> dict[str, Int[Array, " B"]]:
        """Number of cached tokens of each tower."""
        return {name: tower.lengths for name, tower in self.towers.items()}

    def take_rows(self, rows: Int[Array, " R"]) -> "Cache":
        """The cache of the given rows, in this order: B becomes R."""

        def take(axis: int, tree: Any) -> Any:
            return jax.tree.map(lambda x: jnp.take(x, rows, axis=axis), tree)

        towers = {
            name: TowerCache(take(1, t.key), take(1, t.value), take(0, t.order), take(0, t.lengths))
            for name, t in self.towers.items()
        }
        return Cache(towers, take(1, self.zips), take(1, self.alone), take(1, self.open_groups))


def init_cache(config: ZipperConfig, rows: int, capacity: Mapping[str, int], placer: Placer = unsharded) -> Cache:
    """Allocate an empty cache.

    Args:
        config: The model.
        rows: Number of sequences.
        capacity: Tower -> most tokens of a sequence.
        placer: Shards the arrays.
    """
    dtype = jnp.dtype(config.dtype)
    towers, axes = {}, cache_axes(config)
    for name, t in config.towers.items():
        shape = (t.num_layers, rows, t.num_kv_heads, capacity[name], t.head_dim)
        key, value = (placer(jnp.zeros(shape, dtype), name, *KEY_AXES) for _ in range(2))
        order = Order(*(jnp.zeros((rows, capacity[name]), jnp.int32) for _ in range(2)))
        towers[name] = TowerCache(key, value, order, jnp.zeros((rows,), jnp.int32))
    zips = {}
    for z in config.zips:
        for into in z.receivers:
            count, entries, by_head = _entries(config, z, into)
            source = z.other(into)
            places = capacity[source] // fusion_class(z.fusion).stack(z, source)

            def empty(
                entry: CacheEntry, at: "Axes", places: int = places, count: int = count, heads: int = by_head
            ) -> Array:
                shape = (*entry.shape[:heads], places, *entry.shape[heads:])
                return placer(jnp.zeros((count, rows, *shape), dtype), at.tower, *at.names)

            zips[z.name, into] = jax.tree.map(empty, entries, axes.zips[z.name, into])
    alone = {}
    for name, blocks in read_alone(config).items():
        t = config.towers[name]
        shape = (blocks, rows, t.num_kv_heads, capacity[name], t.head_dim)
        alone[name] = KeyValue(*(placer(jnp.zeros(shape, dtype), name, *KEY_AXES) for _ in range(2)))
    open_groups = {}
    for soft in _stacked(config):
        states = jnp.zeros((1, rows, soft.stack - 1, config.towers[soft.source].embed_dim), dtype)
        open_groups[soft.zip, soft.into] = placer(states, soft.source, *OPEN_AXES)
    return Cache(towers, zips, alone, open_groups)


def _stacked(config: ZipperConfig) -> list[SoftTokens]:
    """The soft tokens that stack several source tokens."""
    return [soft for receiver in config.towers for soft in soft_tokens(config, receiver) if soft.stack > 1]


KEY_AXES = (None, "batch", "kv_heads", None, None)
"""Logical axes of a tower's keys and values. Heads come before positions, as the product of a step reads them."""
OPEN_AXES = (None, "batch", None, None)
"""Logical axes of the states of an open group."""


def _entries(config: ZipperConfig, z: Any, into: str) -> tuple[int, Any, int]:
    """The size of the leading axis, the cache entries per source token at each index of it, and how many of an entry's
    axes come before the positions."""
    fusion, receiver = fusion_class(z.fusion), config.towers[into]
    if fusion.placement == "sequence":
        entry = CacheEntry((receiver.num_kv_heads, receiver.head_dim), ("kv_heads", None))
        return receiver.num_layers, KeyValue(entry, entry), 1  # type: ignore[arg-type]
    return len(zip_pairs(z, config.towers)), fusion.cache(z, config.towers[z.other(into)], receiver), 0


@dataclass(frozen=True)
class Axes:
    """How one array is sharded, as a leaf of a tree: the rules of ``tower`` and the logical axis names."""

    tower: str
    names: tuple[str | None, ...]


def cache_axes(config: ZipperConfig) -> Cache:
    """The `Axes` of every array of a cache; None where it is small and replicated."""
    towers: dict[str, Any] = {}
    for name in config.towers:
        own: Any = Axes(name, KEY_AXES)
        towers[name] = TowerCache(own, own, Order(None, None), None)  # type: ignore[arg-type]
    zips = {}
    for z in config.zips:
        for into in z.receivers:
            _, kept, heads = _entries(config, z, into)

            def axes(entry: CacheEntry, into: str = into, heads: int = heads) -> Axes:
                return Axes(into, (None, "batch", *entry.axes[:heads], None, *entry.axes[heads:]))

            zips[z.name, into] = jax.tree.map(axes, kept)
    alone: Any = {name: KeyValue(*[Axes(name, KEY_AXES)] * 2) for name in read_alone(config)}  # type: ignore[arg-type]
    open_groups: Any = {(soft.zip, soft.into): Axes(soft.source, OPEN_AXES) for soft in _stacked(config)}
    return Cache(towers, zips, alone, open_groups)


def write(kept: Any, index: Any, slots: Int[Array, "B T"], new: Any) -> Any:
    """Write ``new`` [B, T, ...] to cache positions ``slots`` of member ``index``; those past the end are dropped."""
    return _written(kept, (index, jnp.arange(slots.shape[0])[:, None], slots), new)


def write_keys(
    kept: tuple[Float[Array, "L B K S H"], Float[Array, "L B K S H"]],
    layer: Any,
    slots: Int[Array, "B T"],
    new: tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]],
) -> tuple[Float[Array, "L B K S H"], Float[Array, "L B K S H"]]:
    """`write` for keys and values."""
    rows, heads = kept[0].shape[1:3]
    # Heads are indices too: a slice of them would be what is written at once, and XLA would lay the cache out for it.
    at = (layer, jnp.arange(rows)[:, None, None], jnp.arange(heads), slots[:, :, None])
    written: tuple[Array, Array] = _written(kept, at, new)
    return written


def _written(kept: Any, at: tuple[Any, ...], new: Any) -> Any:
    return jax.tree.map(lambda old, x: old.at[at].set(x.astype(old.dtype), mode="drop"), kept, new)


def place_tokens(cache: TowerCache, batch: TowerBatch) -> tuple[TowerCache, Int[Array, "B T"]]:
    """Append the order of a pass's tokens to the cache.

    Returns:
        The cache, and the cache position of each token; S (past the end) for padding.
    """
    real = batch.segment_ids > 0
    capacity = cache.order.segment_ids.shape[1]
    slots = jnp.where(real, cache.lengths[:, None] + jnp.arange(real.shape[1]), capacity)
    at = (jnp.arange(slots.shape[0])[:, None], slots)
    new = Order(batch.segment_ids, batch.global_positions)
    order = jax.tree.map(lambda old, x: old.at[at].set(x, mode="drop"), cache.order, new)
    return cache._replace(order=order, lengths=cache.lengths + jnp.sum(real, axis=1, dtype=jnp.int32)), slots


def next_tokens(cache: Cache, tower: str, tokens: Int[Array, "B T"], counts: Int[Array, " B"]) -> TowerBatch:
    """The batch of each row's next tokens, all of one tower.

    Each row is one example, so a token's global position is the number of tokens, of all towers, before it.

    Args:
        cache: What precedes them.
        tower: The tower.
        tokens: Token ids.
        counts: How many of ``tokens[b]`` are fed; the rest is padding.
    """
    offsets = jnp.arange(tokens.shape[1])
    fed = offsets < counts[:, None]
    before = sum(cache.lengths.values(), jnp.zeros_like(counts))
    local = jnp.where(fed, cache.lengths[tower][:, None] + offsets, 0)
    position = jnp.where(fed, before[:, None] + offsets, 0)
    nothing = jnp.zeros_like(tokens)
    weights = jnp.zeros(tokens.shape, jnp.float32)
    return TowerBatch(tokens, nothing, weights, local, position, fed.astype(jnp.int32))
