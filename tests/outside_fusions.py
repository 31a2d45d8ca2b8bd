"""Three fusions from outside the package, as a user would write them: no line of zipper_jax knows of them.

Each has its definition in float64 NumPy beside it, for tests/reference.py.

Axis letters: B rows, T receiver positions, S source positions, D receiver embed_dim, C source embed_dim, K key/value
heads, H head_dim.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx

from zipper_jax.models.fusion import CacheEntry, Fusion
from zipper_jax.models.layers import Linear
from zipper_jax.models.module import Module
from zipper_jax.ops.interval_attention import interval_attention


class _Attention(Module):
    def __init__(self, d, n, k, h, *, rngs, dtype):
        kind = {"fan_in": d, "dtype": dtype, "outputs": 2, "rngs": rngs}
        self.query = Linear("BTD,DNH->BTNH", (d, n, h), ("embed", "heads", "head_size"), **kind)
        self.key = Linear("BSD,DKH->BSKH", (d, k, h), ("embed", "kv_heads", "head_size"), **kind)
        self.value = Linear("BSD,DKH->BSKH", (d, k, h), ("embed", "kv_heads", "head_size"), **kind)
        axes = ("heads", "head_size", "embed")
        self.output = Linear("BTNH,NHD->BTD", (n, h, d), axes, fan_in=n * h, dtype=dtype, rngs=rngs)


class OneWay(Fusion):
    """CALM's form (arXiv 2401.02412): a linear projection, then cross-attention that is added without a gate."""

    sources = ("projection", "attention/key", "attention/value")

    @dataclass(frozen=True)
    class Options:
        scale: float = 1.0

    def __init__(self, config, source, receiver, *, rngs, dtype=jnp.float32):
        self.scale = self.options(config).scale
        self.projection = nnx.Linear(source.embed_dim, receiver.embed_dim, dtype=dtype, rngs=rngs)  # a plain Flax layer
        n, k, h = receiver.num_heads, receiver.num_kv_heads, receiver.head_dim
        self.attention = _Attention(receiver.embed_dim, n, k, h, rngs=rngs, dtype=dtype)

    def read(self, source):
        h = self.projection(source.state)
        return self.attention.key(h), self.attention.value(h)

    def effect(self, m, kept, visible, positions):
        attended = interval_attention(self.attention.query(m), *kept, *visible)
        return self.scale * self.attention.output(attended)

    @classmethod
    def cache(cls, config, source, receiver):
        entry = CacheEntry((receiver.num_kv_heads, receiver.head_dim), ("kv_heads", None))
        return entry, entry


def one_way_effect(z, p, m, m_source, mask, attend):
    """f_cross(m, h) - m in float64; ``attend(q, k, v, mask)``."""
    h = m_source @ p["projection"]["kernel"] + p["projection"]["bias"]
    q, k, v = (
        np.einsum("td,dnh->tnh", x, p["attention"][n]["kernel"]) for x, n in ((m, "query"), (h, "key"), (h, "value"))
    )
    return z.options["scale"] * np.einsum("tnh,nhd->td", attend(q, k, v, mask), p["attention"]["output"]["kernel"])


class SharedAttention(Fusion):
    """One softmax over the block's own keys and the other block's, mapped into the receiver's heads (in the way of
    Mixture-of-Transformers, arXiv 2411.04996, whose towers have equal heads)."""

    placement = "inside"
    sources = ("key_map", "value_map")

    def __init__(self, config, source, receiver, *, rngs, dtype=jnp.float32):
        shape = (source.num_kv_heads, source.head_dim, receiver.num_kv_heads, receiver.head_dim)
        kind = {"fan_in": shape[0] * shape[1], "dtype": dtype, "outputs": 2, "rngs": rngs}
        axes = ("kv_heads", "head_size", None, None)
        self.key_map = Linear("BSGI,GIKH->BSKH", shape, axes, **kind)
        self.value_map = Linear("BSGI,GIKH->BSKH", shape, axes, **kind)

    def read(self, source):
        key, value = source.heads()
        return {"key": self.key_map(key), "value": self.value_map(value)}

    def keys_and_values(self, kept):
        return kept["key"], kept["value"]

    @classmethod
    def cache(cls, config, source, receiver):
        entry = CacheEntry((receiver.num_kv_heads, receiver.head_dim), ("kv_heads", None))
        return {"key": entry, "value": entry}


def shared_keys_and_values(p, key, value):
    """The source's keys and values in the receiver's heads, float64."""
    return tuple(np.einsum("sgi,gikh->skh", x, p[n]["kernel"]) for x, n in ((key, "key_map"), (value, "value_map")))


class SoftTokens(Fusion):
    """The source's states, mapped into the receiver's embed_dim, as tokens of its own sequence (SLAM-ASR, arXiv
    2402.08846, without its stacking of neighbours)."""

    placement = "sequence"
    sources = ("projection",)

    def __init__(self, config, source, receiver, *, rngs, dtype=jnp.float32):
        shape, axes = (source.embed_dim, receiver.embed_dim), (None, "embed")
        self.projection = Linear("BSC,CD->BSD", shape, axes, fan_in=source.embed_dim, dtype=dtype, bias=True, rngs=rngs)

    def read(self, source):
        return self.projection(source.state)


def soft_tokens(p, m_source):
    """Float64 states [S, D] that enter the receiver's sequence."""
    return m_source @ p["projection"]["kernel"] + p["projection"]["bias"]
