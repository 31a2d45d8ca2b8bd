"""Chunked losses of large vocabularies: values and gradients against float64, and what the compiled program holds."""

import dataclasses
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from zipper_jax.ops.losses import cross_entropy
from zipper_jax.ops.vocab_loss import MOST_CASTS, OutputHead, Sharding, vocab_loss
from zipper_jax.ops.vocab_loss_tpu import Sizes, sizes

B, T, D, V, A, CHUNK = 2, 25, 8, 48, 4, 16
HEADS = {
    "plain": OutputHead(),
    "scaled, capped": OutputHead(scale=0.5, softcap=5.0),
    "z-loss": OutputHead(z_loss=0.02),
    "all": OutputHead(scale=2.0, softcap=30.0, z_loss=1e-3),
}
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2}
"""Largest difference of a gradient, as a fraction of its largest entry or of the factor that its terms have, the larger
of them; bfloat16 has 8 bits and rounds twice."""


def inputs(seed, size, dtype, v=V, d=D):
    """Hidden states, own and added table, targets, weights (some 0); arrays in ``dtype``'s grid, tables as float32."""
    random = np.random.default_rng(seed)
    hidden, own, added = (random.normal(size=s) for s in ((B, T, d), (v, d), (A, d)))
    hidden, own, added = (jnp.asarray(x, dtype) for x in (size * hidden, own, added))
    weights = jnp.asarray(random.choice([0.0, 0.5, 1.0], (B, T)), jnp.float32)
    return (
        hidden,
        (own.astype(jnp.float32), added.astype(jnp.float32)),
        jnp.asarray(random.integers(0, v + A, (B, T)), jnp.int32),
        weights,
    )


def exact(hidden, tables, targets, weights, head):
    """The definition in float64: (total, nll, correct), gradients of total by hidden, tables and weights."""
    targets = np.asarray(targets)
    x, table = np.asarray(hidden, np.float64), np.concatenate([np.asarray(t, np.float64) for t in tables])
    logits = head.scale * x @ table.T
    slope = np.ones_like(logits)
    if head.softcap is not None:
        inner = np.tanh(logits / head.softcap)
        logits, slope = head.softcap * inner, 1 - inner**2
    top = logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    own = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    w, each = np.asarray(weights, np.float64), log_z - own + head.z_loss * log_z**2
    softmax = np.exp(logits - log_z[..., None])
    by_logits = softmax * (1 + 2 * head.z_loss * log_z)[..., None]
    np.put_along_axis(
        by_logits, targets[..., None], np.take_along_axis(by_logits, targets[..., None], -1) - 1, -1
    )  # fmt: skip
    by = w[..., None] * by_logits * slope * head.scale
    by_table = np.einsum("btv,btd->vd", by, x)
    first = len(tables[0])
    correct = w * (logits.argmax(-1) == targets)
    return ((w * each).sum(), w * (log_z - own), correct), (by @ table, (by_table[:first], by_table[first:]), each)


@cache
def program(head, trained=True, scale=1.0):
    def total(hidden, tables, targets, weights):
        found = vocab_loss(hidden, tables, targets, weights, head, CHUNK)
        return scale * found.total, found

    wanted = (0, 1, 3) if trained else (0,)
    return jax.jit(jax.value_and_grad(total, argnums=wanted, has_aux=True))


def close(got, want, tolerance, what, factor=0.05):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.isfinite(got).all(), what
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(np.abs(want).max(), factor), err_msg=what)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([0.0, 0.3, 1.0, 5.0, 40.0, 300.0]),
    head=st.sampled_from(sorted(HEADS)),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
@example(0, 300.0, "plain", "float32")  # logits hundreds above the target's: relative to the maximum
@example(0, 300.0, "plain", "bfloat16")
@example(140950, 300.0, "plain", "float32")
@example(1, 40.0, "z-loss", "float32")
@settings(max_examples=40, deadline=None)
def test_values_and_gradients_are_those_of_the_definition(seed, size, head, dtype):
    head = HEADS[head]
    arrays = inputs(seed, size, dtype)
    (_, found), (hidden, tables, weights) = program(head)(*arrays)
    (total, nll, correct), (by_hidden, by_tables, by_weights) = exact(*arrays, head)
    close(found.total, total, 1e-5, "total")
    close(found.nll, nll, 1e-5, "nll")
    if size and head.softcap is None:  # capped logits tie in float32
        np.testing.assert_array_equal(found.correct, correct)
    # A probability's relative error is its logit's absolute one, which grows with what the logit sums.
    summed = np.abs(np.asarray(arrays[0], np.float64)) @ np.abs(np.concatenate(arrays[1]).astype(np.float64)).T
    tolerance = TOLERANCE[dtype] + 2.0**-24 * float(summed.max())
    close(hidden, by_hidden, tolerance, "hidden")
    assert hidden.dtype == dtype
    for got, want in zip(tables, by_tables, strict=True):
        close(got, want, tolerance, "table", np.abs(np.asarray(arrays[0], np.float64)).max())
        assert got.dtype == np.float32
    close(weights, by_weights, 1e-5, "weights")
    assert not np.asarray(hidden)[np.asarray(arrays[3]) == 0].any(), "a token without weight gives exactly 0"
    _, (frozen,) = program(head, trained=False)(*arrays)
    np.testing.assert_array_equal(frozen, hidden)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([0.0, 0.03, 0.3, 3.0, 30.0]),
    head=st.sampled_from(sorted(HEADS)),
    stored=st.sampled_from(["float32", "bfloat16"]),
)
@example(0, 30.0, "plain", "float32")  # logits hundreds above the target's: relative to the maximum
@settings(max_examples=8, deadline=None)
def test_the_tpu_kernel_has_the_same_losses(seed, size, head, stored):
    """For a frozen table with one that is trained; two blocks of rows, tokens that fill no block; interpreted."""
    head = dataclasses.replace(HEADS[head], implementation="pallas_tpu")
    hidden, (own, added), targets, weights = inputs(seed, size, "bfloat16", v=768, d=128)
    own = own.astype(stored)

    @partial(jax.jit, static_argnums=2)
    def run(hidden, added, head):
        def total(hidden, added):
            found = vocab_loss(hidden, (own, added), targets, weights, head, chunk=32)
            return found.total, found

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(hidden, added)

    assert str(jax.make_jaxpr(run, static_argnums=2)(hidden, added, head)).count("vocab_sums") >= 1
    (_, found), (by_hidden, by_added) = run(hidden, added, head)
    (total, nll, correct), (wanted, (_, of_added), _) = exact(hidden, (own, added), targets, weights, head)
    close(found.total, total, 1e-5, "total")
    close(found.nll, nll, 1e-5, "nll")
    if size and head.softcap is None:
        np.testing.assert_array_equal(found.correct, correct)
    summed = np.abs(np.asarray(hidden, np.float64)) @ np.abs(np.asarray(own, np.float64)).T
    tolerance = TOLERANCE["bfloat16"] + 2.0**-24 * float(summed.max())
    close(by_hidden, wanted, tolerance, "hidden")
    close(by_added, of_added, tolerance, "table", np.abs(np.asarray(hidden, np.float64)).max())


def test_small_vocabularies_have_the_same_losses():
    """`cross_entropy`, with all its fields, and gradients scaled from outside."""
    for head in (OutputHead(), OutputHead(z_loss=0.02)):
        arrays = inputs(3, 1.0, "float32")

        def dense(hidden, tables, targets, weights, head=head):
            found = cross_entropy(hidden @ jnp.concatenate(tables).T, targets, weights, head.z_loss)
            return 0.25 * found.total, found

        (_, want), by_dense = jax.value_and_grad(dense, argnums=(0, 1, 3), has_aux=True)(*arrays)
        (_, found), by_chunks = program(head, scale=0.25)(*arrays)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), found, want)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-6), by_chunks, by_dense)


@pytest.mark.parametrize("chunk", [CHUNK, 8], ids=["a cast in every product", "one cast"])
def test_a_table_is_rounded_as_products_see_it(chunk):
    hidden, tables, targets, weights = inputs(0, 1.0, "bfloat16")
    tables = tuple(table * 1.01 for table in tables)  # not in bfloat16's grid
    rounded = tuple(table.astype(jnp.bfloat16) for table in tables)
    assert (-(-B * T // chunk) > MOST_CASTS) == (chunk == 8)

    def run(tables):
        def total(hidden):
            found = vocab_loss(hidden, tables, targets, weights, HEADS["all"], chunk)
            return found.total, found

        return jax.jit(jax.grad(total, has_aux=True))(hidden)

    for ours, wanted in zip(jax.tree.leaves(run(tables)), jax.tree.leaves(run(rounded)), strict=True):
        np.testing.assert_array_equal(np.asarray(ours, np.float32), np.asarray(wanted, np.float32))


def test_equal_logits_are_no_hit():
    hidden, tables, targets, weights = inputs(0, 0.0, "float32")
    assert not np.asarray(vocab_loss(hidden, tables, targets, weights, chunk=CHUNK).correct).any()


SPECS = {
    "rows": (PartitionSpec("data"), PartitionSpec(), PartitionSpec()),
    "vocabulary": (PartitionSpec(), PartitionSpec("tensor"), PartitionSpec("tensor")),
    "both, stored by embed_dim too": (PartitionSpec("data"), PartitionSpec("tensor"), PartitionSpec("tensor", "data")),
}


@pytest.mark.parametrize("name", SPECS)
def test_sharded_equals_one_device(name):
    """Losses and gradients, also where the devices' chunks differ; no collective is as large as a chunk's logits."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    rows, used, stored = SPECS[name]
    sharding = Sharding(
        mesh, PartitionSpec(*(rows or (None,)), None, None), (used, PartitionSpec()), (stored, PartitionSpec())
    )
    for size in (1.0, 300.0):
        arrays = inputs(5, size, "float32")
        (_, want), by_one = program(OutputHead(scale=0.5))(*arrays)
        compiled = program(OutputHead(scale=0.5, sharding=sharding)).lower(*arrays).compile()
        (_, found), by_many = compiled(*arrays)
        for got, expected in zip(jax.tree.leaves((found, by_many)), jax.tree.leaves((want, by_one)), strict=True):
            close(got, expected, 2e-5, name)
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    sent = re.findall(rf"= \(?(\w+\[[\d,]*\]).* (?:{kinds})(?:-start)?\(", compiled.as_text())
    assert sent
    assert not [shape for shape in sent if re.search(rf"\[(?:\d+,)*\d+,({V}|{V // 2})\]", shape)], sent


def test_the_tpu_kernel_on_a_mesh():
    """Rows and vocabulary sharded: the same as without the kernel, also where logits are extreme."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "tensor"))
    rows, tables = PartitionSpec("data", None, None), (PartitionSpec("tensor"), PartitionSpec())
    sharding = Sharding(mesh, rows, tables, tables)
    for size in (0.3, 30.0):
        arrays = inputs(5, size, "bfloat16", v=768, d=128)
        heads = (OutputHead(implementation="xla"), OutputHead(sharding=sharding, implementation="pallas_tpu"))
        (_, want), (expected,) = program(heads[0], trained=False)(*arrays)
        (_, found), (got,) = program(heads[1], trained=False)(*arrays)
        for a, b in zip(found, want, strict=True):
            close(a, b, 1e-5, "loss")
        close(got, expected, TOLERANCE["bfloat16"] / 4, "hidden")


def test_what_the_tpu_kernel_serves():
    """What fits into VMEM, with tokens enough for each reading of the table; the rest stays with XLA."""
    assert sizes(2048, (256_000, 2304), 2) == Sizes(512, 512, 1024)
    assert sizes(256, (256_000, 2304), 2) == Sizes(512, 256, 256)
    assert sizes(2048, (152_064, 8192), 4) is None, "too few tokens for each reading"
    for d in range(128, 20_000, 1152):
        for tokens, item in ((1, 2), (130, 2), (2048, 2), (2048, 4)):
            found = sizes(tokens, (151_552, d), item)
            assert found is None or min(512, tokens // 2) <= found.resident
    assert sizes(2048, (50_257, 768), 2) is None, "rows that no block divides"
    assert sizes(2048, (256_000, 100), 2) is None
    for shape in ((0, 4, 128), (2, 0, 128)):
        nothing = jnp.zeros(shape, jnp.bfloat16)

        def total(x):
            empty = jnp.zeros(x.shape[:2], jnp.int32)
            return vocab_loss(x, [jnp.ones((512, 128), x.dtype)], empty, empty * 1.0, OutputHead(implementation="auto"))

        assert jax.grad(lambda x: total(x).total)(nothing).shape == shape


def test_no_array_of_all_tokens_logits():
    """Neither in the forward nor in the backward pass, trained or frozen."""
    arrays = inputs(0, 1.0, "float32")
    for trained in (True, False):
        text = program(OutputHead(), trained=trained).lower(*arrays).compile().as_text()
        shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\w+\[([\d,]+)\]", text)}
        assert (CHUNK, V) in shapes, "a chunk's logits"
        assert not [s for s in shapes if V in s and np.prod(s) > max(CHUNK * V, V * D) * 1.5], shapes
