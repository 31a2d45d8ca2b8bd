"""One forward pass through towers and zips, stage by stage: the same code for training, prefill and single steps.

`Zipper.hidden` runs it. The schedule gives the order of blocks and zips; identical consecutive stages run under one
``lax.scan``. Without a cache a zip reads this pass's states; with one it writes them to the cache first and always
reads the cache.

Axis letters: B rows, T positions, S keys, D embed_dim, K key/value heads, G = query heads // K.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zipper_jax.models import stacking
from zipper_jax.models.cache import OPEN_AXES, Cache, KeyValue, cache_axes, write
from zipper_jax.models.dropout import EMBEDDING, Dropout, TowerDropout
from zipper_jax.models.fusion import Fusion, SourceState
from zipper_jax.models.masks import Range
from zipper_jax.models.module import cut, member
from zipper_jax.models.places import Batches, TokenPlaces
from zipper_jax.models.schedule import Fusion as Fused
from zipper_jax.models.schedule import Read, Source, Stage, group_stages, make_schedule, read_alone
from zipper_jax.models.tower import OWN, Block, Keys, More, Places

if TYPE_CHECKING:
    from zipper_jax.models.zipper import Zipper

State = Float[Array, "B T D"]
Streams = dict[str, Float[Array, "B _ _"]]
States = dict[str, Streams]
"""Tower -> the states of its own tokens (`OWN`) and of the soft tokens in its sequence, by zip."""
Weights = dict[tuple[str, str, int], Float[Array, "B K G T S"]]
"""(zip, receiving tower, member) -> attention weights."""


class Pass:
    """One forward pass: the state shared by its stages.

    Args:
        model: The model.
        batches: Tower -> its batch.
        cache: Of earlier passes; None: there is no cache.
        probe: Collects attention weights; None: they are not computed.
        dropout: Of a training pass; None: nothing is dropped.
    """

    def __init__(
        self,
        model: "Zipper",
        batches: Batches,
        cache: Cache | None,
        probe: Weights | None = None,
        dropout: Dropout | None = None,
    ):
        config = model.config
        model = model if config.scan or cache is not None else model.unstacked()
        self.model, self.probe, self.dropout = model, probe, dropout
        self.asked = set(batches)
        places = self.places = TokenPlaces(config, batches, cache)
        self.batches, self.cache, self.slots, self.visible = places.batches, places.cache, places.slots, places.visible
        self.axes = cache_axes(config)
        self.streams: dict[str, dict[str, Places]] = {}
        for name, streams in places.streams.items():
            bias = model.towers[name].distance_bias()
            self.streams[name] = {stream: at._replace(distance_bias=bias) for stream, at in streams.items()}
        self.insulated = {(z.name, tower) for z in config.zips for tower in z.insulate}

    def __call__(self) -> dict[str, State]:
        """The final states of the towers present."""
        model = self.model
        self.alone = {name: self.run_alone(name) for name in read_alone(model.config) if name in self.batches}
        states: States = {}
        for name, batch in self.batches.items():
            own = model.towers[name].embed(
                batch=batch._replace(local_positions=self.positions(name)),
                added=model.added_embeddings.get(name),
                projection=model.input_projections.get(name),
            )
            states[name] = {OWN: self.drop_embedding(own, name, OWN)}
        saved: _Saved = {}
        for group in group_stages(make_schedule(model.config, self.batches)):
            if len(group) > 1 and model.config.scan and self.probe is None:
                states = self.scan(group, states)
            else:
                for stage in group:
                    states, saved, self.cache = self.stage(stage, self.parts(stage), states, saved, self.cache)
        return {name: xs[OWN] for name, xs in states.items() if name in self.asked}

    def drops(self, tower: str, streams: Iterable[str]) -> dict[str, TowerDropout] | None:
        """Stream -> its dropout in the tower's blocks; None: nothing is dropped."""
        found = {stream: None if self.dropout is None else self.dropout.of(tower, stream) for stream in streams}
        return {stream: drop for stream, drop in found.items() if drop is not None} or None

    def drop_embedding(self, x: State, tower: str, stream: str) -> State:
        """Dropout of what enters a tower, before its first block."""
        drops = self.drops(tower, [stream])
        return x if drops is None else drops[stream].at(0)(x, EMBEDDING)

    def positions(self, tower: str) -> Int[Array, "B T"]:
        """Local positions of the tower's own tokens."""
        return self.streams[tower][OWN].positions

    def run_alone(self, name: str) -> dict[int, "_At"]:
        """Block -> the tower's state after it on its unimodal path, of the blocks that soft tokens read."""
        tower, batch = self.model.towers[name], self.batches[name]
        visible = self.places.range(name, name)
        places = Places(batch.local_positions, visible, self.slots.get(name), tower.distance_bias())
        x = tower.embed(batch=batch, added=self.model.added_embeddings.get(name))
        x, drops = self.drop_embedding(x, name, "alone"), self.drops(name, ["alone"])
        kept: Keys | None = None if self.cache is None else self.cache.alone[name]
        found, done = {}, 0
        soft = (soft for of_tower in self.places.soft.values() for soft in of_tower)
        for block in sorted({s.alone for s in soft if s.alone and s.source == name}):
            xs, caches = tower.run(
                blocks=None if self.cache is not None else cut(tower.blocks, done + 1, block),
                layers=np.arange(done, block, dtype=np.int32),
                xs={OWN: x},
                places={OWN: places},
                caches={OWN: kept},
                dropout=None if drops is None else {OWN: drops["alone"]},
            )
            x, kept, done = xs[OWN], caches[OWN], block
            found[block] = _At(x, batch.local_positions, None, None)
        if self.cache is not None:
            self.cache = self.cache._replace(alone={**self.cache.alone, name: cast(KeyValue, kept)})
        return found

    # ---- stages ------------------------------------------------------------------------------------------------------

    def parts(self, stage: Stage, stages: int = 1) -> "_Parts":
        """The blocks and fusions of a stage; of ``stages`` identical consecutive ones, stacked."""
        blocks, inside = {}, {}
        for tower, (first, last) in _blocks(stage).items():
            end = last + (stages - 1) * (last - first + 1)
            layers = np.arange(first - 1, end, dtype=np.int32)
            # With a cache there is no gradient, and blocks are picked by their index: a cut would be copied every pass.
            own = None if self.cache is not None else cut(self.model.towers[tower].blocks, first, end)
            stacked: Any = own, layers
            has_inside = any(f.inside and f.tower == tower for f in stage.fusions)
            if stages == 1:
                if has_inside:
                    inside[tower] = member(own, -1), layers[-1]
                    stacked = cut(own, 1, last - first), layers[:-1]
            else:
                stacked = jax.tree.map(lambda x: x.reshape(stages, x.shape[0] // stages, *x.shape[1:]), stacked)
                if has_inside:
                    inside[tower] = jax.tree.map(lambda x: x[:, -1], stacked)
                    stacked = jax.tree.map(lambda x: x[:, :-1], stacked)
            if first < last or not has_inside:
                blocks[tower] = stacked
        needed = {(s.zip, f.tower, s.member) for f in stage.fusions for s in f.sources}
        if self.cache is not None:
            needed |= {(r.zip, r.into, r.member) for r in stage.reads}
        fusions: dict[Any, tuple[Fusion | None, Any]] = {}
        for name, into, index in sorted(needed):
            stacked = None if self.cache is not None else self.model.zips[name][f"into_{into}"]
            if stages == 1:
                fusions[name, into, index] = member(stacked, index), index
            else:
                numbers = np.arange(index, index + stages, dtype=np.int32)
                own = None if stacked is None else cut(stacked, index + 1, index + stages)
                fusions[name, into, index] = own, numbers
        return _Parts(blocks, inside, fusions)

    def block(self, tower: str, own: Block | None, layer: Any) -> Block:
        """``own``, or the tower's block with this index."""
        return member(self.model.towers[tower].blocks, layer) if own is None else own

    def fusion(self, parts: "_Parts", zip_: str, into: str, index: int) -> tuple[Fusion, Any]:
        """A fusion of the stage, and its index among the zip's members."""
        own, number = parts.fusions[zip_, into, index]
        return (member(self.model.zips[zip_][f"into_{into}"], number) if own is None else own), number

    def scan(self, group: tuple[Stage, ...], states: States) -> States:
        """One scan over identical stages; their parameters become [stages, blocks per stage, ...]."""

        def body(carry: Any, parts: "_Parts") -> tuple[Any, None]:
            states, _, cache = self.stage(group[0], parts, carry[0], {}, carry[1])
            return (states, cache), None

        (states, self.cache), _ = jax.lax.scan(body, (states, self.cache), self.parts(group[0], len(group)))
        return states

    def stage(
        self, stage: Stage, parts: "_Parts", states: States, saved: "_Saved", cache: Cache | None
    ) -> tuple[States, "_Saved", Cache | None]:
        """Run one stage: blocks, then the zips' reads, then the fusions."""
        states, saved = dict(states), dict(saved)
        for name, _, last in stage.runs:
            blocks, layers = parts.blocks[name]
            states[name], own = self.model.towers[name].run(
                blocks=blocks,
                layers=layers,
                xs=states[name],
                places=self.streams[name],
                caches=self.caches(name, states, cache),
                dropout=self.drops(name, states[name]),
            )
            cache = self.with_caches(name, own, cache)
            saved[name, last, False] = _At(states[name][OWN], self.positions(name), None, None)
        for read in stage.reads:
            if read.inside:
                own_block, layer = parts.inside.get(read.tower) or (None, read.block - 1)
                block = self.block(read.tower, own_block, layer)
                at = _At(states[read.tower][OWN], self.positions(read.tower), block, layer)
                saved[read.tower, read.block, True] = at
        for read in stage.reads if cache is not None else ():
            cache = self.remember(read, parts, saved, cast(Cache, cache))
        fused: States = {}
        for fusion in stage.fusions:
            if fusion.placement == "inside":
                fused[fusion.tower], cache = self.run_inside(fusion, parts, states, saved, cache)
            elif fusion.placement == "sequence":
                entered, cache = self.enter(fusion, parts, saved, cache)
                fused[fusion.tower] = states[fusion.tower] | entered
            else:
                fused[fusion.tower] = {**states[fusion.tower], OWN: self.fuse(fusion, parts, saved, cache)}
        return {**states, **fused}, saved, cache

    def caches(self, tower: str, states: States, cache: Cache | None) -> dict[str, Keys | None]:
        """The key/value cache of each stream of a tower."""
        if cache is None:
            return dict.fromkeys(states[tower])
        soft = {stream: cache.zips[stream, tower] for stream in states[tower] if stream != OWN}
        return {OWN: cache.towers[tower], **soft}

    def with_caches(self, tower: str, caches: Mapping[str, Any], cache: Cache | None) -> Cache | None:
        """``cache`` with the caches of one tower's streams replaced."""
        if cache is None:
            return None
        zips = {(stream, tower): keys for stream, keys in caches.items() if stream != OWN}
        return cache._replace(towers={**cache.towers, tower: caches[OWN]}, zips={**cache.zips, **zips})

    # ---- zips --------------------------------------------------------------------------------------------------------

    def fuse(self, fused: Fused, parts: "_Parts", saved: "_Saved", cache: Cache | None) -> State:
        """m + the sum of the zips' effects, each computed from the pre-fusion state m, in sorted zip order."""
        execution, m = self.model.towers[fused.tower].execution, saved[fused.tower, fused.block, False].state
        positions, total = self.positions(fused.tower), m
        for source in fused.sources:
            fusion, index = self.fusion(parts, source.zip, fused.tower, source.member)
            earlier = self.visible[fused.tower, source.tower]

            @execution.attending
            def effect(
                fusion: Fusion,
                m: State,
                at: _At,
                call: str = "effect",
                source: Source = source,
                index: Any = index,
                earlier: Range = earlier,
            ) -> Any:
                with _zip_scope(source.zip, fused.tower):
                    fusion = execution.in_use(fusion)
                    kept = self.kept(source, fused.tower, fusion, index, at, cache)
                    return getattr(fusion, call)(m, kept=kept, visible=fusion.visible(earlier), positions=positions)

            at = self.at(source, False, saved)
            total = total + (effect if cache is not None else execution.recompute(effect))(fusion, m, at)
            if self.probe is not None and (weights := effect(fusion, m, at, "weights")) is not None:
                self.probe[source.zip, fused.tower, source.member] = weights
        return execution.shard(total, "batch", None, None)

    def run_inside(
        self, fused: Fused, parts: "_Parts", states: States, saved: "_Saved", cache: Cache | None
    ) -> tuple[Streams, Cache | None]:
        """Run a block whose attention includes the keys and values of zips."""
        tower, places = self.model.towers[fused.tower], self.streams[fused.tower]
        found = [self.fusion(parts, s.zip, fused.tower, s.member) for s in fused.sources]
        own, layer = parts.inside[fused.tower]
        block = self.block(fused.tower, own, layer)

        @tower.execution.attending
        def body(block: Any, fusions: list[Fusion], xs: Any, ats: list[_At], caches: Any) -> Any:
            more = []
            for source, (_, index), fusion, at in zip(fused.sources, found, fusions, ats, strict=True):
                with _zip_scope(source.zip, fused.tower):
                    fusion = tower.execution.in_use(fusion)
                    kept = self.kept(source, fused.tower, fusion, index, at, cache)
                    earlier = self.visible[fused.tower, source.tower]
                    more.append(More(*fusion.keys_and_values(kept), fusion.visible(earlier), fusion.share()))
            run, drops = tower.execution.in_use(block).streams, self.drops(fused.tower, xs)
            return run(xs, places=places, layer=layer, caches=caches, more=more, dropout=drops)

        ats = [self.at(source, True, saved) for source in fused.sources]
        run = body if cache is not None else tower.execution.recompute(body)
        fusions, caches = [fusion for fusion, _ in found], self.caches(fused.tower, states, cache)
        xs, caches = run(block, fusions, states[fused.tower], ats, caches)
        xs = {stream: tower.execution.shard(x, "batch", None, None) for stream, x in xs.items()}
        caches = {stream: tower.shard_cache(own) for stream, own in caches.items()}
        return xs, self.with_caches(fused.tower, caches, cache)

    def enter(
        self, fused: Fused, parts: "_Parts", saved: "_Saved", cache: Cache | None
    ) -> tuple[Streams, Cache | None]:
        """The soft tokens of this pass, as inputs of the receiver's block."""
        tower, found = self.model.towers[fused.tower], {}
        for source in fused.sources:
            fusion, _ = self.fusion(parts, source.zip, fused.tower, source.member)
            key, at = (source.zip, fused.tower), self.at(source, False, saved)
            earlier = self.earlier(key, at, cache)

            @tower.execution.attending
            def read(fusion: Fusion, at: _At, earlier: Any, source: Source = source, key: Any = key) -> State:
                with _zip_scope(*key):
                    state = self.stacked(key, self.source(source, at, fusion.placement), earlier)
                    x = tower.execution.in_use(fusion).read(state)
                    return tower.add_positions(x, self.streams[fused.tower][source.zip].positions)

            run = read if cache is not None else tower.execution.recompute(read)
            x = run(fusion, at, earlier)
            found[source.zip] = tower.execution.shard(x, "batch", None, None)
            if cache is not None and key in cache.open_groups and source.tower in self.batches:
                count = jnp.sum(self.batches[source.tower].segment_ids > 0, axis=1)
                left = stacking.last_states(at.state, earlier, count)[None]
                left = self.model.towers[source.tower].execution.shard(left, *OPEN_AXES)
                cache = cache._replace(open_groups={**cache.open_groups, key: left})
        return found, cache

    def earlier(self, key: tuple[str, str], at: "_At", cache: Cache | None) -> Float[Array, "B O C"]:
        """The states of cached tokens that soft tokens of this pass may stack."""
        if cache is None or key not in cache.open_groups:
            return at.state[:, :0]
        return cache.open_groups[key][0].astype(at.state.dtype)

    def stacked(self, key: tuple[str, str], source: SourceState, earlier: Float[Array, "B O C"]) -> SourceState:
        """What a fusion reads for its soft tokens: ``source``, or the states of each group that closes in this pass."""
        groups = self.places.groups.get(key)
        if groups is None:
            return source
        positions = jnp.take_along_axis(source.positions, groups.last, axis=1, mode="clip")
        return SourceState(stacking.stack_states(source.state, earlier, groups), positions)

    def remember(self, read: Read, parts: "_Parts", saved: "_Saved", cache: Cache) -> Cache:
        """Write what a zip caches of this pass's tokens."""
        key, execution = (read.zip, read.into), self.model.towers[read.into].execution
        fusion, index = self.fusion(parts, read.zip, read.into, read.member)

        @execution.attending
        def kept_of(fusion: Fusion, at: _At) -> Any:
            with _zip_scope(read.zip, read.into):
                return execution.in_use(fusion).read(self.source(read, at, fusion.placement))

        new = kept_of(fusion, self.at(read, read.inside, saved))
        kept = write(cache.zips[key], index, self.slots[read.tower], new)
        kept = jax.tree.map(lambda x, axes: execution.shard(x, *axes.names), kept, self.axes.zips[key])
        return cache._replace(zips={**cache.zips, key: kept})

    def kept(self, source: Any, receiver: str, fusion: Fusion, index: Any, at: "_At", cache: Cache | None) -> Any:
        """What a zip reads of all its source tokens: from the cache if there is one, else from this pass."""
        if cache is not None:
            return jax.tree.map(lambda x: x[index], cache.zips[source.zip, receiver])
        return fusion.read(self.source(source, at, fusion.placement))

    def at(self, source: Any, inside: bool, saved: "_Saved") -> "_At":
        """The state that ``source`` (a Read or a Source) refers to; empty if the tower has no tokens in this pass."""
        name = source.tower
        if name in self.batches and isinstance(source, Source) and source.alone:
            return self.alone[name][source.block]
        if name in self.batches:
            return saved[name, source.block, inside]
        rows = self.places.rows
        width, dtype = self.model.config.towers[name].embed_dim, self.model.towers[name].execution.dtype
        return _At(jnp.zeros((rows, 0, width), dtype), jnp.zeros((rows, 0), jnp.int32), None, None)

    def source(self, source: Any, at: "_At", placement: str) -> SourceState:
        """The input of `Fusion.read`."""
        tower, insulated = self.model.towers[source.tower], (source.zip, source.tower) in self.insulated

        def passed(x: Array) -> Array:
            return jax.lax.stop_gradient(x) if insulated else x

        def heads() -> tuple[Array, Array]:
            # Without tokens any block gives the same, empty, result.
            block, layer = (member(tower.blocks, 0), 0) if at.block is None else (at.block, at.layer)
            # The source's own weights make them: with insulation no gradient may reach these either.
            _, key, value = map(passed, tower.execution.in_use(block).heads(at.state, at.positions, layer))
            return key, value

        return SourceState(passed(at.state), at.positions, heads if placement == "inside" else None)


class _At(NamedTuple):
    """A state that zips read: its local positions, and for "inside" the block and its index from 0."""

    state: State
    positions: Any
    block: Any
    layer: Any


_Saved = dict[tuple[str, int, bool], _At]
"""(tower, block, inside) -> the state that zips read there."""


class _Parts(NamedTuple):
    """The parameters of a stage.

    Attributes:
        blocks: Tower -> (blocks that run before the stop, their indices from 0), stacked.
        inside: Tower -> (block whose attention includes zips, its index).
        fusions: (zip, receiver, member) -> (fusion, its index among the members).

    With a cache, blocks and fusions are None: `Pass.block` and `Pass.fusion` pick them from the model by their index.
    """

    blocks: dict[str, tuple[Any, Any]]
    inside: dict[str, tuple[Any, Any]]
    fusions: dict[tuple[str, str, int], tuple[Fusion | None, Any]]


def _zip_scope(name: str, into: str) -> AbstractContextManager[None]:
    """The scope of a zip's operations on its way into a tower, for profiles and traces."""
    return jax.named_scope(f"zips/{name}/into_{into}")


def _blocks(stage: Stage) -> dict[str, tuple[int, int]]:
    """Tower -> first and last block that a stage runs, blocks with fusions inside included."""
    found = {tower: (first, last) for tower, first, last in stage.runs}
    for fusion in stage.fusions:
        if fusion.inside:
            found[fusion.tower] = found.get(fusion.tower, (fusion.block,))[0], fusion.block
    return found
