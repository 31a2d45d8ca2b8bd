"""Interval attention against its definition in float64, in value and gradients, every implementation.

test_pallas_tpu.py has more about the TPU kernels."""

import re
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zipper_jax.ops.interval_attention import (
    Implementation,
    blockwise,
    interval_attention,
    interval_weights,
    merge_attention,
    merge_gated,
)

IMPLEMENTATIONS = [name for name in get_args(Implementation) if name != "auto"]
TOLERANCE = 2e-6  # float32, values of order 1


def definition(q, k, v, start, end, scale=None, softcap=None, distance_bias=None):
    """(output, attention weights [B, N, T, S]) in float64 from the words of the contract."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (b, t, n, h), s, group = q.shape, k.shape[1], q.shape[2] // k.shape[2]
    weights = np.zeros((b, n, t, s))
    for i, head, row in np.ndindex(b, n, t):
        seen = [j for j in range(s) if start[i, row] <= j < end[i, row]]
        if seen:
            scores = k[i, seen, head // group] @ q[i, row, head] * (h**-0.5 if scale is None else scale)
            if softcap is not None:
                scores = softcap * np.tanh(scores / softcap)
            if distance_bias is not None:  # of distances back from the newest visible key, the last one for all beyond
                back = end[i, row] - 1 - np.array(seen)
                scores = (
                    scores + np.asarray(distance_bias, np.float64)[head, np.minimum(back, distance_bias.shape[1] - 1)]
                )
            exponentials = np.exp(scores - scores.max())
            weights[i, head, row, seen] = exponentials / exponentials.sum()
    return np.einsum("bnts,bsnh->btnh", weights, np.repeat(v, group, axis=2)), weights


def definition_gradients(q, k, v, start, end, g):
    """Gradients of sum(output * g) by the chain rule, float64."""
    group, scale = q.shape[2] // k.shape[2], q.shape[3] ** -0.5
    q, k, v, g = (np.asarray(x, np.float64) for x in (q, k, v, g))
    _, w = definition(q, k, v, start, end)
    dw = np.einsum("btnh,bsnh->bnts", g, np.repeat(v, group, axis=2))
    ds = w * (dw - (dw * w).sum(-1, keepdims=True)) * scale
    dk, dv = np.einsum("bnts,btnh->bsnh", ds, q), np.einsum("bnts,btnh->bsnh", w, g)
    grouped = (*k.shape[:3], group, k.shape[3])
    dq = np.einsum("bnts,bsnh->btnh", ds, np.repeat(k, group, axis=2))
    return dq, dk.reshape(grouped).sum(3), dv.reshape(grouped).sum(3)


def arrays(rng, b, t, s, n, k, h):
    shapes = [(b, t, n, h), (b, s, k, h), (b, s, k, h)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def ranges(rng, b, t, s):
    """Ranges that keep the contract, with empty rows among them and padding at the end."""
    start, end = (np.sort(rng.integers(0, s + 1, (b, t)), axis=1).astype(np.int32) for _ in range(2))
    end = np.maximum(start, end)
    if t > 2:
        start[:, -1] = end[:, -1] = s
    return jnp.asarray(start), jnp.asarray(end)


def trace_value_and_gradients(q, k, v, start, end, g, implementation):
    out, pull = jax.vjp(lambda *x: interval_attention(*x, start, end, implementation=implementation), q, k, v)
    return out, *pull(g)


value_and_gradients = jax.jit(trace_value_and_gradients, static_argnames="implementation")


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_dense_is_the_definition(seed):
    rng = np.random.default_rng(seed)
    q, k, v = arrays(rng, 2, 5, 7, 4, 2, 6)
    start, end = ranges(rng, 2, 5, 7)
    g = rng.normal(size=q.shape).astype(np.float32)
    out, *gradients = value_and_gradients(q, k, v, start, end, g, "dense")
    np.testing.assert_allclose(out, definition(q, k, v, start, end)[0], atol=TOLERANCE)
    for found, wanted in zip(gradients, definition_gradients(q, k, v, start, end, g), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2 * TOLERANCE)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=["full", "grouped", "multi-query"])
@pytest.mark.parametrize("shape", [(19, 11), (16, 5), (1, 3), (3, 0)], ids=str)
def test_blockwise_is_the_definition(monkeypatch, heads, shape):
    """Blocks of 8 queries: lengths that divide and do not, one query, no keys."""
    monkeypatch.setattr(blockwise, "_QUERY_BLOCK", 8)
    program = jax.jit(partial(trace_value_and_gradients, implementation="blockwise"))  # traced with this block size
    rng, (t, s) = np.random.default_rng(0), shape
    q, k, v = arrays(rng, 2, t, s, *heads, 4)
    start, end = ranges(rng, 2, t, s)
    g = rng.normal(size=q.shape).astype(np.float32)
    out, *gradients = program(q, k, v, start, end, g)
    np.testing.assert_allclose(out, definition(q, k, v, start, end)[0], atol=TOLERANCE)
    for found, wanted in zip(gradients, definition_gradients(q, k, v, start, end, g), strict=True):
        np.testing.assert_allclose(found, wanted, atol=4 * TOLERANCE)


def test_blockwise_equals_dense_with_its_own_block_size():
    rng = np.random.default_rng(1)
    q, k, v = arrays(rng, 1, 300, 130, 2, 1, 8)
    start, end = ranges(rng, 1, 300, 130)
    g = rng.normal(size=q.shape).astype(np.float32)
    dense = value_and_gradients(q, k, v, start, end, g, "dense")
    blockwise = value_and_gradients(q, k, v, start, end, g, "blockwise")
    for found, wanted in zip(blockwise, dense, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [1.0, 1e18])
def test_rows_that_see_nothing_are_exactly_zero_with_zero_gradients(implementation, size):
    """Also beside huge values, where 0 * inf or a mean over the masked keys would show."""
    rng = np.random.default_rng(2)
    q, k, v = (x * np.float32(size if i == 2 else 1) for i, x in enumerate(arrays(rng, 2, 5, 7, 4, 2, 6)))
    start = np.array([[0, 0, 3, 3, 7], [7, 7, 7, 7, 7]], np.int32)
    end = np.array([[0, 2, 3, 5, 7], [7, 7, 7, 7, 7]], np.int32)
    g = np.ones_like(q)
    out, dq, dk, dv = (np.asarray(x) for x in value_and_gradients(q, k, v, start, end, g, implementation))
    empty = start == end
    assert (out[empty] == 0).all()
    assert (out[~empty] != 0).all()
    assert (dq[empty] == 0).all()
    for gradient in (dq, dk, dv):
        assert np.isfinite(gradient).all()
    assert (dk[1] == 0).all()
    assert (dv[1] == 0).all()
    assert (dv[0, [2, 5, 6]] == 0).all()
    assert (dv[0, [0, 1, 3, 4]] != 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(2, 1, 9), (2, 5, 7), (1, 150, 20)])
def test_every_implementation_is_the_definition(implementation, shape):
    """One query, a few, and more than a block: plain, with a soft cap, and with a bias by distance."""
    rng = np.random.default_rng(sum(shape))
    b, t, s = shape
    q, k, v = arrays(rng, b, t, s, 4, 2, 6)
    start, end = ranges(rng, b, t, s)
    bias = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    for more in ({}, {"softcap": 0.8}, {"distance_bias": bias}):
        found = interval_attention(q, k, v, start, end, implementation=implementation, **more)
        np.testing.assert_allclose(found, definition(q, k, v, start, end, **more)[0], atol=TOLERANCE)


def test_scores_far_apart_stay_finite():
    """Scores of about +-1e8: the last query sees only the second key, whose score is the smallest of all."""
    q = np.full((1, 2, 1, 2), 1e4, np.float32)
    k = np.stack([np.full((1, 1, 2), x, np.float32) for x in (1e4, -1e4, 1e4)], axis=1)
    v = np.square(np.arange(6, dtype=np.float32)).reshape(1, 3, 1, 2)  # no key's values are the mean of the others'
    start, end = np.array([[0, 1]], np.int32), np.array([[2, 2]], np.int32)
    out, *gradients = value_and_gradients(q, k, v, start, end, np.ones_like(q), "dense")
    np.testing.assert_array_equal(out[0, :, 0], [[0, 1], [4, 9]])
    assert all(np.isfinite(x).all() for x in gradients)


def test_weights_and_scale():
    rng = np.random.default_rng(3)
    q, k, v = arrays(rng, 2, 5, 7, 4, 2, 6)
    start, end = ranges(rng, 2, 5, 7)
    weights = np.asarray(interval_weights(q, k, start, end, scale=0.7)).reshape(2, 4, 5, 7)
    out, wanted = definition(q, k, v, start, end, scale=0.7)
    np.testing.assert_allclose(weights, wanted, atol=TOLERANCE)
    for implementation in IMPLEMENTATIONS:
        found = interval_attention(q, k, v, start, end, scale=0.7, implementation=implementation)
        np.testing.assert_allclose(found, out, atol=TOLERANCE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_keeps_its_dtype_and_softmax_in_float32(implementation):
    rng = np.random.default_rng(4)
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in arrays(rng, 1, 4, 300, 2, 1, 8))
    start, end = jnp.zeros((1, 4), jnp.int32), jnp.array([[1, 40, 299, 300]], jnp.int32)
    out, *gradients = value_and_gradients(q, k, v, start, end, jnp.ones_like(q), implementation)
    assert {x.dtype for x in (out, *gradients)} == {jnp.dtype(jnp.bfloat16)}
    wanted = definition(*(x.astype(np.float32) for x in (q, k, v)), start, end)[0]
    # Weights and output are rounded to bfloat16 once each (2^-9 relative); sums of 300 in bfloat16 would be 10x off.
    np.testing.assert_allclose(out.astype(np.float32), wanted, atol=0.01)
    assert interval_weights(q, k, start, end).dtype == jnp.float32


def _sizes(jaxpr):
    """Element counts of every value in a jaxpr, inner ones included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(variable.aval.shape))
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


def test_blockwise_never_holds_all_scores():
    """Neither forward nor backward, neither traced nor compiled: every array stays below B * N * T * S elements."""
    b, t, s, n, h = 1, 1024, 1024, 2, 8
    full = b * n * t * s
    rng = np.random.default_rng(5)
    q, k, v = arrays(rng, b, t, s, n, n, h)
    start, end = ranges(rng, b, t, s)

    def gradients(implementation):
        def total(*x):
            return interval_attention(*x, start, end, implementation=implementation).sum()

        return jax.grad(total, argnums=(0, 1, 2))

    assert max(_sizes(jax.make_jaxpr(gradients("dense"))(q, k, v).jaxpr)) >= full  # the check can fail
    assert max(_sizes(jax.make_jaxpr(gradients("blockwise"))(q, k, v).jaxpr)) < full
    compiled = jax.jit(gradients("blockwise")).lower(q, k, v).compile()
    shapes = re.findall(r"\w+\[([\d,]+)\]", compiled.as_text())
    assert max(int(np.prod([int(x) for x in shape.split(",")])) for shape in shapes) < full


def test_products_of_gradients_on_cpu_have_the_head_size_first():
    """Of keys and of values: in the other order XLA on CPU takes two to three times as long."""
    q, k, start, end = (jax.ShapeDtypeStruct(s, d) for s, d in (
        ((2, 24, 4, 8), "float32"), ((2, 40, 2, 8), "float32"), ((2, 24), "int32"), ((2, 24), "int32"),
    ))  # fmt: skip

    def total(q, k, v, start, end):
        return interval_attention(q, k, v, start, end, implementation="dense").sum()

    text = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, k, start, end).compile().as_text()
    shapes = re.findall(r"= f32\[([\d,]+)\]\S* dot\(", text)
    assert shapes.count("2,2,8,40") == 2
    assert "2,2,40,8" not in shapes


@pytest.mark.parametrize(("platform", "queries", "barriers"), [("cpu", 24, 1), ("cpu", 1, 0), ("tpu", 24, 0)])
def test_keys_are_copied_only_where_it_pays(platform, queries, barriers):
    """Not on a TPU, nor for a token of decoding, whose keys are a whole cache."""
    q, k = (jax.ShapeDtypeStruct(s, "float32") for s in ((2, queries, 4, 8), (2, 40, 2, 8)))
    ranges = [jax.ShapeDtypeStruct((2, queries), "int32")] * 2
    traced = jax.jit(partial(interval_attention, implementation="dense")).trace(q, k, k, *ranges)
    assert traced.lower(lowering_platforms=(platform,)).as_text().count("optimization_barrier") == barriers


def test_auto_goes_blockwise_for_long_rows_only():
    assert max(_sizes(jax.make_jaxpr(partial(interval_attention))(*_long(1024)).jaxpr)) >= 1024 * 1024
    assert max(_sizes(jax.make_jaxpr(partial(interval_attention))(*_long(2048)).jaxpr)) < 2048 * 2048


def _long(t):
    x = jax.ShapeDtypeStruct((1, t, 1, 2), jnp.float32)
    i = jax.ShapeDtypeStruct((1, t), jnp.int32)
    return x, x, x, i, i


def test_bad_arguments():
    rng = np.random.default_rng(6)
    start, end = ranges(rng, 1, 2, 2)
    with pytest.raises(ValueError, match="4 query heads are not a multiple of 3"):
        interval_attention(*arrays(rng, 1, 2, 2, 4, 3, 2), start, end)


# ---- several calls as one softmax ------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_log_sum_exp_and_merging_are_one_softmax_over_all_keys(implementation):
    """Two calls over two sets of keys, merged, against the definition over both; rows that see none, one or both."""
    rng = np.random.default_rng(0)
    q, k, v = arrays(rng, 2, 9, 14, 4, 2, 8)
    g = jnp.asarray(rng.normal(size=q.shape), jnp.float32)
    first, second = _half_seen(rng, 6, none=(3, 4)), _half_seen(rng, 8, none=(3, 6))
    sees = [np.asarray(end > start) for start, end in (first, second)]
    assert {(False, False), (False, True), (True, False), (True, True)} == set(
        zip(*(x.flat for x in sees), strict=True)
    )

    def merged(q, k, v):
        call = partial(interval_attention, q, implementation=implementation, return_lse=True)
        parts = [call(k[:, :6], v[:, :6], *first), call(k[:, 6:], v[:, 6:], *second)]
        return merge_attention(parts), [lse for _, lse in parts]

    (out, lses), pull = jax.vjp(merged, q, k, v)
    gradients = pull((g, [jnp.zeros_like(lse) for lse in lses]))

    def masked(start, end, size):
        places = np.arange(size)
        return (places >= np.asarray(start)[..., None]) & (places < np.asarray(end)[..., None])

    mask = np.concatenate([masked(*first, 6), masked(*second, 8)], axis=-1)[:, :, None, None]
    scores = np.einsum("btkgh,bskh->btkgs", np.asarray(q, np.float64).reshape(2, 9, 2, 2, 8), np.asarray(k, np.float64))
    exponentials = np.where(mask, np.exp(scores * 8**-0.5), 0)
    total = exponentials.sum(-1, keepdims=True)
    weights = exponentials / np.where(total == 0, 1, total)
    wanted = np.einsum("btkgs,bskh->btkgh", weights, np.asarray(v, np.float64)).reshape(out.shape)
    np.testing.assert_allclose(out, wanted, atol=TOLERANCE)
    empty = ~mask.any(-1)[..., 0, 0]
    assert empty.any()
    assert (np.asarray(out)[empty] == 0).all()
    of_first = np.where(mask[..., :6], np.exp(scores[..., :6] * 8**-0.5), 0).sum(-1).reshape(2, 9, 4)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(lses[0], np.log(of_first), rtol=1e-5)
    shuffled = jax.vjp(lambda q, k, v: _dense_over(q, k, v, mask[:, :, 0, 0]), q, k, v)[1](g)
    for found, expected in zip(gradients, shuffled, strict=True):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected, atol=5 * TOLERANCE)


def test_a_gated_share_is_nothing_at_0_and_one_softmax_at_1():
    """At 0 bitwise; between, the share moves in proportion; the gradient at 0 is the share times the difference."""
    rng = np.random.default_rng(1)
    q, k, v = arrays(rng, 2, 9, 14, 4, 2, 8)
    first, second = _half_seen(rng, 6, none=(3, 4)), _half_seen(rng, 8, none=(3, 6))
    call = partial(interval_attention, q, return_lse=True)
    own, other = call(k[:, :6], v[:, :6], *first), call(k[:, 6:], v[:, 6:], *second)

    def gated(g):
        return merge_gated(own, [(other, g)])

    np.testing.assert_array_equal(gated(jnp.float32(0)), own[0])
    whole = np.asarray(merge_attention([own, other]), np.float64)
    np.testing.assert_allclose(gated(jnp.float32(1)), whole, atol=TOLERANCE)
    np.testing.assert_allclose(gated(jnp.float32(0.25)), 0.75 * np.asarray(own[0]) + 0.25 * whole, atol=TOLERANCE)
    _, slope = jax.jvp(gated, (jnp.float32(0),), (jnp.float32(1),))
    np.testing.assert_allclose(slope, whole - np.asarray(own[0]), atol=TOLERANCE)
    assert (np.asarray(slope) != 0).any()
    gradients = jax.grad(lambda own, other: jnp.sum(merge_gated(own, [(other, jnp.float32(0.5))])), (0, 1))(own, other)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def _half_seen(rng, s, none):
    """Ranges of 9 queries over ``s`` keys around the middle; the queries ``none`` of the first row see nothing."""
    start, end = rng.integers(0, s // 2, (2, 9)), rng.integers(s // 2 + 1, s + 1, (2, 9))
    start, end = np.sort(start, axis=1), np.sort(end, axis=1)
    start[0, none], end[0, none] = s // 2, s // 2
    return jnp.asarray(start, jnp.int32), jnp.asarray(end, jnp.int32)


def _dense_over(q, k, v, mask):
    """Softmax attention under a dense mask [B, T, S], rows without keys 0."""
    h = q.shape[-1]
    scores = jnp.einsum("btkgh,bskh->btkgs", q.reshape(*q.shape[:2], k.shape[2], -1, h), k) * h**-0.5
    mask = jnp.asarray(mask)[:, :, None, None]
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores, 0)), 0)
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1, total)
    return jnp.einsum("btkgs,bskh->btkgh", weights, v).reshape(q.shape)
