"""Positions in self-attention: rotary frequencies and their scaling, T5's relative position buckets.

Frequencies are computed in float64 on the host from the configuration, one row per layer; frequencies shared by all
layers are compile-time constants.

Axis letters: B rows, T positions, N heads, H head_dim, R rotated pairs of a head, L layers, W distances.
"""

import math
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zipper_jax.models.config_parts import RopeScaling, TowerConfig

Layer = int | np.integer | Int[Array, ""]
"""A layer's number, counted from 0; traced inside a scan."""

RELATIVE_BUCKETS = 32
RELATIVE_DISTANCES = 129  # 0 to 127, and 128 for all beyond


class Rotation(NamedTuple):
    """RoPE parameters of one layer: radians per position, and the factor on sine and cosine."""

    frequencies: Float[Array, " R"]
    amplitude: float | Float[Array, ""] = 1.0


def rotation(config: TowerConfig, layer: Layer) -> Rotation:
    """The rotation of a layer."""
    frequencies, amplitudes = _rotations(config)
    if len(frequencies) == 1:
        return Rotation(jnp.asarray(frequencies[0]), float(amplitudes[0]))
    return Rotation(jnp.asarray(frequencies)[layer], jnp.asarray(amplitudes)[layer])


def window(config: TowerConfig, layer: Layer) -> int | Int[Array, ""] | None:
    """Sliding window of a layer, in tokens, the query included; None when no layer has one."""
    if not any(config.window_of):
        return None
    sizes = [size or np.iinfo(np.int32).max // 2 for size in config.window_of]
    return sizes[0] if len(set(sizes)) == 1 else jnp.asarray(sizes, jnp.int32)[layer]


class Turn(NamedTuple):
    """Sine and cosine of each position's angles, times the rotation's amplitude; float32."""

    sin: Float[Array, "B T 1 R"]
    cos: Float[Array, "B T 1 R"]


@jax.named_scope("rope")
def turn(positions: Int[Array, "B T"], by: Rotation) -> Turn:
    """The turn of each position.

    XLA on CPU would compute sines again for every head and every gradient, in each operation that reads them. It fuses
    nothing across a branch: there positions that are all 0 need none, and others get theirs once.
    """

    def plain(positions: Array, by: Rotation) -> Turn:
        angles = positions[..., None, None].astype(jnp.float32) * by.frequencies
        return Turn(by.amplitude * jnp.sin(angles), by.amplitude * jnp.cos(angles))

    def none(positions: Array, by: Rotation) -> Turn:
        zeros = positions[..., None, None].astype(jnp.float32) * by.frequencies
        return Turn(by.amplitude * zeros, by.amplitude * (1.0 + zeros))

    def branch(positions: Array, by: Rotation) -> Turn:
        return jax.lax.cond(jnp.any(positions != 0), plain, none, positions, by)

    by = jax.tree.map(jnp.asarray, by)
    if positions.shape[1] == 1:  # a token of decoding
        return plain(positions, by)
    return jax.lax.platform_dependent(positions, by, cpu=branch, default=plain)


@jax.named_scope("rope")
def rotate(x: Float[Array, "B T N H"], by: Turn) -> Float[Array, "B T N H"]:
    """RoPE (arXiv 2104.09864), half-split: of the first 2R elements, i is paired with i + R; the rest is unchanged."""
    turned_size = 2 * by.sin.shape[-1]
    first, second = jnp.split(x[..., :turned_size].astype(jnp.float32), 2, axis=-1)
    parts = [first * by.cos - second * by.sin, second * by.cos + first * by.sin]
    if turned_size < x.shape[-1]:
        parts.append(x[..., turned_size:].astype(jnp.float32))
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)


def relative_buckets() -> Int[np.ndarray, " W"]:
    """T5's bucket (arXiv 1910.10683) of each distance to an earlier key: exact up to 15, then logarithmic up to 128."""
    exact = RELATIVE_BUCKETS // 2
    distances = np.arange(RELATIVE_DISTANCES)
    far = np.log(np.maximum(distances, 1).astype(np.float32) / exact) / math.log((RELATIVE_DISTANCES - 1) / exact)
    far = np.minimum(exact + (far * (RELATIVE_BUCKETS - exact)).astype(np.int32), RELATIVE_BUCKETS - 1)
    return np.where(distances < exact, distances, far)


@cache
def _rotations(config: TowerConfig) -> tuple[Float[np.ndarray, "L R"], Float[np.ndarray, " L"]]:
    """(frequencies, amplitudes) of every layer; L = 1 when all layers are the same."""
    plain = frequencies(config.rope_base, config.rotary_size)
    scaled, amplitude = _scaled(plain, config.rope_base, config.rope_scaling)
    near = None if config.window_rope_base is None else frequencies(config.window_rope_base, config.rotary_size)
    layers = [
        (scaled, amplitude) if near is None or not limited else (near, 1.0) for limited in map(bool, config.window_of)
    ]
    if all(frequencies is layers[0][0] for frequencies, _ in layers):
        layers = layers[:1]
    return np.stack([f for f, _ in layers]).astype(np.float32), np.array([a for _, a in layers], np.float32)


def frequencies(base: float, size: int) -> Float[np.ndarray, " R"]:
    """Radians per position of each of ``size`` / 2 pairs, from 1 towards 1 / ``base`` (arXiv 2104.09864)."""
    return base ** (-np.arange(0, size, 2, dtype=np.float64) / size)


def _scaled(plain: Float[np.ndarray, " R"], base: float, scaling: RopeScaling | None) -> tuple[np.ndarray, float]:
    if scaling is None:
        return plain, 1.0
    divided = plain / scaling.factor
    if scaling.kind == "linear":
        return divided, 1.0
    if scaling.kind == "llama3":
        turns = scaling.original_length * plain / (2 * math.pi)  # within the original length
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return divided * (1 - kept) + plain * kept, 1.0
    size = 2 * len(plain)

    def index(turns: float) -> float:
        """The (fractional) index of the frequency with this many rotations in the original length."""
        return size * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = index(scaling.beta_fast), index(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    last += 0.001 if first == last else 0
    kept = 1 - np.clip((np.arange(size // 2) - first) / (last - first), 0, 1)
    return divided * (1 - kept) + plain * kept, scaling.amplitude
