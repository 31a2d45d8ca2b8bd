"""One direction of a zip: projection from the source tower, gated cross-attention and feed-forward into the receiver.

Paper §3 (Flamingo's gated cross-attention), written as the *effect* that is added to the pre-fusion state m:

    h  = ReLU(g(m_source))                            the cross-tower projection, into the receiver's width
    a  = tanh(attention_gate) * attend(norm(m), h)
    f  = tanh(mlp_gate) * mlp(norm(m + a))
    effect = a + f                                    so that several zips at one block add up, and gates at 0 add 0

Axis letters: B rows, T receiver slots, S source slots, D receiver width, C source width, N query heads, K key/value
heads, H head size.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zipper_jax.models.config import TowerConfig, ZipConfig
from zipper_jax.models.layers import MLP, Linear, Norm, Projection
from zipper_jax.models.modules import param
from zipper_jax.ops.interval_attention import interval_attention, interval_weights


class CrossAttention(nnx.Module):
    """The four linear maps of cross-attention."""

    def __init__(self, width: int, n: int, k: int, h: int, bias: bool, rngs: nnx.Rngs, dtype):
        kind = {"fan_in": width, "dtype": dtype, "bias": bias, "outputs": 2}
        self.query = Linear("BTD,DNH->BTNH", (width, n, h), ("embed", "heads", "head_size"), rngs, **kind)
        self.key = Linear("BSD,DKH->BSKH", (width, k, h), ("embed", "kv_heads", "head_size"), rngs, **kind)
        self.value = Linear("BSD,DKH->BSKH", (width, k, h), ("embed", "kv_heads", "head_size"), rngs, **kind)
        axes = ("heads", "head_size", "embed")
        self.output = Linear("BTNH,NHD->BTD", (n, h, width), axes, rngs, fan_in=n * h, dtype=dtype, bias=bias)


class ZipDirection(nnx.Module):
    """What flows from ``source`` into ``receiver`` at one zip."""

    def __init__(self, config: ZipConfig, source: TowerConfig, receiver: TowerConfig, dtype, rngs: nnx.Rngs):
        self.config = config
        width = receiver.width
        n = config.num_heads or receiver.num_heads
        k, h = config.kv_shape(receiver)
        self.projection = Projection(config.projection, source.width, width, rngs, dtype)
        # One assignment each: NNX refuses an attribute that is None first and a parameter later.
        learned, shape = config.positions == "learned", (config.max_positions, width)
        self.source_position_table = param(rngs, shape, (None, "embed"), fan_in=width) if learned else None
        self.query_position_table = param(rngs, shape, (None, "embed"), fan_in=width) if learned else None
        self.source_norm = Norm(width, rngs, kind=config.norm) if config.normalise_source else None
        self.attention_norm = Norm(width, rngs, kind=config.norm)
        self.attention = CrossAttention(width, n, k, h, config.bias, rngs, dtype)
        self.attention_gate = param(rngs, (), (), fill=config.gate_init)
        self.mlp_norm = Norm(width, rngs, kind=config.norm)
        self.mlp = MLP(width, config.mlp_multiplier * width, config.mlp_activation, config.bias, rngs, dtype)
        self.mlp_gate = param(rngs, (), (), fill=config.gate_init)

    def read(
        self, m_source: Float[Array, "B S C"], local_positions: Int[Array, "B S"]
    ) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """Keys and values of the source's pre-fusion state. Computed once per source token; decoding caches them."""
        h = self.projection(m_source)
        if self.source_norm is not None:
            h = self.source_norm(h)
        h = _add_positions(h, self.source_position_table, local_positions)  # behind the norm, or it would drown there
        return self.attention.key(h), self.attention.value(h)

    def effect(
        self,
        m: Float[Array, "B T D"],
        key: Float[Array, "B S K H"],
        value: Float[Array, "B S K H"],
        start: Int[Array, "B T"],
        end: Int[Array, "B T"],
        local_positions: Int[Array, "B T"],
    ) -> Float[Array, "B T D"]:
        """What is added to the receiver's pre-fusion state m; exactly 0 while both gates are 0."""
        query = self._query(m, local_positions)
        attended = self.attention.output(interval_attention(query, key, value, start, end))
        if self.config.bias:  # a bias must not leak into rows that see nothing
            attended = jnp.where((end > start)[..., None], attended, 0)
        a = _gate(self.attention_gate, m) * attended
        f = _gate(self.mlp_gate, m) * self.mlp(self.mlp_norm(m + a))
        if self.config.feed_forward == "where_visible":
            f = jnp.where((end > start)[..., None], f, 0)
        return a + f

    def weights(self, m, key, start, end, local_positions) -> Float[Array, "B K G T S"]:
        """The attention weights behind ``effect``, for pictures."""
        return interval_weights(self._query(m, local_positions), key, start, end)

    def _query(self, m, local_positions) -> Float[Array, "B T N H"]:
        return self.attention.query(_add_positions(self.attention_norm(m), self.query_position_table, local_positions))


def _add_positions(x: Array, table: nnx.Param | None, local_positions: Int[Array, "B T"]) -> Array:
    """x + a learned vector per local position, where there is a table; positions past it share its last row."""
    if table is None:
        return x
    return x + jnp.take(table[...], local_positions, axis=0, mode="clip").astype(x.dtype)


def _gate(gate: nnx.Param, x: Array) -> Array:
    return jnp.tanh(gate[...]).astype(x.dtype)
