"""The paper's fusion: a projection from the source tower, gated cross-attention and feed-forward into the receiver.

Paper §3 (Flamingo's gated cross-attention), written as the *effect* that is added to the pre-fusion state m:

    h  = ReLU(g(m_source))                            the cross-tower projection, to the receiver's embed_dim
    a  = tanh(attention_gate) * attend(norm(m), h)
    f  = tanh(mlp_gate) * mlp(norm(m + a))
    effect = a + f                                    so that several zips at one block add up, and gates at 0 add 0

Axis letters: B rows, T receiver positions, S source positions, D receiver embed_dim, C source embed_dim, N query heads,
K key/value heads, G = N // K, H head_dim.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zipper_jax.models.config_parts import FUSION_FIELDS, TowerConfig, ZipConfig
from zipper_jax.models.fusion.base import CacheEntry, Fusion, SourceState, register
from zipper_jax.models.layers import MLP, Linear, Norm, Projection, side_by_side
from zipper_jax.models.masks import Range
from zipper_jax.models.module import Module, param
from zipper_jax.models.rotary import Rotation, frequencies, rotate, turn
from zipper_jax.ops.interval_attention import interval_attention, interval_weights
from zipper_jax.utils.errors import UserError


class KeyValue(NamedTuple):
    """Keys and values of the source's tokens."""

    key: Any
    value: Any


class CrossAttention(Module):
    """Cross-attention with N query heads, K key/value heads and head_dim H; all inputs have embed_dim D (``width``).

    Attributes:
        frequencies: Radians per position by which RoPE turns (queries, keys); None: positions are not used.
        query_offset, key_offset: Added before they are turned, starting at ``diagonal``; None for 0.
    """

    def __init__(
        self,
        width: int,
        n: int,
        k: int,
        h: int,
        *,
        rngs: nnx.Rngs,
        bias: bool = False,
        dtype: Any = jnp.float32,
        frequencies: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
        diagonal: float = 0.0,
    ):
        self.frequencies = frequencies

        def offset(heads: int, axis: str) -> nnx.Param | None:
            return param((heads, h), (axis, "head_size"), use="scale", fill=diagonal) if diagonal else None

        self.query_offset, self.key_offset = offset(n, "heads"), offset(k, "kv_heads")
        kind: dict[str, Any] = {"fan_in": width, "dtype": dtype, "bias": bias, "outputs": 2, "rngs": rngs}
        self.query = Linear("BTD,DNH->BTNH", (width, n, h), ("embed", "heads", "head_size"), **kind)
        self.key = Linear("BSD,DKH->BSKH", (width, k, h), ("embed", "kv_heads", "head_size"), **kind)
        self.value = Linear("BSD,DKH->BSKH", (width, k, h), ("embed", "kv_heads", "head_size"), **kind)
        axes = ("heads", "head_size", "embed")
        self.output = Linear("BTNH,NHD->BTD", (n, h, width), axes, fan_in=n * h, dtype=dtype, bias=bias, rngs=rngs)

    def keys_and_values(self, h: Float[Array, "B S D"], positions: Int[Array, "B S"]) -> KeyValue:
        """Keys and values, [B, S, K, H] each."""
        key, value = side_by_side(h, self.key, self.value)
        return KeyValue(self._turned(key, self.key_offset, positions, 1), value)

    def queries(self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]) -> Float[Array, "B T N H"]:
        """Queries of x."""
        return self._turned(self.query(x), self.query_offset, positions, 0)

    def _turned(
        self, x: Float[Array, "B T N H"], offset: nnx.Param | None, positions: Int[Array, "B T"], which: int
    ) -> Float[Array, "B T N H"]:
        if self.frequencies is None:
            return x
        x = x if offset is None else x + offset[...].astype(x.dtype)
        return rotate(x, turn(positions, Rotation(jnp.asarray(self.frequencies[which]))))

    def __call__(
        self, x: Float[Array, "B T D"], kept: KeyValue, visible: Range, positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Attention of each position of x over the visible keys; exactly 0 where no key is visible."""
        start, end = visible
        query = self.queries(x, positions)
        with jax.named_scope("cross_attention"):
            attended = interval_attention(query, kept.key, kept.value, start, end)
        y = self.output(attended)
        # Without visible keys the output bias must not contribute.
        return y if self.output.bias is None else jnp.where((end > start)[..., None], y, 0)


@register("gated_cross_attention")
class GatedCrossAttention(Fusion):
    """Cross-tower projection, then Flamingo's gated cross-attention and feed-forward; fields are those of ZipConfig."""

    fields = FUSION_FIELDS
    sources = (
        "projection",
        "source_position_table",
        "source_norm",
        "attention/key",
        "attention/key_offset",
        "attention/value",
    )

    def __init__(
        self, config: ZipConfig, source: TowerConfig, receiver: TowerConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        self.config = config
        width = receiver.embed_dim
        n, k, h = _heads(config, receiver)
        self.projection = Projection(config.projection, source.embed_dim, width, rngs=rngs, dtype=dtype)

        def positions() -> nnx.Param | None:
            learned, shape = config.positions == "learned", (config.max_positions, width)
            return param(shape, (None, "embed"), use="lookup", fan_in=width) if learned else None

        self.source_position_table, self.query_position_table = positions(), positions()
        self.source_norm = Norm(width, kind=config.norm, rngs=rngs) if config.normalise_source else None
        self.attention_norm = Norm(width, kind=config.norm, rngs=rngs)
        turns = _frequencies(config, h) if config.positions == "rotary" else None
        self.attention = CrossAttention(
            width, n, k, h, bias=config.bias, dtype=dtype, rngs=rngs, frequencies=turns, diagonal=config.diagonal_init
        )
        self.attention_gate = param((), (), use="gate", fill=config.gate_init)
        self.mlp_norm = Norm(width, kind=config.norm, rngs=rngs)
        hidden = config.mlp_multiplier * width
        self.mlp = MLP(width, hidden, config.mlp_activation, bias=config.bias, dtype=dtype, rngs=rngs)
        self.mlp_gate = param((), (), use="gate", fill=config.gate_init)

    def read(self, source: SourceState) -> KeyValue:
        """Keys and values of the source's pre-fusion state."""
        h = self.projection(source.state)
        if self.source_norm is not None:
            h = self.source_norm(h)
        # After the norm, which would otherwise rescale the position embeddings.
        h = _add_positions(h, self.source_position_table, source.positions)
        return self.attention.keys_and_values(h, source.positions)

    def effect(
        self, m: Float[Array, "B T D"], kept: KeyValue, visible: Range, positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """a + f, see the module's docstring; exactly 0 while both gates are 0."""
        start, end = visible
        x = self._query_input(m, positions)
        a = _gate(self.attention_gate, m) * self.attention(x, kept=kept, visible=visible, positions=positions)
        f = _gate(self.mlp_gate, m) * self.mlp(self.mlp_norm(m + a))
        if self.config.feed_forward == "where_visible":
            f = jnp.where((end > start)[..., None], f, 0)
        return a + f

    def weights(
        self, m: Float[Array, "B T D"], kept: KeyValue, visible: Range, positions: Int[Array, "B T"]
    ) -> Float[Array, "B K G T S"]:
        """The attention weights of `effect`."""
        query = self.attention.queries(self._query_input(m, positions), positions)
        return interval_weights(query, kept.key, *visible)

    def _query_input(self, m: Array, positions: Array) -> Float[Array, "B T D"]:
        return _add_positions(self.attention_norm(m), self.query_position_table, positions)

    @classmethod
    def cache(cls, config: ZipConfig, source: TowerConfig, receiver: TowerConfig) -> KeyValue:
        """Keys and values, [K, H] each."""
        entry = CacheEntry(_heads(config, receiver)[1:], ("kv_heads", None))
        return KeyValue(entry, entry)

    @classmethod
    def preserves(cls, config: ZipConfig) -> bool:
        """Not with the paper's feed-forward, which fires everywhere."""
        return config.feed_forward == "where_visible"

    @classmethod
    def heads(cls, config: ZipConfig, receiver: TowerConfig) -> tuple[int, int]:
        """Query heads and head_dim."""
        n, _, h = _heads(config, receiver)
        return n, h

    @classmethod
    def check(cls, config: ZipConfig, source: TowerConfig, receiver: TowerConfig, name: str) -> None:
        """UserError if num_kv_heads does not divide num_heads, or there is no projection and embed_dim differs."""
        super().check(config, source, receiver, name)
        cls.check_projection(config, source, receiver, name)
        heads, kv_heads, _ = _heads(config, receiver)
        if heads % kv_heads:
            raise UserError(
                f"zip {config.name} into {name}: num_heads = {heads} must be a multiple of num_kv_heads = {kv_heads} "
                "(unset fields are the tower's)"
            )


def _heads(config: ZipConfig, receiver: TowerConfig) -> tuple[int, int, int]:
    """num_heads, num_kv_heads and head_dim of the cross-attention into ``receiver``."""
    k = config.num_kv_heads or config.num_heads or receiver.num_kv_heads
    return config.num_heads or receiver.num_heads, k, config.head_dim or receiver.head_dim


def _frequencies(config: ZipConfig, h: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Radians per local position of the receiver and of the source."""
    (into,), scales = config.receivers, config.position_scales or {}
    plain = frequencies(config.rope_base, h - h % 2)

    def of(tower: str) -> tuple[float, ...]:
        return tuple((scales.get(tower, 1.0) * plain).tolist())

    return of(into), of(config.other(into))


def _add_positions(x: Array, table: nnx.Param | None, positions: Int[Array, "B T"]) -> Array:
    """x + the learned embedding of each local position, if there is a table; positions past it share its last row."""
    if table is None:
        return x
    return x + jnp.take(table[...], positions, axis=0, mode="clip").astype(x.dtype)


def _gate(gate: nnx.Param, x: Array) -> Array:
    return jnp.tanh(gate[...]).astype(x.dtype)
