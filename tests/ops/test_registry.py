"""Which implementation of interval attention serves a call, and on which devices."""

import itertools
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


# ---- causal attention ------------------------------------------------------------------------------------------------


def packed(t, *lengths):
    """Ranges of causal attention within examples; the rest of the row is padding."""
    start = np.full((1, t), t, np.int32)
    end = np.full((1, t), t, np.int32)
    for first, last in itertools.pairwise(itertools.accumulate(lengths, initial=0)):
        start[0, first:last], end[0, first:last] = first, np.arange(first + 1, last + 1)
    return jnp.asarray(start), jnp.asarray(end)


@pytest.mark.parametrize(
    ("t", "lengths"), [(100, [100]), (128, [40, 70]), (131, [131]), (300, [1, 150, 149]), (1030, [600, 300])]
)
@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
@pytest.mark.parametrize("window", [None, 40])
def test_causal_attention_in_halves_is_the_same(t, lengths, implementation, window):
    """Its gradients and log-sum-exps too; the difference is of float32 sums in another order."""
    q, k, v, *_ = arrays(np.random.default_rng(2), 1, t, 4, 2, 8)
    bias = jnp.asarray(np.random.default_rng(3).normal(size=(4, 30)), jnp.float32)
    start, end = packed(t, *lengths)
    start = start if window is None else jnp.maximum(start, end - window)

    def loss(q, k, v, causal):
        options = {"implementation": implementation, "softcap": 20.0, "distance_bias": bias, "return_lse": True}
        out, lse = interval_attention(q, k, v, start, end, causal=causal, **options)
        return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.sin(jnp.where(jnp.isinf(lse), 0.0, lse)))

    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)), static_argnums=3)
    (total, found), (wanted_total, wanted) = program(q, k, v, True), program(q, k, v, False)
    assert float(total) == pytest.approx(float(wanted_total), rel=1e-5)
    for f, w in zip(found, wanted, strict=True):
        np.testing.assert_allclose(f, w, atol=1e-5 * np.abs(w).max())


@pytest.mark.parametrize(("t", "share"), [(64, 1.0), (128, 0.75), (256, 0.75), (1024, 0.75)])
def test_causal_attention_computes_fewer_scores(t, share):
    x = arrays(np.random.default_rng(0), 1, t, 2, 2, 8)
    traced = jax.make_jaxpr(partial(interval_attention, causal=True))(*x)
    exponentials = [e.outvars[0].aval.size for e in traced.eqns if e.primitive.name == "exp"]
    assert sum(exponentials) == share * 2 * t * t


def test_causal_attention_needs_as_many_keys_as_queries():
    q, k, v, start, end = arrays(np.random.default_rng(0), 1, 8, 2, 2, 8)
    with pytest.raises(ValueError, match="causal attention of 4 queries to 8 keys"):
        interval_attention(q[:, :4], k, v, start[:, :4], end[:, :4], causal=True)
