"""Which implementation of interval attention serves a call, and on which devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from zipper_jax.ops.interval_attention import interval_attention, registry
from zipper_jax.ops.interval_attention.registry import Call, Partition, Setting, choose, current, using


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (Call("cpu", 256, 256, 64), "dense"),
        (Call("cpu", 2048, 2048, 64), "blockwise"),
        (Call("gpu", 2048, 2048, 64), "blockwise"),
        (Call("tpu", 256, 256, 64), "pallas_tpu"),
        (Call("tpu", 8192, 8192, 256), "pallas_tpu"),
        (Call("tpu", 1, 8192, 128), "dense"),  # a token in decoding
        (Call("tpu", 256, 0, 128), "dense"),  # a tower without tokens in this pass
        (Call("tpu", 256, 256, 64, distance_bias=True), "dense"),
        (Call("tpu", 2048, 2048, 64, distance_bias=True), "blockwise"),
    ],
)
def test_auto(call, wanted):
    assert choose(call).implementation == wanted


def test_the_configured_one_is_used_where_it_can_serve():
    long = Call("tpu", 2048, 2048, 64)
    for name in ("dense", "blockwise", "pallas_tpu"):
        assert choose(long, name).implementation == name
    chosen = choose(long._replace(distance_bias=True), "pallas_tpu")
    assert chosen.implementation == "blockwise"
    assert "pallas_tpu has no distance bias" in chosen.reason


def arrays(rng, rows, t, n, k, h):
    q, key, v = (jnp.asarray(rng.normal(size=(rows, t, x, h)), jnp.float32) for x in (n, k, k))
    end = jnp.broadcast_to(jnp.arange(1, t + 1, dtype=jnp.int32), (rows, t))
    return q, key, v, jnp.maximum(0, end - 60), end


def test_a_setting_holds_inside_only():
    def traced(**options):
        return str(jax.make_jaxpr(lambda *x: interval_attention(*x, **options))(*x))  # a new function: never cached

    x = arrays(np.random.default_rng(0), 1, 130, 2, 2, 8)
    with using(Setting("pallas_tpu")):
        assert "pallas_call" in traced()
        assert "pallas_call" not in traced(implementation="dense")
    assert current() == Setting()
    assert "pallas_call" not in traced()


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_on_a_mesh_each_device_computes_its_rows_and_heads(kv_heads):
    """Equal to one device, gradients too."""
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    q, k, v, start, end = arrays(np.random.default_rng(1), 2, 130, 8, kv_heads, 64)
    kv = "tensor" if kv_heads == 4 else None

    def loss(q, k, v, partition):
        with using(Setting("pallas_tpu", partition)):
            out, lse = interval_attention(q, k, v, start, end, return_lse=True)
        return jnp.sum(out**2) + jnp.sum(jnp.sin(lse))

    def program(partition):
        return jax.jit(jax.grad(partial(loss, partition=partition), argnums=(0, 1, 2)))

    wanted = program(None)(q, k, v)
    placed = jax.device_put((q, k, v), jax.NamedSharding(mesh, jax.P("data")))
    sharded = program(lambda *_: Partition(mesh, ("data",), "tensor", kv))
    for found, right in zip(sharded(*placed), wanted, strict=True):
        np.testing.assert_allclose(found, right, atol=5e-6 * np.abs(right).max())


def test_every_implementation_is_known_by_name():
    known = set(registry.get_args(registry.Implementation)) - {"auto"}
    assert {choose(Call("cpu", 4, 4, 8), name).implementation for name in known} == known
