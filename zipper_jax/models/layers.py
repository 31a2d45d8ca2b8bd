"""Basic layers: linear maps, norms, feed-forwards, projections.

Axis letters: B rows, T positions, D embed_dim, E output dimension, F hidden dimension.
"""

import itertools
import math
import string
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zipper_jax.models.config_parts import ProjectionConfig
from zipper_jax.models.module import Module, param
from zipper_jax.ops.cpu_layout import held_on_cpu
from zipper_jax.ops.interval_attention.registry import on_one_cpu

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "squared_relu": lambda x: jnp.square(jax.nn.relu(x)),
    "none": lambda x: x,
}


_FEW = 8  # rows of a TPU's registers
_MANY = 512  # tokens from which another order of a kernel costs CPUs little


def token_product(equation: str, x: Array, kernel: Array, **options: Any) -> Array:
    """``jnp.einsum(equation, x, kernel)`` with the first two axes of ``x`` and of the result taken as one.

    These are rows and positions. The kernel's gradient then is one product over tokens, in which XLA on CPU transposes
    nothing, and which it makes faster with fewer rows than columns. For a TPU few tokens are padded to `_FEW`: the
    product of a single one would not use its matrix units.
    """
    b, t, *features = x.shape
    count, inputs = len(features), equation[2 : 2 + len(features)]
    inputs_first = f",{inputs}" in equation
    rows, *free = (letter for letter in "X" + string.ascii_lowercase if letter not in equation)
    equation = equation.replace(equation[:2], rows)
    if count > 1:  # einsum sums over axes in the order of their letters: another than theirs would transpose both
        equation = equation.translate(str.maketrans(inputs, "".join(free[:count])))

    def product(x: Array, kernel: Array) -> Array:
        return jnp.einsum(equation, x, kernel, **options)

    def padded(x: Array, kernel: Array) -> Array:
        return product(jnp.pad(x, [(0, _FEW - b * t)] + [(0, 0)] * count), kernel)[: b * t]

    x = x.reshape(b * t, *features)
    few = 0 < b * t < _FEW
    if b * t >= _MANY and inputs_first and kernel.size <= math.prod(features) ** 2:
        kernel = held_on_cpu(kernel, (*range(count, kernel.ndim), *range(count)))
    y = jax.lax.platform_dependent(x, kernel, tpu=padded, default=product) if few else product(x, kernel)
    return y.reshape(b, t, *y.shape[1:])


class Linear(Module):
    """An einsum with a kernel, computed in ``dtype``.

    Args:
        equation: Of the einsum, input first.
        shape: Of the kernel.
        axes: Logical axis names of the kernel.
        fan_in: Of the initialisation, see `module.param`.
        rngs: Random streams.
        dtype: Of the product.
        bias: Whether to add a bias.
        outputs: Number of trailing kernel axes that are output features, the shape of the bias.
    """

    def __init__(
        self,
        equation: str,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        *,
        fan_in: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        bias: bool = False,
        outputs: int = 1,
    ):
        self.equation, self.dtype = equation, dtype
        self.kernel = param(shape, axes, use="product", fan_in=fan_in)
        self.bias = param(shape[-outputs:], axes[-outputs:], use="scale") if bias else None

    def __call__(self, x: Array) -> Array:
        return self.biased(token_product(self.equation, x.astype(self.dtype), self.kernel[...].astype(self.dtype)))

    def biased(self, y: Array) -> Array:
        """The product ``y`` plus the bias, if there is one."""
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def side_by_side(x: Float[Array, "B T D"], *layers: Linear) -> list[Array]:
    """``[layer(x) for layer in layers]``; on a CPU by one product: XLA computes a wide one faster than narrow ones.

    Layers that differ in dtype, that are not "BTD,D…->BT…", or of a class that a user has put in a model, are called.
    """
    b, t, d = x.shape
    alike = all(_is_plain(layer) and layer.dtype == layers[0].dtype for layer in layers)
    if b * t < _MANY or not alike or not on_one_cpu():
        return [layer(x) for layer in layers]
    dtype, shapes = layers[0].dtype, [layer.kernel.shape[1:] for layer in layers]
    kernels = [layer.kernel[...].astype(dtype).reshape(d, -1) for layer in layers]
    y = token_product("BTD,DE->BTE", x.astype(dtype), jnp.concatenate(kernels, axis=1))
    parts = jnp.split(y, list(itertools.accumulate(map(math.prod, shapes[:-1]))), axis=-1)
    return [layer.biased(part.reshape(b, t, *shape)) for layer, part, shape in zip(layers, parts, shapes, strict=True)]


def _is_plain(layer: Any) -> bool:
    if type(layer) is not Linear:
        return False
    tokens, d, outputs = layer.equation[:2], layer.equation[2], layer.equation.partition("->")[2][2:]
    return layer.equation == f"{tokens}{d},{d}{outputs}->{tokens}{outputs}"


class Norm(Module):
    """RMSNorm, or LayerNorm with a bias, over the last axis; statistics in float32, output in the input's dtype.

    Args:
        width: Size of the last axis.
        rngs: Random streams.
        kind: "rms" or "layer".
        epsilon: Added to the mean square.
        offset: Added to the stored scale.
        axis: Logical name of the last axis.
    """

    def __init__(
        self,
        width: int,
        *,
        rngs: nnx.Rngs,
        kind: str = "rms",
        epsilon: float = 1e-6,
        offset: float = 0.0,
        axis: str = "embed",
    ):
        self.kind, self.epsilon, self.offset = kind, epsilon, offset
        self.scale = param((width,), (axis,), use="scale", fill=1.0 - offset)
        self.bias = param((width,), (axis,), use="scale") if kind == "layer" else None

    @jax.named_scope("norm")
    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        scale = self.scale[...] + self.offset if self.offset else self.scale[...]
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.epsilon) * scale
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(x.dtype)


class MLP(Module):
    """down(activation(up(x))), for towers without gated MLP and for Flamingo's gated cross-attention."""

    def __init__(
        self, width: int, hidden: int, activation: str, *, rngs: nnx.Rngs, bias: bool = False, dtype: Any = jnp.float32
    ):
        self.activation = activation
        kind: dict[str, Any] = {"dtype": dtype, "bias": bias, "rngs": rngs}
        self.up = Linear("BTD,DF->BTF", (width, hidden), ("embed", "mlp"), fan_in=width, **kind)
        self.down = Linear("BTF,FD->BTD", (hidden, width), ("mlp", "embed"), fan_in=hidden, **kind)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class GatedMLP(MLP):
    """down(activation(gate(x)) * up(x))."""

    def __init__(
        self, width: int, hidden: int, activation: str, *, rngs: nnx.Rngs, bias: bool = False, dtype: Any = jnp.float32
    ):
        super().__init__(width, hidden, activation, rngs=rngs, bias=bias, dtype=dtype)
        axes = ("embed", "mlp")
        self.gate = Linear("BTD,DF->BTF", (width, hidden), axes, fan_in=width, dtype=dtype, bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, up = side_by_side(x, self.gate, self.up)
        return self.down(ACTIVATIONS[self.activation](gate) * up)


class Projection(Module):
    """A projection from D to E: ReLU(MLP(x)), x + tanh(gate) * MLP(x), or the identity (see `ProjectionConfig`)."""

    def __init__(
        self, config: ProjectionConfig, width: int, out_width: int, *, rngs: nnx.Rngs, dtype: Any = jnp.float32
    ):
        self.config = config
        self.gate = param((), (), use="gate", fill=config.gate_init) if config.form == "residual" else None
        hidden = config.hidden_dim or out_width
        widths = [width] + [hidden] * (config.depth - 1) + [out_width]
        layers = {} if config.form == "none" else dict(enumerate(itertools.pairwise(widths)))
        for number, (d, e) in layers.items():
            # Input and output axes need different names: one mesh axis cannot shard both axes of a kernel.
            in_name = "embed" if number == 0 else "projection"
            axes = (in_name, "projection_out")
            layer = Linear("BTD,DE->BTE", (d, e), axes, fan_in=d, dtype=dtype, bias=config.bias, rngs=rngs)
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
