"""The small parts: linear maps, norms, feed-forwards, projections.

Axis letters: B rows, T slots, D width, E output width, F hidden width.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zipper_jax.models.config import ProjectionConfig
from zipper_jax.models.modules import param

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "squared_relu": lambda x: jnp.square(jax.nn.relu(x)),
    "none": lambda x: x,
}


class Linear(nnx.Module):
    """An einsum with a kernel (and a bias over the output axes); computes in ``dtype``."""

    def __init__(self, equation, shape, axes, rngs, *, fan_in, dtype, bias=False, outputs=1):
        self.equation, self.dtype = equation, dtype
        self.kernel = param(rngs, shape, axes, fan_in=fan_in)
        self.bias = param(rngs, shape[-outputs:], axes[-outputs:]) if bias else None

    def __call__(self, x: Array) -> Array:
        y = jnp.einsum(self.equation, x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class Norm(nnx.Module):
    """RMSNorm, or LayerNorm with a bias, over the last axis; statistics in float32, output in the input's dtype.

    ``offset`` is added to the stored scale.
    """

    def __init__(
        self,
        width: int,
        rngs: nnx.Rngs,
        *,
        kind: str = "rms",
        epsilon: float = 1e-6,
        offset: float = 0.0,
        axis: str = "embed",
    ):
        self.kind, self.epsilon, self.offset = kind, epsilon, offset
        self.scale = param(rngs, (width,), (axis,), fill=1.0 - offset)
        self.bias = param(rngs, (width,), (axis,)) if kind == "layer" else None

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        scale = self.scale[...] + self.offset if self.offset else self.scale[...]
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon) * scale
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(x.dtype)


class GatedMLP(nnx.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int, activation: str, bias: bool, rngs: nnx.Rngs, dtype):
        self.activation = activation
        kind = {"dtype": dtype, "bias": bias}
        self.gate = Linear("BTD,DF->BTF", (width, hidden), ("embed", "mlp"), rngs, fan_in=width, **kind)
        self.up = Linear("BTD,DF->BTF", (width, hidden), ("embed", "mlp"), rngs, fan_in=width, **kind)
        self.down = Linear("BTF,FD->BTD", (hidden, width), ("mlp", "embed"), rngs, fan_in=hidden, **kind)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


class MLP(nnx.Module):
    """down(activation(up(x))): of towers without a gate, and of Flamingo's gated cross-attention."""

    def __init__(self, width: int, hidden: int, activation: str, bias: bool, rngs: nnx.Rngs, dtype):
        self.activation = activation
        kind = {"dtype": dtype, "bias": bias}
        self.up = Linear("BTD,DF->BTF", (width, hidden), ("embed", "mlp"), rngs, fan_in=width, **kind)
        self.down = Linear("BTF,FD->BTD", (hidden, width), ("mlp", "embed"), rngs, fan_in=hidden, **kind)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Projection(nnx.Module):
    """A projection from width D to width E: ReLU(MLP(x)), x + tanh(gate) * MLP(x), or x itself (ProjectionConfig)."""

    def __init__(self, config: ProjectionConfig, width: int, out_width: int, rngs: nnx.Rngs, dtype):
        self.config = config
        self.gate = param(rngs, (), (), fill=config.gate_init) if config.form == "residual" else None
        hidden = config.hidden_width or out_width
        widths = [width] + [hidden] * (config.depth - 1) + [out_width]
        layers = {} if config.form == "none" else dict(enumerate(itertools.pairwise(widths)))
        for number, (d, e) in layers.items():
            # Output features have a name of their own, so that no layer puts one mesh axis on both of its axes.
            in_name = "embed" if number == 0 else "projection"
            layer = Linear(
                "BTD,DE->BTE", (d, e), (in_name, "projection_out"), rngs, fan_in=d, dtype=dtype, bias=config.bias
            )
            setattr(self, f"layer_{number}", layer)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
        if self.config.form == "none":
            return x
        y = x
        for number in range(self.config.depth):
            last = number == self.config.depth - 1
            y = getattr(self, f"layer_{number}")(y)
            y = ACTIVATIONS[self.config.last if last else self.config.activation](y)
        return y if self.gate is None else x + jnp.tanh(self.gate[...]).astype(x.dtype) * y
