"""The TPU kernels against float64, interpreted on the CPU, and compiled ahead of time for TPUs."""

import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zipper_jax.models.masks import Order, attention_range
from zipper_jax.ops.interval_attention import interval_attention
from zipper_jax.ops.interval_attention.pallas_tpu import (
    Blocks,
    Sizes,
    attention,
    block_ranges,
    block_sizes,
    in_order,
    vmem_keys,
)

ROOT = Path(__file__).resolve().parents[2]
LIBTPU = ROOT / ".cache" / "libtpu"
needs_libtpu = pytest.mark.skipif(
    find_spec("libtpu") is None and not LIBTPU.is_dir(), reason="no libtpu: pip install --editable '.[tpu]'"
)

# Of the largest element of each result. In bfloat16 weights, score gradients and results are rounded once each (2^-9),
# and rounding errors of a sum partly cancel.
BOUND = {"float32": 4e-6, "bfloat16": 1.2e-2}
SHAPES = {  # T, S, N, K, H, window, softcap, dtype, blocks, keys in VMEM at once
    "grouped": (300, 300, 4, 2, 64, None, None, "float32", (128, 128), None),
    "window": (390, 390, 2, 1, 64, 100, 3.0, "float32", (256, 128), None),
    "cross": (200, 520, 2, 2, 128, None, None, "bfloat16", (128, 256), None),
    "parts": (260, 410, 2, 1, 128, None, 5.0, "float32", (128, 128), 128),
    "paired": (390, 390, 4, 1, 64, None, None, "float32", (128, 128, 2), None),
    "paired, own keys": (390, 390, 4, 4, 64, 100, 3.0, "bfloat16", (256, 128, 2), 256),
    "wide": (140, 260, 2, 2, 256, None, 2.0, "bfloat16", None, None),
}


def exact(q, k, v, start, end, g, g_lse, softcap):
    """Output, log-sum-exp and gradients in float64 from the contract."""
    q, k, v, g, g_lse = (np.asarray(x, np.float64) for x in (q, k, v, g, g_lse))
    group, scale = q.shape[2] // k.shape[2], q.shape[3] ** -0.5
    keys, values = (np.repeat(x, group, axis=2) for x in (k, v))
    scores = scale * np.einsum("btnh,bsnh->bnts", q, keys)
    slope = 1.0
    if softcap is not None:
        slope = 1 - np.tanh(scores / softcap) ** 2
        scores = softcap * np.tanh(scores / softcap)
    slots = np.arange(k.shape[1])
    visible = ((slots >= np.asarray(start)[..., None]) & (slots < np.asarray(end)[..., None]))[:, None]
    largest = np.max(np.where(visible, scores, -np.inf), axis=-1, keepdims=True, initial=-1e300)
    weights = np.where(visible, np.exp(np.where(visible, scores - largest, 0)), 0)
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + largest)[..., 0]
    weights /= np.where(total == 0, 1, total)
    g_weights = np.einsum("btnh,bsnh->bnts", g, values)
    g_scores = weights * (g_weights - (g_weights * weights).sum(-1, keepdims=True) + g_lse.swapaxes(1, 2)[..., None])
    g_scores *= slope * scale
    grouped = (*k.shape[:3], group, k.shape[3])
    return (
        np.einsum("bnts,bsnh->btnh", weights, values),
        lse.swapaxes(1, 2),
        np.einsum("bnts,bsnh->btnh", g_scores, keys),
        np.einsum("bnts,btnh->bsnh", g_scores, q).reshape(grouped).sum(3),
        np.einsum("bnts,btnh->bsnh", weights, g).reshape(grouped).sum(3),
    )


def packed_orders(rng, rows, sizes):
    """The orders of two towers' tokens in packed rows: examples of alternating spans, then padding."""
    orders = [np.zeros((2, rows, size), np.int32) for size in sizes]
    for row in range(rows):
        filled, segment = [0, 0], 0
        while True:
            spans = rng.integers(0, 60, rng.integers(1, 8))
            first, position, segment = int(rng.integers(2)), 0, segment + 1
            lengths = [spans[(first + tower) % 2 :: 2].sum() for tower in (0, 1)]
            if any(filled[tower] + lengths[tower] > sizes[tower] for tower in (0, 1)):
                break
            for number, length in enumerate(spans):
                tower = (first + number) % 2
                at = slice(filled[tower], filled[tower] + length)
                orders[tower][0, row, at] = segment
                orders[tower][1, row, at] = np.arange(position, position + length)
                filled[tower] += int(length)
                position += int(length)
    return [Order(jnp.asarray(segments), jnp.asarray(positions)) for segments, positions in orders]


def packed_ranges(rng, t, s, window):
    """Ranges of self-attention (t == s) or of cross-attention."""
    queries, keys = packed_orders(rng, 2, (t, s))
    start, end = attention_range(queries, queries if t == s else keys, inclusive=t == s)
    return (start if window is None else jnp.maximum(start, end - window)), end


def kernel(q, k, v, start, end, g, g_lse, **options):
    results, pull = jax.vjp(lambda *x: attention(*x, start, end, scale=q.shape[3] ** -0.5, **options), q, k, v)
    return *results, *pull((g, g_lse))


def sizes(blocks):
    """Forward blocks as given, backward ones the other way round; heads of a grid step."""
    return None if blocks is None else Sizes(Blocks(*blocks[:2]), Blocks(*blocks[1::-1]), *blocks[2:])


PROGRAMS = {
    name: jax.jit(partial(kernel, softcap=shape[6], sizes=sizes(shape[8]), max_keys=shape[9]))
    for name, shape in SHAPES.items()
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("window", "wide") else ()) for name in SHAPES]
)
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=3)
def test_packed_rows_are_the_definition(name, seed):
    """Output, log-sum-exp and the gradients of both, on packed rows of several spans."""
    t, s, n, kv, h, window, softcap, dtype, _, _ = SHAPES[name]
    rng = np.random.default_rng(seed)
    start, end = packed_ranges(rng, t, s, window)
    shapes = [(2, t, n, h), (2, s, kv, h), (2, s, kv, h), (2, t, n, h)]
    q, k, v, g = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    g_lse = jnp.asarray(rng.normal(size=(2, t, n)), jnp.float32)
    found = PROGRAMS[name](q, k, v, start, end, g, g_lse)
    wanted = exact(q, k, v, start, end, g, g_lse, softcap)
    empty = np.asarray(start >= end)
    assert (np.asarray(found[0], np.float32)[empty] == 0).all()
    assert (np.asarray(found[2], np.float32)[empty] == 0).all()
    assert (np.asarray(found[1])[empty] == -np.inf).all()
    assert [x.dtype for x in found] == [q.dtype, jnp.float32, q.dtype, q.dtype, q.dtype]
    for what, x, y in zip(("output", "lse", "dq", "dk", "dv"), found, wanted, strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y)
        if what == "lse":
            x, y = x[~empty], y[~empty]
        bound = BOUND["float32" if what == "lse" else dtype]  # scores are float32 in both
        assert abs(x - y).max(initial=0) <= bound * max(1, abs(y).max(initial=0)), what


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_block_ranges_are_exact(seed):
    """First and last visible block, and the run of blocks that all see, against the mask itself."""
    rng = np.random.default_rng(seed)
    size, blocks = 64, Blocks(8, 16)
    start, end = packed_ranges(rng, size, size if rng.integers(2) else 96, int(rng.integers(4, 40)))
    slots = np.arange(96)
    mask = (slots >= np.asarray(start)[..., None]) & (slots < np.asarray(end)[..., None])
    tiles = mask.reshape(2, 8, 8, 6, 16)
    sees, full = tiles.any((2, 4)), tiles.all((2, 4))
    found = np.asarray(block_ranges(start, end, blocks))
    number = np.arange(6)
    first, last, run, run_end = (found[..., i, None] for i in range(4))
    assert (((number >= first) & (number < last)) >= sees).all()
    assert (((number >= run) & (number < run_end)) == full).all()
    tight = sees.any(-1)
    assert (found[..., 0][tight] == sees.argmax(-1)[tight]).all()
    assert (found[..., 1][tight] == 6 - sees[..., ::-1].argmax(-1)[tight]).all()
    assert (found[..., 0][~tight] == found[..., 1][~tight]).all()


def test_block_sizes_add_little_padding():
    def found(t, s, n, kv, h):
        return block_sizes((2, t, n, h), (2, s, kv, h), "bfloat16")

    assert found(2048, 8192, 3, 1, 128) == Sizes(Blocks(512, 512), Blocks(512, 256), 1)
    assert found(640, 130, 3, 3, 128).forward == Blocks(256, 128)
    assert found(2048, 8192, 4, 2, 128) == Sizes(Blocks(256, 256), Blocks(256, 256), 2)
    assert [found(s, s, 4, 4, 128).heads for s in (2048, 6656, 6657)] == [2, 2, 1], "keys of both heads fit into VMEM"
    for t in range(1, 1500, 7):
        assert all(-t % size <= max(t // 4, 127) for blocks in found(t, t, 2, 2, 256)[:2] for size in blocks)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_blocks_run_once_each_and_the_longest_last(seed):
    rng = np.random.default_rng(seed)
    ranges = block_ranges(*packed_ranges(rng, 64, 64, None), Blocks(8, 16))
    found = np.asarray(in_order(ranges))
    order = found[..., 4]
    np.testing.assert_array_equal(np.sort(order, axis=-1), np.broadcast_to(np.arange(8), (2, 8)))
    np.testing.assert_array_equal(found[..., :4], np.take_along_axis(np.asarray(ranges), order[..., None], axis=1))
    work = found[..., 1] - found[..., 0]
    assert (work[:, -1] >= work[:, 0]).all()
    assert (work[:, :1] >= work[:, 1:-1]).all()
    assert in_order(ranges[:, :1])[0, 0, 4] == 0


def test_an_invisible_block_is_never_read():
    """Blocks that no query sees may hold NaN; a mask alone would let it through (0 * NaN)."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 512, 1, 64)).astype(np.float32) for _ in range(3))
    k[:, 256:384] = v[:, 256:384] = np.nan
    start = np.where(np.arange(512) < 256, 0, 384)[None].astype(np.int32)
    end = np.where(np.arange(512) < 256, 256, 512)[None].astype(np.int32)
    ones = np.ones_like(q), np.ones((1, 512, 1), np.float32)
    found = jax.jit(partial(kernel, sizes=sizes((128, 128))))(q, k, v, start, end, *ones)
    assert all(np.isfinite(x).all() for x in found)
    assert (np.asarray(found[3])[:, 256:384] == 0).all()


def test_under_scan_and_checkpoint():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(3, 2, 130, 2, 64)), jnp.float32)
    start, end = packed_ranges(rng, 130, 130, None)

    def total(x, implementation):
        @jax.checkpoint
        def body(carry, x):
            return carry + interval_attention(carry, x, x, start, end, implementation=implementation), None

        return jnp.sum(jax.lax.scan(body, x[0], x)[0] ** 2)

    found, wanted = (jax.jit(jax.grad(partial(total, implementation=name)))(x) for name in ("pallas_tpu", "dense"))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_vmem_bound():
    assert vmem_keys(128, "bfloat16", Blocks(512, 512)) == 13312
    assert vmem_keys(128, "bfloat16", Blocks(256, 256), kv_heads=2) == 6656
    assert vmem_keys(64, "bfloat16", Blocks(512, 512)) == 13312  # 64 lanes take the room of 128
    assert vmem_keys(256, "float32", Blocks(256, 256)) == 4096


COMPILE = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from zipper_jax.aot.topology import devices
from zipper_jax.ops.interval_attention import interval_attention
from zipper_jax.ops.interval_attention.registry import Partition, Setting, using

sharding = SingleDeviceSharding(devices(sys.argv[1])[0])
for t, s, n, k, h, softcap, dtype in (
    (2048, 2048, 4, 2, 128, None, "bfloat16"),
    (300, 20000, 2, 1, 64, None, "bfloat16"),
    (1024, 1024, 2, 2, 256, 50.0, "bfloat16"),
    (512, 512, 2, 2, 128, 30.0, "float32"),
):
    def like(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def total(q, k, v, start, end):
        return interval_attention(
            q, k, v, start, end, softcap=softcap, implementation="pallas_tpu"
        ).astype(jnp.float32).sum()

    ranges = [like(1, t, dtype="int32")] * 2
    step = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    text = step.lower(like(1, t, n, h), like(1, s, k, h), like(1, s, k, h), *ranges).compile().as_text()
    parts = -(-s // 13312)
    assert text.count("tpu_custom_call") >= 2 * parts, text.count("tpu_custom_call")
    print("compiled", sys.argv[1], t, s, h)

# The choice follows the devices of the mesh, not those of this process (CPUs).
auto = (jax.sharding.AxisType.Auto,) * 2
mesh = jax.make_mesh((2, 2), ("data", "tensor"), devices=devices(sys.argv[1])[:4], axis_types=auto)
spec = jax.NamedSharding(mesh, jax.P("data", None, "tensor"))
rows = jax.NamedSharding(mesh, jax.P("data"))
with using(Setting("auto", lambda *_: Partition(mesh, "data", "tensor", "tensor"), mesh)):
    x = jax.ShapeDtypeStruct((2, 256, 4, 128), "bfloat16", sharding=spec)
    ranges = [jax.ShapeDtypeStruct((2, 256), "int32", sharding=rows)] * 2
    text = jax.jit(interval_attention).lower(x, x, x, *ranges).compile().as_text()
assert "tpu_custom_call" in text
assert "all-gather" not in text
print("compiled for a mesh")
"""


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_it_compiles_ahead_of_time(topology):
    """For every head size, grouped heads, a soft cap, float32, and more keys than fit into VMEM."""
    paths = [str(ROOT), str(LIBTPU), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, topology], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("compiled") == 5
