"""Shared attention: a block attends to its own tower's tokens and to the other tower's in one softmax.

Mixture-of-Transformers (arXiv 2411.04996) and LMFusion (arXiv 2412.15188) give each modality its own weights and one
attention over all tokens. Their towers are equal in depth and heads; here zips say which blocks attend to each other,
and where the shapes of keys differ, a linear map brings the source's keys and values into the receiver's heads (which
the papers do not need, and do not have).

Keys are those of the source's own block, turned by its own local positions; the query is the receiver's, as are the
scale and the soft cap of the scores.

The papers' models start from the shared softmax. To start from the towers instead, a gate scales the share of the
softmax that the source's keys get. With p the share of the source's keys in the softmax over all keys, o the attention
over the receiver's own keys alone and o_z that over the source's alone,

    attended = o + tanh(attention_gate) * p * (o_z - o)

At gate 0 that is o exactly, at tanh(gate) = 1 exactly the one softmax, and the gradient of the gate at 0 is
p * (o_z - o): bounded, and not 0. (A bias on the source's scores is the identity only at minus infinity, where its
gradient vanishes; a factor on its exponentials has an unbounded gradient at 0, and no sign.)

Axis letters: B rows, S source positions, G key/value heads of the source, I its head_dim, K key/value heads of the
receiver, H its head_dim.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zipper_jax.models.config_parts import TowerConfig, ZipConfig
from zipper_jax.models.fusion.base import CacheEntry, Fusion, SourceState, register
from zipper_jax.models.layers import Linear
from zipper_jax.models.module import param


class KeyValue(NamedTuple):
    """Keys and values of the source's tokens, in the receiver's heads."""

    key: Any
    value: Any


@dataclass(frozen=True)
class SharedAttentionOptions:
    """Fields of ``ZipConfig.options``.

    Attributes:
        gate: Whether there is a gate, ``attention_gate``, initially ``ZipConfig.gate_init``. Without one, the softmax
            over all keys is used from the start, as in the papers.
        maps: Which zips map keys and values: those whose towers have heads of unequal shapes, or all.
    """

    gate: bool = True
    maps: Literal["where_unequal", "always"] = "where_unequal"


@register("shared_attention")
class SharedAttention(Fusion):
    """The other block's keys and values in the block's own softmax; see the module's docstring."""

    placement = "inside"
    Options = SharedAttentionOptions
    fields = ("gate_init",)
    sources = ("key_map", "value_map")

    def __init__(
        self, config: ZipConfig, source: TowerConfig, receiver: TowerConfig, *, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        options = self.options(config)
        inner, outer = (source.num_kv_heads, source.head_dim), (receiver.num_kv_heads, receiver.head_dim)

        def new() -> Linear | None:
            if inner == outer and options.maps == "where_unequal":
                return None
            # Sharded as what it computes, and as the cache keeps it: by the receiver's heads.
            axes = (None, None, "kv_heads", "head_size")
            fan_in = inner[0] * inner[1]
            return Linear("BSGI,GIKH->BSKH", (*inner, *outer), axes, fan_in=fan_in, outputs=2, dtype=dtype, rngs=rngs)

        self.key_map, self.value_map = new(), new()
        self.attention_gate = param((), (), use="gate", fill=config.gate_init) if options.gate else None

    def read(self, source: SourceState) -> KeyValue:
        """Keys and values of the source's own block, mapped into the receiver's heads."""
        assert source.heads is not None
        key, value = source.heads()
        if self.key_map is None or self.value_map is None:
            return KeyValue(key, value)
        return KeyValue(self.key_map(key), self.value_map(value))

    def keys_and_values(self, kept: KeyValue) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """What `read` returned."""
        return kept.key, kept.value

    def share(self) -> Float[Array, ""] | None:
        """tanh of the gate; None without one."""
        return None if self.attention_gate is None else jnp.tanh(self.attention_gate[...])

    @classmethod
    def cache(cls, config: ZipConfig, source: TowerConfig, receiver: TowerConfig) -> KeyValue:
        """Keys and values, [K, H] each."""
        entry = CacheEntry((receiver.num_kv_heads, receiver.head_dim), ("kv_heads", None))
        return KeyValue(entry, entry)
