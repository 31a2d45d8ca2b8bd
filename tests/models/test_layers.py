"""Linear maps: what the programs for CPUs make of them, and that it is what they are defined as."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from zipper_jax.models.layers import Linear, side_by_side, token_product
from zipper_jax.ops.interval_attention.registry import Setting, using


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


PRODUCTS = [
    ("BTD,DF->BTF", (24,), (24, 40)),
    ("BTF,FD->BTD", (40,), (40, 24)),
    ("BTD,DKH->BTKH", (24,), (24, 2, 8)),
    ("BTNH,NHD->BTD", (4, 8), (4, 8, 24)),
    ("BSGI,GIKH->BSKH", (2, 12), (2, 12, 2, 8)),
    ("BTD,VD->BTV", (24,), (11, 24)),
    ("BTNH,NHa->BTa", (4, 8), (4, 8, 24)),
    ("BTX,XD->BTD", (24,), (24, 40)),
]


@pytest.mark.parametrize("tokens", [(1, 1), (2, 3), (4, 160)])
@pytest.mark.parametrize(("equation", "features", "kernel"), PRODUCTS)
def test_a_token_product_is_the_einsum(equation, features, kernel, tokens):
    """And its gradients; the difference is of float32 sums in another order."""
    x, kernel = arrays((*tokens, *features), kernel)

    def total(product, x, kernel):
        return jnp.sum(jnp.sin(product(equation, x, kernel)))

    found = jax.jit(jax.grad(partial(total, token_product), argnums=(0, 1)))(x, kernel)
    with jax.enable_x64():
        wide = (np.asarray(x, np.float64), np.asarray(kernel, np.float64))
        wanted = jax.grad(partial(total, jnp.einsum), argnums=(0, 1))(*wide)
    for f, w in zip(found, wanted, strict=True):
        np.testing.assert_allclose(f, w, atol=1e-5 * np.abs(w).max())


@pytest.mark.parametrize(
    ("platform", "tokens", "kernel", "barriers"),
    [
        ("cpu", (4, 160), (40, 24), 1),
        ("cpu", (4, 160), (24, 40), 0),  # its gradient has fewer rows than columns as it is
        ("cpu", (2, 3), (40, 24), 0),  # few tokens: the copy of the kernel would cost as much as the product
        ("tpu", (4, 160), (40, 24), 0),
    ],
)
def test_a_kernel_is_held_in_another_order_only_where_it_pays(platform, tokens, kernel, barriers):
    x, kernel = arrays((*tokens, kernel[0]), kernel)
    traced = jax.jit(partial(token_product, "BTD,DF->BTF")).trace(x, kernel)
    assert traced.lower(lowering_platforms=(platform,)).as_text().count("optimization_barrier") == barriers


def test_axes_are_summed_in_their_order():
    """XLA on CPU transposes both operands for any other."""
    x, kernel = arrays((4, 160, 4, 8), (4, 8, 24))
    traced = str(jax.make_jaxpr(partial(token_product, "BTNH,NHD->BTD"))(x, kernel))
    assert "dimension_numbers=(([1, 2], [0, 1]), ([], []))" in traced


# ---- maps of one input -----------------------------------------------------------------------------------------------


def maps(bias):
    kind = {"fan_in": 24, "bias": bias, "rngs": nnx.Rngs(0)}
    shapes = {"BTD,DNH->BTNH": (24, 4, 8), "BTD,DKH->BTKH": (24, 2, 8), "BTD,DF->BTF": (24, 10)}
    layers = [Linear(e, s, (None,) * len(s), outputs=len(s) - 1, **kind) for e, s in shapes.items()]
    for number, layer in enumerate(layers):
        if layer.bias is not None:
            layer.bias[...] = arrays(layer.bias.shape, seed=number)[0]
    return layers


def alone():
    """Set for a program of one device; there are eight."""
    axes = {"devices": jax.devices()[:1], "axis_types": (AxisType.Auto,) * 2}
    return using(Setting("auto", None, jax.make_mesh((1, 1), ("data", "tensor"), **axes)))


def products(layers, x):
    return str(jax.make_jaxpr(lambda x: side_by_side(x, *layers))(x)).count("dot_general")


@pytest.mark.parametrize("bias", [False, True])
def test_maps_of_one_input_are_each_map(bias):
    layers, (x,) = maps(bias), arrays((4, 160, 24))
    state = nnx.split(nnx.List(layers))

    def outputs(x, params, apart):
        own = nnx.merge(state[0], params)
        return [layer(x) for layer in own] if apart else side_by_side(x, *own)

    def total(x, params, apart):
        return sum(jnp.sum(jnp.sin(y)) for y in outputs(x, params, apart))

    with alone():
        for f, w in zip(outputs(x, state[1], False), outputs(x, state[1], True), strict=True):
            np.testing.assert_allclose(f, w, atol=1e-5)
        assert products(layers, x) == 1
        found, wanted = (
            jax.tree.leaves(jax.grad(total, argnums=(0, 1))(x, state[1], apart)) for apart in (False, True)
        )
    for f, w in zip(found, wanted, strict=True):
        np.testing.assert_allclose(f, w, atol=1e-5 * np.abs(w).max())


def test_they_stay_apart_for_few_tokens_and_on_several_devices():
    """A copy of kernels for few tokens is most of the work; kernels may be sharded along what is joined."""
    layers, (few, many) = maps(False), arrays((2, 8, 24), (4, 160, 24))
    assert products(layers, many) == 3
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with using(Setting("auto", None, mesh)):
        assert products(layers, many) == 3
    with alone():
        assert products(layers, few) == 3
        assert products(layers, many) == 1


class Doubled(Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


def test_a_layer_of_ones_own_is_called():
    layers, (x,) = maps(False), arrays((4, 160, 24))
    layers[1] = Doubled("BTD,DKH->BTKH", (24, 2, 8), (None,) * 3, fan_in=24, outputs=2, rngs=nnx.Rngs(0))
    layers[1].kernel = maps(False)[1].kernel
    with alone():
        found = side_by_side(x, *layers)
        np.testing.assert_array_equal(found[1], layers[1](x))
        np.testing.assert_allclose(found[1], 2 * side_by_side(x, *maps(False))[1], atol=1e-5)


def test_layers_that_differ_are_each_layer():
    layers, (x,) = maps(False), arrays((4, 160, 24))
    layers[2].dtype = jnp.bfloat16
    turned = Linear("BTD,FD->BTF", (24, 24), (None, None), fan_in=24, rngs=nnx.Rngs(1))
    with alone():
        assert [y.dtype for y in side_by_side(x, *layers)] == [jnp.float32, jnp.float32, jnp.bfloat16]
        np.testing.assert_array_equal(side_by_side(x, layers[0], turned)[1], turned(x))
