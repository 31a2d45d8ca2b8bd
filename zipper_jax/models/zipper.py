"""The zipper: towers, input projections and zips as one function of plain parameters.

    params = init_params(config, seed)
    logits = forward(config, params, towers)             # the fused path, all towers at once
    logits = unimodal(config, params, "text", batch)     # the tower as it was: no input projection, no zips

Parameter paths: ``towers/<name>/{embedding,blocks,final_norm,head}``, ``added_embeddings/<name>``,
``input_projections/<name>``, ``zips/<a>-<b>/into_<name>``; blocks are stacked over layers [L, ...], zips over their
members [Z, ...].

Axis letters: B rows, T slots, D width, V vocabulary, L layers, Z zips.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zipper_jax.models import modules
from zipper_jax.models.config import ProjectionConfig, ZipperConfig
from zipper_jax.models.layers import Projection
from zipper_jax.models.modules import Maker, Module, Params
from zipper_jax.models.schedule import Fusion, Stage, group_stages, make_schedule, zip_pairs
from zipper_jax.models.tower import AddedEmbedding, Block, Embedding, Head, RelativeBias, logits_of, tower_norm
from zipper_jax.models.visibility import Range, cross_visibility, self_visibility
from zipper_jax.models.zip_block import ZipDirection
from zipper_jax.sequences import TowerBatch

State = Float[Array, "B T D"]
Placer = Callable[..., Array]
"""(array, tower, one logical axis name or None per axis) -> the array, cut over devices; ``batch`` names the rows.
``in_use=True``: as a parameter lies while it is used."""


def anywhere(x: Array, tower: str, *names: str | None, in_use: bool = False) -> Array:
    """The placer of one device: nothing is cut."""
    return x


class Makers:
    """How each part of a model is made, and where its activations lie: the one place where configuration becomes
    modules."""

    def __init__(self, config: ZipperConfig, placer: Placer = anywhere):
        self.config, self.dtype, self.place = config, jnp.dtype(config.dtype), placer
        self.zips = {z.name: z for z in config.zips}

    def bind(self, make: Maker[Module], tower: str, params: Params) -> Module:
        """The module with these parameters in it: kernels gathered for use, in the dtype they are used in; tables, of
        which only some rows are read, where they lie."""
        if self.place is not anywhere:

            def lay(path, x, names):
                kind = path[-1].key
                if kind.endswith("table"):
                    return self.place(x, tower, *names)
                return self.gather(x.astype(self.dtype) if kind == "kernel" else x, tower, *names)

            params = jax.tree_util.tree_map_with_path(lay, params, modules.axes(make))
        return modules.bind(make, params)

    def gather(self, x: Array, tower: str, *names: str | None) -> Array:
        """A parameter as it is used, from where it lies; backwards, its gradient goes the same way to where it belongs.

        Said outright: else the compiler may cut a product along the sum, and add up activations of the whole batch.
        """
        return self.place(self.place(x, tower, *names), tower, *names, in_use=True)

    def embedding(self, tower: str):
        return lambda rngs: Embedding(self.config.towers[tower], self.dtype, rngs)

    def block(self, tower: str):
        return lambda rngs: Block(self.config.towers[tower], self.dtype, rngs)

    def final_norm(self, tower: str):
        return lambda rngs: tower_norm(self.config.towers[tower], rngs)

    def relative_bias(self, tower: str):
        return lambda rngs: RelativeBias(self.config.towers[tower], rngs)

    def added_embedding(self, tower: str):
        return lambda rngs: AddedEmbedding(self.config.towers[tower], self.config.added_tokens[tower], rngs)

    def head(self, tower: str):
        return lambda rngs: Head(self.config.towers[tower], self.dtype, rngs)

    def input_projection(self, tower: str):
        projection = self.config.input_projections.get(tower, ProjectionConfig(form="none"))
        width = self.config.towers[tower].width
        return lambda rngs: Projection(projection, width, width, rngs, self.dtype)

    def direction(self, zip_name: str, into: str):
        z, towers = self.zips[zip_name], self.config.towers
        return lambda rngs: ZipDirection(z, towers[z.other(into)], towers[into], self.dtype, rngs)

    def parts(self) -> dict[tuple[str, ...], tuple[Any, int | None, str | None]]:
        """path -> (maker, how many are stacked or None, name of the stacked axis)."""
        parts: dict[tuple[str, ...], tuple[Any, int | None, str | None]] = {}
        for name, tower in self.config.towers.items():
            parts["towers", name, "embedding"] = (self.embedding(name), None, None)
            parts["towers", name, "blocks"] = (self.block(name), tower.num_layers, "layers")
            parts["towers", name, "final_norm"] = (self.final_norm(name), None, None)
            if not tower.tied_head:
                parts["towers", name, "head"] = (self.head(name), None, None)
            if tower.positions == "relative":
                parts["towers", name, "relative_bias"] = (self.relative_bias(name), None, None)
        for name in self.config.added_tokens:
            parts["added_embeddings", name] = (self.added_embedding(name), None, None)
        for name, projection in self.config.input_projections.items():
            if projection.form != "none":
                parts["input_projections", name] = (self.input_projection(name), None, None)
        for name, z in self.zips.items():
            count = len(zip_pairs(z, self.config.towers))
            for into in z.receivers:
                parts["zips", name, f"into_{into}"] = (self.direction(name, into), count, "zips")
        return dict(sorted(parts.items()))


def init_params(config: ZipperConfig, seed: int) -> Params:
    """Fresh float32 parameters, on the host (NumPy)."""
    return _build(config, lambda path, make, count, _: modules.init(make, seed, path, count))


def abstract_params(config: ZipperConfig) -> Params:
    """The tree of shapes and dtypes, without computing anything."""
    return _build(config, lambda path, make, count, _: modules.shapes(make, count))


def param_axes(config: ZipperConfig) -> Params:
    """The tree of logical axis names: a tuple of names per leaf, as declared beside each parameter."""
    return _build(config, lambda path, make, _, stacked: modules.axes(make, stacked))


def _build(config: ZipperConfig, function) -> Params:
    tree: Params = {}
    for path, (make, count, stacked) in Makers(config).parts().items():
        modules.put(tree, path, function(path, make, count, stacked))
    return tree


def forward(
    config: ZipperConfig, params: Params, towers: Mapping[str, TowerBatch], placer: Placer = anywhere
) -> dict[str, Float[Array, "B T V"]]:
    """The fused path: float32 logits of every tower. ``towers`` must hold a batch for each tower of the model."""
    return _forward(config, params, towers, placer, probe=None)


def cross_attention_weights(
    config: ZipperConfig, params: Params, towers: Mapping[str, TowerBatch]
) -> dict[tuple[str, str, int], Float[Array, "B K G T S"]]:
    """(zip, receiving tower, member) -> attention weights of the fused path (dense: for short pictures)."""
    probe: dict[tuple[str, str, int], Array] = {}
    _forward(config, params, towers, anywhere, probe)
    return probe


def unimodal(config: ZipperConfig, params: Params, tower: str, batch: TowerBatch) -> Float[Array, "B T V"]:
    """One tower alone: what it was before fusion if its weights are. Float32 logits.

    Its vocabulary is the tower's own: `sequences.own_tokens` takes added tokens out of a batch.
    """
    makers, own = Makers(config), params["towers"][tower]
    embedding = makers.bind(makers.embedding(tower), tower, own["embedding"])
    x = embedding.add_positions(embedding(batch.tokens), batch.local_positions)
    visible = self_visibility(batch.segment_ids)
    layers = np.arange(config.towers[tower].num_layers, dtype=np.int32)
    bias = distance_bias(makers, tower, params)
    x = run_blocks(makers, tower, (own["blocks"], layers), x, batch.local_positions, visible, bias)
    return tower_logits(makers, tower, params, x)


def embed(makers: Makers, tower: str, params: Params, tokens, local_positions) -> State:
    """h0 = input_projection(embedding(tokens)) (paper §3): the start of the fused path. Learned positions are added
    behind the projection."""
    embedding = makers.bind(makers.embedding(tower), tower, params["towers"][tower]["embedding"])
    added = params.get("added_embeddings", {}).get(tower)
    x = embedding(tokens, None if added is None else added["table"])
    if tower in params.get("input_projections", {}):
        x = makers.bind(makers.input_projection(tower), tower, params["input_projections"][tower])(x)
    return makers.place(embedding.add_positions(x, local_positions), tower, "batch", None, None)


def tower_logits(makers: Makers, tower: str, params: Params, x: State, fused: bool = False) -> Float[Array, "B T V"]:
    """Final norm and output softmax's logits; the input projection is not on this path (paper §3). The fused path's
    added tokens come behind the tower's own."""
    config, own = makers.config.towers[tower], params["towers"][tower]
    x = makers.bind(makers.final_norm(tower), tower, own["final_norm"])(x)
    table = own["embedding"]["table"] if config.tied_head else own["head"]["table"]
    logits = logits_of(config, x, makers.gather(table.astype(x.dtype), tower, "vocab", "embed"))
    added = params.get("added_embeddings", {}).get(tower) if fused else None
    if added is None:
        return makers.place(logits, tower, "batch", None, "vocab")
    more_rows = added["table"] if config.tied_head else added["head_table"]
    more = logits_of(config, x, makers.gather(more_rows.astype(x.dtype), tower, None, "embed"))
    return jnp.concatenate([logits, more], axis=-1)


def distance_bias(makers: Makers, tower: str, params: Params) -> Float[Array, "N W"] | None:
    """What self-attention's scores get by distance, in towers with T5's relative positions."""
    if makers.config.towers[tower].positions != "relative":
        return None
    return makers.bind(makers.relative_bias(tower), tower, params["towers"][tower]["relative_bias"])()


def run_blocks(makers: Makers, tower: str, blocks, x: State, local_positions, visible: Range, bias) -> State:
    """Runs blocks in order, each attending within ``visible``.

    ``blocks``: (parameters stacked [n, ...], the blocks' numbers from 0 [n]); ``bias``: see `distance_bias`.
    """

    def body(x, xs):
        block_params, layer = xs
        block = makers.bind(makers.block(tower), tower, block_params)
        query, key, value = block.project(x, local_positions, layer)
        x = block.finish(x, block.attend(query, key, value, visible, layer, bias))
        return makers.place(x, tower, "batch", None, None), None

    body = _remat(body, makers.config.remat)
    return loop(body, x, blocks, makers.config.scan)[0]


def loop(body, carry, xs, scan: bool):
    """lax.scan over the leading axis of ``xs``, or the same unrolled; returns (carry, stacked outputs or None)."""
    count = jax.tree.leaves(xs)[0].shape[0]
    if scan and count > 1:
        return jax.lax.scan(body, carry, xs)
    outputs = []
    for i in range(count):
        carry, out = body(carry, jax.tree.map(lambda leaf, i=i: leaf[i], xs))
        outputs.append(out)
    return carry, None if outputs[0] is None else jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def numbered(blocks: Params, first: int, last: int) -> tuple[Params, np.ndarray]:
    """Blocks ``first`` to ``last`` (from 1, inclusive) of a tower, and their numbers from 0."""
    return cut(blocks, first, last), np.arange(first - 1, last, dtype=np.int32)


def cut(tree: Params, first: int, last: int) -> Params:
    """Members ``first`` to ``last`` (from 1, inclusive) of stacked parameters."""
    whole = jax.tree.leaves(tree)[0].shape[0] == last - first + 1
    return tree if whole else jax.tree.map(lambda leaf: leaf[first - 1 : last], tree)


class _Pass:
    """One joint forward pass: what all its stages share."""

    def __init__(self, config: ZipperConfig, params: Params, towers: Mapping[str, TowerBatch], placer: Placer, probe):
        self.makers, self.towers, self.probe = Makers(config, placer), towers, probe
        self.biases = {t: distance_bias(self.makers, t, params) for t in towers}
        self.visible = {t: self_visibility(batch.segment_ids) for t, batch in towers.items()}
        self.cross: dict[tuple[str, str], Range] = {}
        for z in config.zips:
            for into in z.receivers:
                self.cross[into, z.other(into)] = cross_visibility(towers[into], towers[z.other(into)])

    def stage(self, stage: Stage, blocks, directions, states, pre):
        """Runs one stage; ``blocks`` is {tower: (parameters, numbers)}, ``directions`` {(zip, receiver, member):
        parameters}."""
        states, pre = dict(states), dict(pre)
        for tower, _, last in stage.runs:
            positions = self.towers[tower].local_positions
            x, visible, bias = states[tower], self.visible[tower], self.biases[tower]
            states[tower] = run_blocks(self.makers, tower, blocks[tower], x, positions, visible, bias)
            pre[tower, last] = states[tower]
        for fusion in stage.fusions:
            states[fusion.tower] = self.fuse(fusion, directions, pre)
        return states, pre

    def fuse(self, fusion: Fusion, directions, pre) -> State:
        """m + the sum of the zips' effects, all on the pre-fusion state, in sorted zip order."""
        m = pre[fusion.tower, fusion.block]
        fused = m
        for source in fusion.sources:
            own = directions[source.zip, fusion.tower, source.member]
            make = self.makers.direction(source.zip, fusion.tower)
            read_at = self.towers[source.tower].local_positions
            visible = self.cross[fusion.tower, source.tower]
            positions = self.towers[fusion.tower].local_positions

            def effect(own, m, m_source, make=make, read_at=read_at, visible=visible, positions=positions):
                direction = self.makers.bind(make, fusion.tower, own)
                return direction.effect(m, *direction.read(m_source, read_at), *visible, positions)

            m_source = pre[source.tower, source.block]
            fused = fused + _remat(effect, self.makers.config.remat)(own, m, m_source)
            if self.probe is not None:
                direction = self.makers.bind(make, fusion.tower, own)
                weights = direction.weights(m, direction.read(m_source, read_at)[0], *visible, positions)
                self.probe[source.zip, fusion.tower, source.member] = weights
        return self.makers.place(fused, fusion.tower, "batch", None, None)


def _forward(config, params, towers, placer, probe):
    run = _Pass(config, params, towers, placer, probe)
    states = {t: embed(run.makers, t, params, towers[t].tokens, towers[t].local_positions) for t in config.towers}
    pre: dict[tuple[str, int], State] = {}
    for group in group_stages(make_schedule(config)):
        if len(group) > 1 and config.scan and probe is None:
            states = _scan_group(run, group, params, states)
        else:
            for stage in group:
                blocks, directions = _stage_params(params, stage)
                states, pre = run.stage(stage, blocks, directions, states, pre)
    return {tower: tower_logits(run.makers, tower, params, x, fused=True) for tower, x in states.items()}


def _scan_group(run: _Pass, group, params, states):
    """One scan over stages that are alike; their parameters become [stages, blocks per stage, ...]."""
    first, final = group[0], group[-1]
    ends = {tower: last for tower, _, last in final.runs}
    blocks = {}
    for tower, start, last in first.runs:
        stacked = numbered(params["towers"][tower]["blocks"], start, ends[tower])
        per_stage = last - start + 1
        blocks[tower] = jax.tree.map(lambda x, n=per_stage: x.reshape(len(group), n, *x.shape[1:]), stacked)
    directions = {
        (s.zip, f.tower, s.member): cut(params["zips"][s.zip][f"into_{f.tower}"], s.member + 1, s.member + len(group))
        for f in first.fusions
        for s in f.sources
    }

    def body(states, xs):
        blocks, directions = xs
        return run.stage(first, blocks, directions, states, {})[0], None

    return jax.lax.scan(body, states, (blocks, directions))[0]


def _stage_params(params, stage: Stage):
    blocks = {tower: numbered(params["towers"][tower]["blocks"], first, last) for tower, first, last in stage.runs}
    directions = {
        (s.zip, f.tower, s.member): jax.tree.map(lambda x, i=s.member: x[i], params["zips"][s.zip][f"into_{f.tower}"])
        for f in stage.fusions
        for s in f.sources
    }
    return blocks, directions


def _remat(body, remat: str):
    if remat == "none":
        return body
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(body, policy=policy)
