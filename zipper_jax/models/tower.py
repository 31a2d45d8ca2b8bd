"""One tower: embedding, blocks, final norm, head.

A block comes apart into ``project`` and ``finish`` around the attention itself, so that training (attention over the
row) and decoding (attention over a cache) run the same code.

Axis letters: B rows, T slots, D width, V vocabulary, N query heads, K key/value heads, H head size.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zipper_jax.models.config import TowerConfig
from zipper_jax.models.layers import GatedMLP, Linear, Norm, rotate
from zipper_jax.models.modules import param


class SelfAttention(nnx.Module):
    """The four linear maps of grouped-query attention."""

    def __init__(self, config: TowerConfig, rngs: nnx.Rngs, dtype):
        d, n, k, h = config.width, config.num_heads, config.num_kv_heads, config.head_size
        kind = {"fan_in": d, "dtype": dtype, "outputs": 2}
        self.query = Linear("BTD,DNH->BTNH", (d, n, h), ("embed", "heads", "head_size"), rngs, **kind)
        self.key = Linear("BTD,DKH->BTKH", (d, k, h), ("embed", "kv_heads", "head_size"), rngs, **kind)
        self.value = Linear("BTD,DKH->BTKH", (d, k, h), ("embed", "kv_heads", "head_size"), rngs, **kind)
        axes = ("heads", "head_size", "embed")
        self.output = Linear("BTNH,NHD->BTD", (n, h, d), axes, rngs, fan_in=n * h, dtype=dtype)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TowerConfig, dtype, rngs: nnx.Rngs):
        self.rope_base = config.rope_base
        self.attention_norm = Norm(config.width, rngs, epsilon=config.norm_epsilon)
        self.attention = SelfAttention(config, rngs, dtype)
        self.mlp_norm = Norm(config.width, rngs, epsilon=config.norm_epsilon)
        self.mlp = GatedMLP(config.width, config.mlp_width, config.activation, rngs, dtype)

    def project(
        self, x: Float[Array, "B T D"], local_positions: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        """Query, key and value of each slot, the first two turned by their local position."""
        y = self.attention_norm(x)
        query = rotate(self.attention.query(y), local_positions, self.rope_base)
        key = rotate(self.attention.key(y), local_positions, self.rope_base)
        return query, key, self.attention.value(y)

    def finish(self, x: Float[Array, "B T D"], attended: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        """The block's output, given its input and what attention gathered."""
        x = x + self.attention.output(attended)
        return x + self.mlp(self.mlp_norm(x))


class Embedding(nnx.Module):
    """The token table, for input and, where the head is tied, output."""

    def __init__(self, config: TowerConfig, dtype, rngs: nnx.Rngs):
        self.scale, self.dtype = config.embedding_scale, dtype
        shape = (config.vocab_size, config.width)
        self.table = param(rngs, shape, ("vocab", "embed"), fan_in=config.width)

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return (jnp.take(self.table[...], tokens, axis=0) * self.scale).astype(self.dtype)


class Head(nnx.Module):
    """An output matrix of its own, for towers whose head is not tied."""

    def __init__(self, config: TowerConfig, dtype, rngs: nnx.Rngs):
        self.table = param(rngs, (config.vocab_size, config.width), ("vocab", "embed"), fan_in=config.width)


def logits_of(x: Float[Array, "B T D"], table: Float[Array, "V D"]) -> Float[Array, "B T V"]:
    """Products with every row of the table, accumulated and returned in float32."""
    return jnp.einsum("BTD,VD->BTV", x, table.astype(x.dtype), preferred_element_type=jnp.float32)
