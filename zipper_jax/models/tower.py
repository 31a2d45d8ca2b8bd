"""One tower: embedding, blocks, final norm, head.

A block comes apart into ``project``, ``attend`` and ``finish``, so that training (attention over the row) and decoding
(attention over a cache) run the same code.

Axis letters: B rows, T slots, S key slots, D width, V vocabulary, A added tokens, N query heads, K key/value heads,
H head size, W distances.
"""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zipper_jax.models import rotary
from zipper_jax.models.config import TowerConfig
from zipper_jax.models.layers import MLP, GatedMLP, Linear, Norm
from zipper_jax.models.modules import param
from zipper_jax.models.rotary import Layer
from zipper_jax.models.visibility import Range
from zipper_jax.ops.interval_attention import interval_attention


def tower_norm(config: TowerConfig, rngs: nnx.Rngs) -> Norm:
    """A norm over the tower's width, of the tower's kind."""
    return Norm(config.width, rngs, kind=config.norm, epsilon=config.norm_epsilon, offset=config.norm_offset)


class SelfAttention(nnx.Module):
    """The four linear maps of grouped-query attention, and the norms of query and key heads."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs, dtype):
        d, n, k, h = config.width, config.num_heads, config.num_kv_heads, config.head_size
        kind = {"fan_in": d, "dtype": dtype, "outputs": 2, "bias": config.attention_bias != "none"}
        self.query = Linear("BTD,DNH->BTNH", (d, n, h), ("embed", "heads", "head_size"), rngs, **kind)
        self.key = Linear("BTD,DKH->BTKH", (d, k, h), ("embed", "kv_heads", "head_size"), rngs, **kind)
        self.value = Linear("BTD,DKH->BTKH", (d, k, h), ("embed", "kv_heads", "head_size"), rngs, **kind)
        axes = ("heads", "head_size", "embed")
        bias = config.attention_bias == "all"
        self.output = Linear("BTNH,NHD->BTD", (n, h, d), axes, rngs, fan_in=n * h, dtype=dtype, bias=bias)
        norm = partial(Norm, h, rngs, epsilon=config.norm_epsilon, offset=config.norm_offset, axis="head_size")
        self.query_norm = norm() if config.query_key_norm else None
        self.key_norm = norm() if config.query_key_norm else None


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); or both at once; with more norms behind them where asked for."""

    def __init__(self, config: TowerConfig, dtype, rngs: nnx.Rngs):
        self.config = config
        both = config.norm_placement == "both"
        self.attention_norm = tower_norm(config, rngs)
        self.attention = SelfAttention(config, rngs, dtype)
        self.attention_output_norm = tower_norm(config, rngs) if both else None
        self.mlp_norm = tower_norm(config, rngs)
        mlp = GatedMLP if config.gated_mlp else MLP
        self.mlp = mlp(config.width, config.mlp_width, config.activation, config.mlp_bias, rngs, dtype)
        self.mlp_output_norm = tower_norm(config, rngs) if both else None

    def project(
        self, x: Float[Array, "B T D"], local_positions: Int[Array, "B T"], layer: Layer
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Query, key and value of each slot, the first two turned by their local position where RoPE does."""
        y = self.attention_norm(x)
        query, key = self.attention.query(y), self.attention.key(y)
        if self.attention.query_norm is not None and self.attention.key_norm is not None:
            query, key = self.attention.query_norm(query), self.attention.key_norm(key)
        if self.config.positions == "rotary":
            by = rotary.rotation(self.config, layer)
            query, key = rotary.rotate(query, local_positions, by), rotary.rotate(key, local_positions, by)
        return query, key, self.attention.value(y)

    def attend(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S K H"],
        value: Float[Array, "B S K H"],
        visible: Range,
        layer: Layer,
        distance_bias: Float[Array, "N W"] | None,
    ) -> Float[Array, "B T N H"]:
        """What each query gathers from its visible slots, the layer's window narrowing them."""
        start, end = visible
        window = rotary.window(self.config, layer)
        if window is not None:
            start = jnp.maximum(start, end - window)
        scale, softcap = self.config.attention_scale, self.config.attention_softcap
        return interval_attention(
            query, key, value, start, end, scale=scale, softcap=softcap, distance_bias=distance_bias
        )

    def finish(self, x: Float[Array, "B T D"], attended: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        """The block's output, given its input and what attention gathered."""
        a = self.attention.output(attended)
        if self.attention_output_norm is not None:
            a = self.attention_output_norm(a)
        y = self.mlp(self.mlp_norm(x if self.config.parallel else x + a))
        if self.mlp_output_norm is not None:
            y = self.mlp_output_norm(y)
        return x + a + y


class Embedding(nnx.Module):
    """The token table, for input and, where the head is tied, output; and the table of learned positions."""

    def __init__(self, config: TowerConfig, dtype, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        shape = (config.vocab_size, config.width)
        self.table = param(rngs, shape, ("vocab", "embed"), fan_in=config.width)
        learned = config.positions == "learned"
        shape = ((config.max_positions or 0) + config.position_offset, config.width)
        self.position_table = param(rngs, shape, (None, "embed"), fan_in=config.width) if learned else None

    def __call__(self, tokens: Int[Array, "B T"], added: Float[Array, "A D"] | None = None) -> Float[Array, "B T D"]:
        """The rows of ``tokens``; those from vocab_size on are rows of ``added``."""
        own = self.config.vocab_size
        if added is None:
            rows = jnp.take(self.table[...], tokens, axis=0)  # a token from elsewhere gives NaN, not another's row
        else:
            rows = jnp.take(self.table[...], tokens, axis=0, mode="clip")
            rows = jnp.where((tokens < own)[..., None], rows, jnp.take(added, tokens - own, axis=0, mode="clip"))
        return (rows * self.config.embedding_scale).astype(self.dtype)

    def add_positions(self, x: Float[Array, "B T D"], local_positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """x plus the learned vector of each local position, where the tower has learned positions."""
        if self.position_table is None:
            return x
        places = local_positions + self.config.position_offset
        return x + jnp.take(self.position_table[...], places, axis=0, mode="clip").astype(x.dtype)


class AddedEmbedding(nnx.Module):
    """Rows of tokens that fusion adds to a tower's vocabulary: for input and, where the head is tied, output."""

    def __init__(self, config: TowerConfig, count: int, rngs: nnx.Rngs):
        shape, axes = (count, config.width), (None, "embed")
        self.table = param(rngs, shape, axes, fan_in=config.width)
        self.head_table = None if config.tied_head else param(rngs, shape, axes, fan_in=config.width)


class RelativeBias(nnx.Module):
    """T5's relative positions: a bias per bucket of distances and head, shared by all layers."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs):
        shape = (rotary.RELATIVE_BUCKETS, config.num_heads)
        self.table = param(rngs, shape, (None, "heads"), fan_in=1)

    def __call__(self) -> Float[Array, "N W"]:
        """The bias of each distance back, the last one for all beyond."""
        return jnp.take(self.table[...], rotary.relative_buckets(), axis=0).T


class Head(nnx.Module):
    """An output matrix of its own, for towers whose head is not tied."""

    def __init__(self, config: TowerConfig, dtype, rngs: nnx.Rngs):
        self.table = param(rngs, (config.vocab_size, config.width), ("vocab", "embed"), fan_in=config.width)


def logits_of(config: TowerConfig, x: Float[Array, "B T D"], table: Float[Array, "V D"]) -> Float[Array, "B T V"]:
    """Products with every row of the table, accumulated and returned in float32, scaled and capped."""
    logits = jnp.einsum("BTD,VD->BTV", x, table.astype(x.dtype), preferred_element_type=jnp.float32)
    if config.logit_scale != 1:
        logits = logits * config.logit_scale
    if config.logit_softcap is not None:
        logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
    return logits
