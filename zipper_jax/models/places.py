"""Where the tokens of a pass are: their order, cache positions and attention ranges, in every stream of every tower.

A function of the batches' positions and the cache's; no states, no parameters.

Axis letters: B rows, T positions, S keys, G groups.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from zipper_jax.models import stacking
from zipper_jax.models.cache import Cache, place_tokens
from zipper_jax.models.config import ZipperConfig
from zipper_jax.models.masks import Order, Range, attention_range
from zipper_jax.models.schedule import SoftTokens, soft_tokens
from zipper_jax.models.tower import OWN, Places
from zipper_jax.sequences import TowerBatch

Batches = Mapping[str, TowerBatch]


class Tokens(NamedTuple):
    """The tokens of one stream.

    Attributes:
        queries: Of this pass.
        keys: Those of this pass, or with a cache all cached ones, those of this pass included.
        slots: Cache positions of this pass's tokens, see `cache.place_tokens`; None: there is no cache.
    """

    queries: Order
    keys: Order
    slots: Int[Array, "B T"] | None


class TokenPlaces:
    """The places of a pass's tokens.

    Args:
        config: The model.
        batches: Tower -> its batch.
        cache: Of earlier passes; None: there is no cache.

    Attributes:
        batches: Tower -> its batch; also of receivers of soft tokens that have no tokens of their own in this pass.
        cache: The cache with this pass's tokens appended to its orders.
        rows: B.
        soft: Tower -> its soft tokens.
        slots: Tower -> cache positions of its tokens, with a cache.
        groups: (zip, receiver) of stacked soft tokens -> the groups that close in this pass.
        visible: (receiver, source) of a zip -> all earlier tokens of the source.
        streams: Tower -> stream -> its places.
    """

    def __init__(self, config: ZipperConfig, batches: Batches, cache: Cache | None):
        self.soft = {name: soft_tokens(config, name) for name in config.towers}
        batches = {**batches, **self._receivers_of_soft_tokens(batches, cache)}
        self.batches = {name: jax.tree.map(jnp.asarray, batches[name]) for name in sorted(batches)}
        self.rows = next(iter(self.batches.values())).tokens.shape[0]
        self._before = None if cache is None else cache.lengths
        self.slots: dict[str, Int[Array, "B T"]] = {}
        if cache is not None:
            towers = dict(cache.towers)
            for name, batch in self.batches.items():
                towers[name], self.slots[name] = place_tokens(towers[name], batch)
            cache = cache._replace(towers=towers)
        self.cache = cache
        self._queries = {name: Order(b.segment_ids, b.global_positions) for name, b in self.batches.items()}
        self._keys = self._queries if cache is None else {name: tower.order for name, tower in cache.towers.items()}
        pairs = ((into, z.other(into)) for z in config.zips for into in z.receivers if into in self.batches)
        self.visible = {pair: self.range(*pair) for pair in pairs}
        self.groups: dict[tuple[str, str], stacking.Groups] = {}
        self.streams = {name: self._streams(name) for name in self.batches}

    def range(self, tower: str, other: str) -> Range:
        """The tokens of ``other`` that each token of ``tower`` may depend on, its own position included."""
        return attention_range(self.tokens(tower).queries, self.tokens(other).keys, inclusive=tower == other)

    def tokens(self, tower: str) -> Tokens:
        """The tower's own tokens."""
        none = jnp.zeros((self.rows, 0), jnp.int32)
        queries, keys = (orders.get(tower, Order(none, none)) for orders in (self._queries, self._keys))
        return Tokens(queries, keys, None if self.cache is None else self.slots.get(tower, none))

    def _receivers_of_soft_tokens(self, batches: Batches, cache: Cache | None) -> dict[str, TowerBatch]:
        """Receiver -> a batch without tokens, where its cache receives soft tokens from this pass's sources."""
        into = {s.into for soft in self.soft.values() for s in soft if s.source in batches and s.into not in batches}
        if cache is None or not into:
            return {}
        (like, *_) = (jax.tree.map(lambda x: x[:, :0], batch) for batch in batches.values())
        return dict.fromkeys(into, like)

    def _streams(self, name: str) -> dict[str, Places]:
        """Of a tower. All its streams share one sequence, in the order of the linear sequence."""
        if not self.soft[name]:
            return {OWN: Places(self.batches[name].local_positions, self.range(name, name), self.slots.get(name))}
        streams = {OWN: self.tokens(name)} | {soft.zip: self._soft_tokens(soft) for soft in self.soft[name]}
        found = {}
        for stream, own in streams.items():
            ranges: dict[str, Any] = {
                other: attention_range(own.queries, there.keys, inclusive=other == stream)
                for other, there in streams.items()
            }
            visible = ranges[stream]
            counts = sum((end - start for start, end in ranges.values()), jnp.zeros_like(visible[0]))
            positions = jnp.maximum(counts - 1, 0)  # all tokens so far, this one included
            others = {other: seen for other, seen in ranges.items() if other != stream}
            found[stream] = Places(positions, visible, own.slots, None, others)
        return found

    def _soft_tokens(self, soft: SoftTokens) -> Tokens:
        """One per source token, or per complete group of them."""
        source, k = self.tokens(soft.source), soft.stack
        if k == 1:
            return source
        groups = stacking.group(source.keys, k)
        if self._before is None:
            self.groups[soft.zip, soft.into] = groups
            return Tokens(groups.order, groups.order, None)
        width = source.queries.segment_ids.shape[1]
        new, slots = stacking.new_groups(groups, self._before[soft.source], width)
        self.groups[soft.zip, soft.into] = new
        return Tokens(new.order, groups.order, slots)
