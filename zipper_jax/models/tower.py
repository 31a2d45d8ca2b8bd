"""One tower: embedding, blocks, final norm, head.

``tower(batch)`` is the unimodal path. The fused path (`models.zipper`) runs the same blocks, stage by stage.

Axis letters: B rows, T positions, S key positions, D embed_dim, V vocabulary, A added tokens, L layers, N query heads,
K key/value heads, H head_dim, W distances.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from zipper_jax.models import rotary
from zipper_jax.models.cache import KEY_AXES, KeyValue, TowerCache, write_keys
from zipper_jax.models.config_parts import TowerConfig
from zipper_jax.models.dropout import ATTENTION, MLP_OUTPUT, TowerDropout
from zipper_jax.models.layers import MLP, GatedMLP, Linear, Norm, side_by_side, token_product
from zipper_jax.models.masks import Order, Range, attention_range
from zipper_jax.models.module import Execution, Module, loop, member, param, stack
from zipper_jax.models.rotary import Layer
from zipper_jax.ops.interval_attention import interval_attention, merge, merge_gated
from zipper_jax.ops.losses import Losses, cross_entropy
from zipper_jax.ops.vocab_loss import LARGE_VOCABULARY, OutputHead, Sharding, vocab_loss
from zipper_jax.sequences import TowerBatch

Keys = TowerCache | KeyValue
"""The key/value cache of one stream."""
OWN = "own"
"""The stream of a tower's own tokens; the others are soft tokens, named after their zip."""


class More(NamedTuple):
    """Extra keys and values of one block's attention.

    Attributes:
        key, value: In the receiver's heads.
        visible: Each query's attention range over them.
        share: Factor on their share of the softmax, see `merge_gated`; None: 1.
    """

    key: Float[Array, "B S K H"]
    value: Float[Array, "B S K H"]
    visible: Range
    share: Float[Array, ""] | None = None


class Places(NamedTuple):
    """Positions and attention ranges of one stream of a tower, shared by its blocks; axis T: tokens of the stream.

    Attributes:
        positions: Local positions in the whole sequence.
        visible: Range of self-attention, over this pass's tokens, or over the cache if there is one.
        slots: Cache positions of this pass's tokens, see `cache.place_tokens`; None: there is no cache.
        distance_bias: See `RelativeBias`.
        others: Stream -> range over its keys, for the other streams.
    """

    positions: Int[Array, "B T"]
    visible: Range
    slots: Int[Array, "B T"] | None = None
    distance_bias: Float[Array, "N W"] | None = None
    others: Mapping[str, Range] | None = None


def tower_norm(config: TowerConfig, *, rngs: nnx.Rngs) -> Norm:
    """A norm over embed_dim, as configured for the tower."""
    return Norm(config.embed_dim, rngs=rngs, kind=config.norm, epsilon=config.norm_epsilon, offset=config.norm_offset)


class Attention(Module):
    """Grouped-query self-attention over a range of keys, with RoPE and query/key norms as configured."""

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        d, n, k, h = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        kind: dict[str, Any] = {"fan_in": d, "dtype": dtype, "outputs": 2, "rngs": rngs}
        kind["bias"] = config.attention_bias != "none"
        self.query = Linear("BTD,DNH->BTNH", (d, n, h), ("embed", "heads", "head_size"), **kind)
        self.key = Linear("BTD,DKH->BTKH", (d, k, h), ("embed", "kv_heads", "head_size"), **kind)
        self.value = Linear("BTD,DKH->BTKH", (d, k, h), ("embed", "kv_heads", "head_size"), **kind)
        axes = ("heads", "head_size", "embed")
        bias = config.attention_bias == "all"
        self.output = Linear("BTNH,NHD->BTD", (n, h, d), axes, fan_in=n * h, dtype=dtype, bias=bias, rngs=rngs)
        norm = partial(Norm, h, epsilon=config.norm_epsilon, offset=config.norm_offset, axis="head_size", rngs=rngs)
        self.query_norm = norm() if config.query_key_norm else None
        self.key_norm = norm() if config.query_key_norm else None

    def project(
        self, y: Float[Array, "B T D"], positions: Int[Array, "B T"], layer: Layer
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Query, key and value of each token, with RoPE by local position where the tower uses it."""
        query, key, value = side_by_side(y, self.query, self.key, self.value)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.config.positions == "rotary":
            by = rotary.turn(positions, rotary.rotation(self.config, layer))
            query, key = rotary.rotate(query, by), rotary.rotate(key, by)
        return query, key, value

    @jax.named_scope("self_attention")
    def attend(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S K H"],
        value: Float[Array, "B S K H"],
        visible: Range,
        layer: Layer,
        distance_bias: Float[Array, "N W"] | None = None,
        more: Sequence[More] = (),
        causal: bool = False,
    ) -> Float[Array, "B T N H"]:
        """Attention over the visible keys, narrowed by the layer's window, and the ``more`` keys, in one softmax.

        ``causal``: the keys are the queries' own tokens, none of which sees a later one.
        """
        start, end = visible
        window = rotary.window(self.config, layer)
        if window is not None:
            start = jnp.maximum(start, end - window)
        attend: Any = partial(
            interval_attention, query, scale=self.config.attention_scale, softcap=self.config.attention_softcap
        )
        to_own: Any = partial(attend, key, value, start, end, distance_bias=distance_bias, causal=causal)
        if not more:
            return to_own()
        parts = [to_own(return_lse=True)]
        gated = []
        for each in more:
            part = attend(each.key, each.value, *each.visible, return_lse=True)
            gated += [] if each.share is None else [(part, each.share)]
            parts += [part] if each.share is None else []
        own = merge(parts) if len(parts) > 1 else parts[0]
        return merge_gated(own, gated) if gated else own[0]

    def __call__(
        self, y: Float[Array, "B T D"], positions: Int[Array, "B T"], visible: Range, layer: Layer = 0
    ) -> Float[Array, "B T D"]:
        """Self-attention over the tokens of ``y``."""
        return self.output(self.attend(*self.project(y, positions, layer), visible, layer))


class Block(Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); parallel, or with output norms, as configured."""

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config = config
        both = config.norm_placement == "both"
        self.attention_norm = tower_norm(config, rngs=rngs)
        self.attention = Attention(config, rngs=rngs, dtype=dtype)
        self.attention_output_norm = tower_norm(config, rngs=rngs) if both else None
        self.mlp_norm = tower_norm(config, rngs=rngs)
        mlp = GatedMLP if config.gated_mlp else MLP
        self.mlp = mlp(
            config.embed_dim, config.mlp_dim, config.activation, bias=config.mlp_bias, rngs=rngs, dtype=dtype
        )
        self.mlp_output_norm = tower_norm(config, rngs=rngs) if both else None

    def heads(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], layer: Layer
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Query, key and value of each token, from the block's input."""
        return self.attention.project(self.attention_norm(x), positions, layer)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        places: Places,
        layer: Layer = 0,
        cache: Keys | None = None,
        more: Sequence[More] = (),
    ) -> tuple[Float[Array, "B T D"], Keys | None]:
        """The block's output, and the cache, which is written first and then read.

        Args:
            x: The block's input.
            places: Positions and attention ranges.
            layer: The block's index, from 0.
            cache: Keys and values of earlier passes; None: none are cached.
            more: Extra keys and values in the same softmax.
        """
        found, caches = self.streams({OWN: x}, {OWN: places}, layer, {OWN: cache}, more)
        return found[OWN], caches[OWN]

    def streams(
        self,
        xs: dict[str, Float[Array, "B _ D"]],
        places: dict[str, Places],
        layer: Layer,
        caches: dict[str, Keys | None],
        more: Sequence[More] = (),
        dropout: Mapping[str, TowerDropout] | None = None,
    ) -> tuple[dict[str, Float[Array, "B _ D"]], dict[str, Keys | None]]:
        """`__call__` for a sequence in several streams: each token attends to all of them in one softmax. ``more`` keys
        are for the tower's own tokens only. ``dropout``: stream -> its dropout; None: nothing is dropped."""
        queries, keys, kept = {}, {}, {}
        for name, x in xs.items():
            queries[name], key, value = self.heads(x, places[name].positions, layer)
            cache, slots = caches[name], places[name].slots
            if cache is not None and slots is not None:
                key, value = write_keys((cache.key, cache.value), layer, slots, (key, value))
                cache = cache._replace(key=key, value=value)
                key, value = key[layer].swapaxes(1, 2), value[layer].swapaxes(1, 2)
            keys[name], kept[name] = (key, value), cache
        outputs = {}
        for name, x in xs.items():
            place = places[name]
            others = [More(*keys[other], seen) for other, seen in (place.others or {}).items() if other in keys]
            others += more if name == OWN else ()
            causal = name == OWN and kept[name] is None
            attended = self.attention.attend(
                queries[name], *keys[name], place.visible, layer, place.distance_bias, others, causal
            )
            outputs[name] = self._output(x, attended, None if not dropout else dropout[name].at(layer))
        return outputs, kept

    def _output(
        self, x: Float[Array, "B T D"], attended: Float[Array, "B T N H"], dropout: TowerDropout | None
    ) -> Float[Array, "B T D"]:
        a = self.attention.output(attended)
        if self.attention_output_norm is not None:
            a = self.attention_output_norm(a)
        a = a if dropout is None else dropout(a, ATTENTION)
        y = self.mlp(self.mlp_norm(x if self.config.parallel else x + a))
        if self.mlp_output_norm is not None:
            y = self.mlp_output_norm(y)
        y = y if dropout is None else dropout(y, MLP_OUTPUT)
        return x + a + y


class Embedding(Module):
    """The token table, for input and (with a tied head) output, and the table of learned positions."""

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config, self.dtype = config, dtype
        shape = (config.vocab_size, config.embed_dim)
        self.table = param(shape, ("vocab", "embed"), use="lookup", fan_in=config.embed_dim, output=config.tied_head)
        learned = config.positions == "learned"
        shape = ((config.max_positions or 0) + config.position_offset, config.embed_dim)
        self.position_table = param(shape, (None, "embed"), use="lookup", fan_in=config.embed_dim) if learned else None

    def __call__(self, tokens: Int[Array, "B T"], added: Float[Array, "A D"] | None = None) -> Float[Array, "B T D"]:
        """Embeddings of ``tokens``; ids from vocab_size on are rows of ``added``."""
        own = self.config.vocab_size
        if added is None:
            rows = jnp.take(self.table[...], tokens, axis=0)  # a token from elsewhere gives NaN, not another's row
        else:
            rows = jnp.take(self.table[...], tokens, axis=0, mode="clip")
            rows = jnp.where((tokens < own)[..., None], rows, jnp.take(added, tokens - own, axis=0, mode="clip"))
        return (rows.astype(jnp.float32) * self.config.embedding_scale).astype(self.dtype)

    def add_positions(self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """x plus the learned embedding of each local position, if the tower has learned positions."""
        if self.position_table is None:
            return x
        rows = positions + self.config.position_offset
        return x + jnp.take(self.position_table[...], rows, axis=0, mode="clip").astype(x.dtype)


class AddedEmbedding(Module):
    """Embeddings of the tokens added to a tower's vocabulary for the fused path, for input and output."""

    def __init__(self, config: TowerConfig, count: int, *, rngs: nnx.Rngs):
        shape, axes = (count, config.embed_dim), (None, "embed")
        self.table = param(shape, axes, use="lookup", fan_in=config.embed_dim)
        self.head_table = None if config.tied_head else param(shape, axes, use="lookup", fan_in=config.embed_dim)


class RelativeBias(Module):
    """T5's relative position bias: one value per distance bucket and head, shared by all layers."""

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs):
        shape = (rotary.RELATIVE_BUCKETS, config.num_heads)
        self.table = param(shape, (None, "heads"), use="lookup", fan_in=1)

    def __call__(self) -> Float[Array, "N W"]:
        """The bias of each distance to an earlier key; the last entry is for all larger distances."""
        return jnp.take(self.table[...], rotary.relative_buckets(), axis=0).T


class Head(Module):
    """The output matrix of a tower whose head is not tied."""

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.embed_dim)
        self.table = param(shape, ("vocab", "embed"), use="lookup", fan_in=config.embed_dim, output=True)


class Tower(Module):
    """A decoder: ``tower(batch)`` gives float32 logits of its own vocabulary.

    Blocks are stacked: parameters of ``blocks`` are [L, ...].
    """

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs, execution: Execution = Execution()):
        self.config, self.execution = config, execution
        dtype = execution.dtype
        self.embedding = Embedding(config, rngs=rngs, dtype=dtype)
        self.blocks = stack(lambda: Block(config, rngs=rngs, dtype=dtype), config.num_layers, "layers")
        self.final_norm = tower_norm(config, rngs=rngs)
        self.head = None if config.tied_head else Head(config, rngs=rngs)
        self.relative_bias = RelativeBias(config, rngs=rngs) if config.positions == "relative" else None
        self.output_table: nnx.Variable | None = nnx.data(None)  # the head's, already cast, see `Zipper.for_decoding`

    def __call__(self, batch: TowerBatch) -> Float[Array, "B T V"]:
        """The unimodal path: the tower as before fusion, without input projection, zips and added tokens.

        Token ids must be below vocab_size: `sequences.own_tokens` removes added tokens from a batch.
        """
        return self.logits(self.hidden(batch))

    def hidden(self, batch: TowerBatch) -> Float[Array, "B T D"]:
        """The final states of the unimodal path after the final norm, the input of `logits`."""
        batch = jax.tree.map(jnp.asarray, batch)
        order = Order(batch.segment_ids, batch.global_positions)
        visible = attention_range(order, order, inclusive=True)
        places = Places(batch.local_positions, visible, distance_bias=self.distance_bias())
        layers = np.arange(self.config.num_layers, dtype=np.int32)
        xs = {OWN: self.embed(batch=batch)}
        xs, _ = self.run(blocks=self.blocks, layers=layers, xs=xs, places={OWN: places}, caches={OWN: None})
        return self.norm(xs[OWN])

    def distance_bias(self) -> Float[Array, "N W"] | None:
        """The output of `RelativeBias`; None if the tower has none."""
        return None if self.relative_bias is None else self.execution.in_use(self.relative_bias)()

    def embed(
        self, batch: TowerBatch, added: AddedEmbedding | None = None, projection: nnx.Module | None = None
    ) -> Float[Array, "B T D"]:
        """h0 = projection(embedding(tokens)) (paper §3); learned positions are added after the projection."""
        embedding = self.execution.in_use(self.embedding)
        with jax.named_scope("embedding"):
            x = embedding(batch.tokens, None if added is None else added.table[...])
        if projection is not None:
            with jax.named_scope("input_projection"):
                x = self.execution.in_use(projection)(x)
        return self.execution.shard(embedding.add_positions(x, batch.local_positions), "batch", None, None)

    def add_positions(self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """See `Embedding.add_positions`."""
        return self.execution.in_use(self.embedding).add_positions(x, positions)

    def run(
        self,
        *,
        blocks: Any,
        layers: Int[Any, " L"],
        xs: dict[str, Float[Array, "B _ D"]],
        places: dict[str, Places],
        caches: dict[str, Keys | None],
        dropout: Mapping[str, TowerDropout] | None = None,
    ) -> tuple[dict[str, Float[Array, "B _ D"]], dict[str, Keys | None]]:
        """Run stacked blocks in order.

        The sequence consists of one or more streams: `OWN` and those of soft tokens (`models.fusion`).

        Args:
            blocks: A `Block`, stacked [L, ...], or separate ones (`module.unstack`); None: the tower's blocks with
                these indices.
            layers: Their indices, from 0.
            xs: Stream -> states.
            places: Stream -> positions and attention ranges.
            caches: Stream -> cache; None: there is no cache.
            dropout: Stream -> its dropout; None: nothing is dropped.

        Returns:
            The states and caches after the last block.
        """
        execution = self.execution

        @execution.attending
        def body(carry: Any, each: Any) -> tuple[Any, None]:
            (xs, caches), (block, layer) = carry, each
            block = member(self.blocks, layer) if block is None else block
            with jax.named_scope(f"towers/{execution.tower}"):
                block = execution.in_use(block)
                xs, caches = block.streams(xs, places=places, layer=layer, caches=caches, dropout=dropout)
            xs = {name: execution.shard(x, "batch", None, None) for name, x in xs.items()}
            return (xs, {name: self.shard_cache(cache) for name, cache in caches.items()}), None

        cached = caches[OWN] is not None
        return loop(body if cached else execution.recompute(body), (xs, caches), blocks, layers, execution.scan)

    def shard_cache(self, cache: Keys | None) -> Keys | None:
        """Shard the keys and values of a cache by rows and key/value heads."""
        if cache is None:
            return None
        key, value = (self.execution.shard(x, *KEY_AXES) for x in (cache.key, cache.value))
        return cache._replace(key=key, value=value)

    def norm(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The final norm, before the head; zips read states without it."""
        return self.execution.in_use(self.final_norm)(x)

    @jax.named_scope("logits")
    def logits(self, x: Float[Array, "B T D"], added: AddedEmbedding | None = None) -> Float[Array, "B T V"]:
        """Logits, accumulated and returned in float32, scaled and capped; those of ``added`` after the tower's own.

        The head does not use the input projection (paper §3).
        """
        execution = self.execution
        table, *rest = self._output_tables(added)
        logits = self._products(x, execution.gather(table.astype(x.dtype), "vocab", "embed"))
        if not rest:
            return execution.shard(logits, "batch", None, "vocab")
        more = [self._products(x, execution.gather(rows.astype(x.dtype), None, "embed")) for rows in rest]
        return jnp.concatenate([logits, *more], axis=-1)

    @jax.named_scope("loss")
    def losses(
        self, x: Float[Array, "B T D"], batch: TowerBatch, added: AddedEmbedding | None = None, z_loss: float = 0.0
    ) -> Losses:
        """Losses of the batch's targets, from the states that `logits` takes; of a large vocabulary without logits."""
        targets, weights = jnp.asarray(batch.targets), jnp.asarray(batch.weights)
        tables = self._output_tables(added)
        if sum(len(table) for table in tables) <= LARGE_VOCABULARY:
            return cross_entropy(self.logits(x, added), targets, weights, z_loss)
        sharding, placed = self._loss_sharding(x, tables), self.execution.placer.mesh is not None
        alone = jax.default_backend() == "tpu" and jax.device_count() == 1
        head = OutputHead(
            self.config.logit_scale, self.config.logit_softcap, z_loss, sharding, "auto" if placed or alone else "xla"
        )
        return vocab_loss(x, tables, targets, weights, head)

    def _output_tables(self, added: AddedEmbedding | None) -> list[Float[Array, "_ D"]]:
        own = self.output_table or (self.embedding if self.head is None else self.head).table
        tables = [own[...]]
        if added is not None:
            tables.append((added.table if added.head_table is None else added.head_table)[...])
        return tables

    def _loss_sharding(self, x: Float[Array, "B T D"], tables: list[Float[Array, "_ D"]]) -> Sharding | None:
        placer, tower = self.execution.placer, self.execution.tower
        if placer.mesh is None or placer.mesh.size == 1:
            return None
        names = [("vocab", "embed"), (None, "embed")][: len(tables)]
        stored = tuple(placer.spec(t.shape, tower, *n) for t, n in zip(tables, names, strict=True))
        # Rows of a table may be sharded in use, embed_dim may not: it is what products sum over.
        used = tuple(placer.spec(t.shape, tower, n[0], None, in_use=True) for t, n in zip(tables, names, strict=True))
        return Sharding(placer.mesh, placer.spec(x.shape, tower, "batch", None, None), used, stored)

    def _products(self, x: Float[Array, "B T D"], table: Float[Array, "V D"]) -> Float[Array, "B T V"]:
        config = self.config
        logits = token_product("BTD,VD->BTV", x, table.astype(x.dtype), preferred_element_type=jnp.float32)
        if config.logit_scale != 1:
            logits = logits * config.logit_scale
        if config.logit_softcap is not None:
            logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
        return logits
