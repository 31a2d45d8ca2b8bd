"""Caches, and the cached form of the fused path: one tower advances while the others' states are remembered.

Each tower has keys and values of its own tokens per block; each direction of a zip has keys and values of the source
tower's tokens per member, computed once when the source token passes. Caches are written at each row's own length and
read up to it, so rows of unequal lengths need no padding tokens.

Axis letters: B rows, T new tokens, S cache slots, L layers, Z zips, K key/value heads, H head size, V vocabulary.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zipper_jax.models.config import ZipperConfig
from zipper_jax.models.modules import Params
from zipper_jax.models.schedule import tower_fusions, zip_pairs
from zipper_jax.models.zipper import Makers, Placer, anywhere, distance_bias, embed, loop, numbered, tower_logits


class KeyValue(NamedTuple):
    """Keys and values, [L or Z, B, S, K, H] each."""

    key: Array
    value: Array

    def write(self, index, rows: Int[Array, "B 1"], slots: Int[Array, "B T"], key, value) -> "KeyValue":
        """Puts [B, T, K, H] at ``slots`` of member ``index``; slots past the end are dropped."""
        at = (index, rows, slots)
        dtype = self.key.dtype
        return KeyValue(
            self.key.at[at].set(key.astype(dtype), mode="drop"),
            self.value.at[at].set(value.astype(dtype), mode="drop"),
        )


class Cache(NamedTuple):
    """All that decoding remembers. towers: tower -> KeyValue; zips: (zip, into) -> KeyValue of the source's tokens;
    lengths: tower -> tokens seen, [B]."""

    towers: dict[str, KeyValue]
    zips: dict[tuple[str, str], KeyValue]
    lengths: dict[str, Int[Array, " B"]]


def init_cache(config: ZipperConfig, rows: int, capacity: Mapping[str, int], placer: Placer = anywhere) -> Cache:
    """An empty cache for ``rows`` sequences of up to ``capacity[tower]`` tokens in each tower."""
    dtype = jnp.dtype(config.dtype)

    def empty(tower, members, slots, heads, head_size):
        zeros = (jnp.zeros((members, rows, slots, heads, head_size), dtype) for _ in range(2))
        return _placed(KeyValue(*zeros), tower, placer)

    towers = {
        name: empty(name, t.num_layers, capacity[name], t.num_kv_heads, t.head_size)
        for name, t in config.towers.items()
    }
    zips = {}
    for z in config.zips:
        members = len(zip_pairs(z, config.towers))
        for into in z.receivers:
            heads, head_size = z.kv_shape(config.towers[into])
            zips[z.name, into] = empty(into, members, capacity[z.other(into)], heads, head_size)
    return Cache(towers, zips, {name: jnp.zeros((rows,), jnp.int32) for name in config.towers})


def _placed(cache: KeyValue, tower: str, placer: Placer) -> KeyValue:
    """Rows and heads cut like those of the tower that attends to them."""
    return KeyValue(*(placer(x, tower, None, "batch", None, "kv_heads", None) for x in cache))


def advance(
    config: ZipperConfig,
    params: Params,
    cache: Cache,
    tower: str,
    tokens: Int[Array, "B T"],
    counts: Int[Array, " B"],
    placer: Placer = anywhere,
) -> tuple[Float[Array, "B T V"], Cache]:
    """Feeds ``counts[b]`` tokens of row b through ``tower`` on the fused path.

    Rows with a count of 0 are left as they are; slots past a row's count hold meaningless logits. The caller makes
    caches large enough: a token that does not fit is not remembered.
    """
    makers = Makers(config, placer)
    own = cache.towers[tower]
    rows = jnp.arange(tokens.shape[0])[:, None]
    offsets = jnp.arange(tokens.shape[1])
    capacity = own.key.shape[2]
    fed = offsets < counts[:, None]
    positions = cache.lengths[tower][:, None] + offsets
    slots = jnp.where(fed, positions, capacity)
    start = jnp.where(fed, 0, capacity)
    end = jnp.where(fed, positions + 1, capacity)

    def body(carry, xs):
        x, own = carry
        block_params, layer = xs
        block = makers.bind(makers.block(tower), tower, block_params)
        query, key, value = block.project(x, positions, layer)
        own = _placed(own.write(layer, rows, slots, key, value), tower, placer)
        x = block.finish(x, block.attend(query, own.key[layer], own.value[layer], (start, end), layer, bias))
        return (x, own), None

    x = embed(makers, tower, params, tokens, positions)
    bias = distance_bias(makers, tower, params)
    zips = dict(cache.zips)
    blocks = params["towers"][tower]["blocks"]
    depth, done = config.towers[tower].num_layers, 0
    incoming, outgoing = tower_fusions(config)[tower], _outgoing(config, tower)
    for block in [*incoming, *([] if depth in incoming else [depth])]:
        (x, own), _ = loop(body, (x, own), numbered(blocks, done + 1, block), config.scan)
        done = block
        m = x
        for zip_name, index, into in outgoing.get(block, ()):
            direction = _direction(makers, params, zip_name, into, index)
            read = zips[zip_name, into].write(index, rows, slots, *direction.read(m, positions))
            zips[zip_name, into] = _placed(read, into, placer)
        for source in incoming.get(block, ()):
            direction = _direction(makers, params, source.zip, tower, source.member)
            seen = zips[source.zip, tower]
            visible = _everything_so_far(cache.lengths[source.tower], fed, seen.key.shape[2])
            x = x + direction.effect(m, seen.key[source.member], seen.value[source.member], *visible, positions)
    logits = tower_logits(makers, tower, params, x, fused=True)
    lengths = {**cache.lengths, tower: cache.lengths[tower] + counts}
    return logits, Cache({**cache.towers, tower: own}, zips, lengths)


def _outgoing(config: ZipperConfig, tower: str) -> dict[int, list[tuple[str, int, str]]]:
    """block -> (zip, member, receiver) that read ``tower``'s pre-fusion state there."""
    outgoing: dict[int, list[tuple[str, int, str]]] = {}
    for z in sorted(config.zips, key=lambda z: z.name):
        for into in z.receivers:
            if tower in z.towers and into != tower:
                for index, pair in enumerate(zip_pairs(z, config.towers)):
                    outgoing.setdefault(pair[z.towers.index(tower)], []).append((z.name, index, into))
    return outgoing


def _everything_so_far(length: Int[Array, " B"], fed: Array, capacity: int):
    """The other tower's tokens so far are exactly those that came earlier in the linear sequence."""
    start = jnp.where(fed, 0, capacity)
    return start, jnp.where(fed, length[:, None], capacity)


def _direction(makers: Makers, params: Params, zip_name: str, into: str, index: int):
    member = jax.tree.map(lambda x: x[index], params["zips"][zip_name][f"into_{into}"])
    return makers.bind(makers.direction(zip_name, into), into, member)
