"""Interval attention on TPUs: Pallas kernels that skip every block of scores that no query sees.

One grid step is one query block of one head, or of two, whose arithmetic fills each other's gaps; it loops over the key
blocks between the first and the last that any of its queries sees. Two facts make this cheap:

* Scalars prefetched per (row, query block) give that range, and inside it the run of key blocks that *every* query of
  the block sees. Only border blocks pay for a mask, which is one unsigned comparison, ``slot - start < end - start``.
* All keys and values of a head stay in VMEM while its query blocks run, so that nothing is fetched twice. While the
  first and the last block run, those of the heads before and after are transferred: these two have the most work.

Scores are in units of log2 (exp2 is what the hardware has). The backward pass recomputes them, transposed, so that
statistics and ranges of queries are rows, which broadcast for free; dK, dV and dQ come from one pass. (Forward this
costs more than it saves: weights would be the stationary operand.) Keys beyond the VMEM bound are processed in parts
that are merged by log-sum-exp.

Axis letters: B rows, T queries, S keys, N query heads, K key/value heads, G = N // K, H head_dim, P heads of a grid
step.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from zipper_jax.ops.interval_attention.merging import merge
from zipper_jax.ops.tpu_kernels import LANES, LOG2E, VMEM_LIMIT, by_platform

_HALF = 16  # bits; VMEM holds fewer than 2 ** 15 keys
_HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)  # score of an invisible key
# The smallest running maximum: far above _HIDDEN, so that exp2 of an invisible score is exactly 0.
_LOWEST = 0.5 * _HIDDEN
_VMEM_FOR_KEYS = 40 * 2**20


class Blocks(NamedTuple):
    """Queries and keys per block of scores, 128 times a power of two."""

    queries: int
    keys: int


class Sizes(NamedTuple):
    """Block sizes of the forward and the backward kernel, and P, the query heads of a grid step.

    Two heads have one key/value head, or one each.
    """

    forward: Blocks
    backward: Blocks
    heads: int = 1


# From the bundles of kernels compiled for v5e; a soft cap or float32 change little (benchmarks/attention_tpu.py).
_PAIRED = Sizes(Blocks(256, 256), Blocks(256, 256), 2)
_SINGLE = Sizes(Blocks(512, 512), Blocks(512, 256))
_WIDE = Sizes(Blocks(256, 512), Blocks(256, 256))  # heads of more than 128 lanes


class _Static(NamedTuple):
    scale: float
    softcap: float | None
    sizes: Sizes


def block_ranges(start: Int[Array, "B T"], end: Int[Array, "B T"], blocks: Blocks) -> Int[Array, "B Q 4"]:
    """First and one-past-last key block that any query of a block sees, and the run of those that all its queries see.

    Args:
        start, end: Attention ranges; T is a multiple of the query block.
        blocks: Block sizes.
    """
    start, end = (x.reshape(x.shape[0], -1, blocks.queries) for x in (start, end))
    sees = end > start
    last = jnp.max(jnp.where(sees, end, 0), axis=-1)
    first = jnp.minimum(jnp.min(jnp.where(sees, start, jnp.iinfo(jnp.int32).max), axis=-1), last) // blocks.keys
    last = -(-last // blocks.keys)
    full = jnp.clip(-(-jnp.max(start, axis=-1) // blocks.keys), first, last)
    full_end = jnp.clip(jnp.min(end, axis=-1) // blocks.keys, full, last)
    return jnp.stack([first, last, full, full_end], axis=-1)


def in_order(ranges: Int[Array, "B Q 4"]) -> Int[Array, "B Q 5"]:
    """Ranges of query blocks and the blocks' numbers, the one with most key blocks last, the second first."""
    order = jnp.argsort(ranges[..., 1] - ranges[..., 0], axis=-1, stable=True)
    order = jnp.concatenate([order[:, -2:-1], order[:, :-2], order[:, -1:]], axis=-1)
    return jnp.concatenate([jnp.take_along_axis(ranges, order[..., None], axis=1), order[..., None]], axis=-1)


def _columns(start: Int[Array, "B T"], end: Int[Array, "B T"]) -> Int[Array, "B T 128"]:
    """Ranges as columns, the same in every lane: start in the upper half of the bits, end - start in the lower.

    Turning rows into columns inside the kernel would cost as much as a third of a block of scores.
    """
    packed = (start << _HALF) | (end - start)
    return jnp.broadcast_to(packed[..., None], (*packed.shape, LANES))


def _loop(ranges: Any, block: Any, step: Any) -> None:
    """``step(key block, masked)`` for the visible key blocks of the ``block``-th query block in order: first the border
    blocks, then the run of full ones, so that each body is compiled once."""
    first, last, full, full_end = (ranges[5 * block + i] for i in range(4))
    before = full - first

    def border(i: Any, _: None) -> None:
        step(jnp.where(i < before, first + i, full_end + i - before), True)

    jax.lax.fori_loop(0, before + last - full_end, border, None)
    jax.lax.fori_loop(full, full_end, lambda i, _: step(i, False), None)


def _scores(products: Array, static: _Static) -> tuple[Array, Array | None]:
    """Scores in units of log2, and tanh of the capped ones."""
    if static.softcap is None:
        return products * (static.scale * LOG2E), None
    capped = jnp.tanh(products * (static.scale / static.softcap))
    return capped * (static.softcap * LOG2E), capped


def _visible(start: Any, end: Any, first: Any, blocks: Blocks) -> Array:
    """Whether the queries (lanes) see the keys (sublanes) from ``first`` on: one unsigned comparison."""
    offset = jax.lax.broadcasted_iota(jnp.int32, (blocks.keys, blocks.queries), 0) - (start - first)
    return offset.astype(jnp.uint32) < (end - start).astype(jnp.uint32)


_dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
_PLAIN, _LEFT, _RIGHT = (((1,), (0,)), ((), ())), (((0,), (0,)), ((), ())), (((1,), (1,)), ((), ()))
"""Matrix products: a b, a' b, a b'."""


def _wide(x: Array, size: int) -> Array:
    """[X, 128] with equal lanes -> [X, size]."""
    return x[:, :size] if size < LANES else jnp.tile(x, (1, size // LANES))


def _forward_kernel(  # type: ignore[no-untyped-def]
    ranges, columns, q, k, v, out, lse, largest, total, acc, *, static: _Static
) -> None:
    (bq, bk), heads = static.sizes.forward, range(static.sizes.heads)
    size, kv_heads = acc.shape[-1], len(k)
    largest[...] = jnp.full_like(largest, _LOWEST)
    total[...] = jnp.zeros_like(total)
    acc[...] = jnp.zeros_like(acc)

    def step(i: Any, masked: bool) -> None:
        keys = pl.ds(pl.multiple_of(i * bk, bk), bk)
        scores = [_scores(_dot(q[j], k[j % kv_heads, keys, :], _RIGHT), static)[0] for j in heads]  # [queries, keys]
        if masked:
            first, width = columns[...] >> _HALF, columns[...] & ((1 << _HALF) - 1)
            offset = jax.lax.broadcasted_iota(jnp.int32, (bq, bk), 1) - _wide(first - i * bk, bk)
            visible = offset.astype(jnp.uint32) < _wide(width, bk).astype(jnp.uint32)
            scores = [jnp.where(visible, x, _HIDDEN) for x in scores]
        for j, x in enumerate(scores):
            before = largest[j]
            now = jnp.maximum(before, jnp.max(x, axis=1, keepdims=True))
            p = jnp.exp2(x - _wide(now, bk))
            shrink = jnp.exp2(before - now)
            total[j] = shrink * total[j] + jnp.sum(p, axis=1, keepdims=True)
            largest[j] = now
            acc[j] = acc[j] * _wide(shrink, size) + _dot(p.astype(v.dtype), v[j % kv_heads, keys, :], _PLAIN)

    _loop(ranges, pl.program_id(0) * pl.num_programs(2) + pl.program_id(2), step)
    for j in heads:
        empty = total[j] == 0.0
        known = jnp.where(empty, 1.0, total[j])
        out[j] = (acc[j] * _wide(jnp.where(empty, 0.0, 1.0 / known), size)).astype(out.dtype)
        lse[j] = jnp.where(empty, -jnp.inf, largest[j] + jnp.log2(known)).T[:1]


def _row_sums(x: Array, parts: int) -> Array:
    """Float32 [X, H] -> [1, X], by products of ones with ``parts`` bfloat16 parts of 8 bits each."""
    total, ones = jnp.zeros((8, x.shape[0]), jnp.float32), jnp.ones((8, x.shape[1]), jnp.bfloat16)
    for _ in range(parts):
        part = x.astype(jnp.bfloat16)
        total += _dot(ones, part, _RIGHT)
        x -= part.astype(jnp.float32)
    return total[:1]


def _backward_kernel(  # type: ignore[no-untyped-def]
    ranges, start, end, lse, dlse, q, out, do, k, v, dq, dk, dv, delta, dq_acc, dk_acc, dv_acc, *, static: _Static
) -> None:
    blocks, heads = static.sizes.backward, range(static.sizes.heads)
    bk, (kv_heads, size, _) = blocks.keys, dk_acc.shape
    group, number = pl.program_id(2), pl.program_id(3)
    blocks_of_keys = size // bk

    def each(body: Any) -> None:
        """``body(keys)`` for every block of keys, as a loop: unrolled it would be most of the program."""
        jax.lax.fori_loop(0, blocks_of_keys, lambda i, _: body(pl.ds(pl.multiple_of(i * bk, bk), bk)), None)

    @pl.when((group == 0) & (number == 0))
    def begin() -> None:
        def clear(keys: Any) -> None:
            dk_acc[:, keys, :] = jnp.zeros_like(dk_acc[:, keys, :])
            dv_acc[:, keys, :] = jnp.zeros_like(dv_acc[:, keys, :])

        each(clear)

    dq_acc[...] = jnp.zeros_like(dq_acc)
    for j in heads:
        products = do[j].astype(jnp.float32) * out[j].astype(jnp.float32)
        delta[j] = _row_sums(products, parts=3 if do.dtype == jnp.float32 else 2) - dlse[j]  # exact to the last bit

    def step(i: Any, masked: bool) -> None:
        keys = pl.ds(pl.multiple_of(i * bk, bk), bk)
        scores = [_scores(_dot(k[j % kv_heads, keys, :], q[j], _RIGHT), static) for j in heads]  # [keys, queries]
        visible = _visible(start[...], end[...], i * bk, blocks) if masked else None
        for j, (x, capped) in enumerate(scores):
            kv = j % kv_heads
            p = jnp.exp2(x - lse[j])
            p = p if visible is None else jnp.where(visible, p, 0.0)
            dv_acc[kv, keys, :] += _dot(p.astype(do.dtype), do[j], _PLAIN)
            ds = p * (_dot(v[kv, keys, :], do[j], _RIGHT) - delta[j])
            if capped is not None:
                ds = ds * (1.0 - capped * capped)
            ds = ds.astype(q.dtype)
            dk_acc[kv, keys, :] += _dot(ds, q[j], _PLAIN)
            dq_acc[j] += _dot(k[kv, keys, :], ds, _LEFT)  # [H, queries]

    _loop(ranges, pl.program_id(0) * pl.num_programs(3) + number, step)
    for j in heads:
        dq[j] = (dq_acc[j].T * static.scale).astype(dq.dtype)

    @pl.when((group == pl.num_programs(2) - 1) & (number == pl.num_programs(3) - 1))
    def finish() -> None:
        def store(keys: Any) -> None:
            dk[:, keys, :] = (dk_acc[:, keys, :] * static.scale).astype(dk.dtype)
            dv[:, keys, :] = dv_acc[:, keys, :].astype(dv.dtype)

        each(store)


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    start: Int[Array, "B T"],
    end: Int[Array, "B T"],
    *,
    scale: float,
    softcap: float | None = None,
    sizes: Sizes | None = None,
    max_keys: int | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Output and log-sum-exp of `interval_attention`, differentiable in query, key and value.

    Compiled where it is lowered for a TPU, interpreted (slowly) elsewhere. Products of float32 arrays have the
    precision that ``jax.default_matmul_precision`` says, as in the rest of a model.

    Args:
        query, key, value, start, end, scale, softcap: See `interval_attention`.
        sizes: Block sizes; None: from `block_sizes`.
        max_keys: Keys in VMEM at once; None: as many as fit, see `vmem_keys`.
    """
    t, s, h = query.shape[1], key.shape[1], query.shape[3]
    sizes = block_sizes(query.shape, key.shape, key.dtype) if sizes is None else sizes
    static = _Static(float(scale), None if softcap is None else float(softcap), sizes)
    block = Blocks(*(max(both) for both in zip(sizes.forward, sizes.backward, strict=True)))  # a multiple of both
    start = start.astype(jnp.int32)
    end = jnp.maximum(start, end.astype(jnp.int32))
    # Queries added as padding have the last query's range, so that they hide no full block; their gradients are 0.
    more = [(0, 0), (0, -t % block.queries)]
    start, end = (jnp.pad(x, more, mode="edge") for x in (start, end))
    # Heads before rows: the layout in which XLA writes the product that makes queries, keys or values.
    q = jnp.pad(query.transpose(2, 0, 1, 3), [(0, 0), *more, (0, 0)])
    k, v = key.transpose(2, 0, 1, 3), value.transpose(2, 0, 1, 3)
    room = vmem_keys(h, key.dtype, block, _kv_heads(sizes, len(q), len(k)))
    most = min(max_keys or room, 2 ** (_HALF - 1) - block.keys)
    parts = []
    for at in range(0, max(s, 1), most):
        size = min(most, s - at)
        pad = [(0, 0), (0, 0), (0, -size % block.keys if size else block.keys), (0, 0)]
        part = (jnp.pad(x[:, :, at : at + size], pad) for x in (k, v))
        parts.append(_attention(q, *part, *(jnp.clip(x - at, 0, size) for x in (start, end)), static))
    out, lse = parts[0] if len(parts) == 1 else merge(parts)
    return out[:, :, :t].transpose(1, 2, 0, 3), lse[:, :, :t].transpose(1, 2, 0)


def block_sizes(query: tuple[int, ...], key: tuple[int, ...], dtype: Any) -> Sizes:
    """Sizes for arrays [B, T, N, H] and [B, S, K, H]: blocks are the largest of the table that add little padding."""
    (_, t, n, h), (_, s, kv, _) = query, key

    def fitting(size: int, most: int) -> int:
        while most > LANES and -size % most > size // 4:
            most //= 2
        return most

    def fitted(sizes: Sizes) -> Sizes:
        forward, backward = (Blocks(fitting(t, most.queries), fitting(s, most.keys)) for most in sizes[:2])
        return Sizes(forward, backward, sizes.heads)

    if h > LANES:
        return fitted(_WIDE)
    # Keys and values of both heads must fit into VMEM, or they would be processed in more parts.
    room = vmem_keys(h, dtype, _PAIRED.forward, _kv_heads(_PAIRED, n, kv))
    paired = (n == kv and n % 2 == 0) or n // kv % 2 == 0
    return fitted(_PAIRED if paired and s <= room else _SINGLE)


def _kv_heads(sizes: Sizes, n: int, kv: int) -> int:
    """Key/value heads of a grid step."""
    return sizes.heads if n == kv else 1


def vmem_keys(h: int, dtype: Any, blocks: Blocks, kv_heads: int = 1) -> int:
    """The largest number of keys whose rows of the heads fit into VMEM: 13,312 for one of H 128 in bfloat16.

    The backward pass holds keys, values and their gradients twice (one being transferred), and two float32 sums.
    """
    lanes = -(-h // LANES) * LANES
    each = lanes * (8 * jnp.dtype(dtype).itemsize + 2 * 4) * kv_heads
    return max(1, _VMEM_FOR_KEYS // each // blocks.keys) * blocks.keys


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q: Array, k: Array, v: Array, start: Array, end: Array, static: _Static) -> tuple[Array, Array]:
    """Arrays with heads first, padded to blocks -> output [N, B, T, H], log-sum-exp [N, B, T]."""
    return _attention_forward(q, k, v, start, end, static)[0]


def _attention_forward(q: Array, k: Array, v: Array, start: Array, end: Array, static: _Static) -> Any:
    out, lse = by_platform(_forward_call, static)(q, k, v, start, end)
    return (out, lse[:, :, 0] / LOG2E), (q, k, v, start, end, out, lse)


def _attention_backward(static: _Static, residuals: Any, gradients: Any) -> Any:
    q, k, v, start, end, out, lse = residuals
    do, dlse = gradients
    seen = lse > -jnp.inf
    dlse = jnp.where(seen, dlse[:, :, None], 0.0)
    # Where no key is visible exp2(score - lse) must be 0.
    lse = jnp.where(seen, lse, -_HIDDEN)
    return *by_platform(_backward_call, static)(q, k, v, start, end, lse, dlse, out, do), None, None


_attention.defvjp(_attention_forward, _attention_backward)


def _ordered(start: Array, end: Array, blocks: Blocks) -> tuple[Array, Any]:
    """The scalars of `in_order`, and a function of them, a row and a grid step: the number of the query block."""
    ranges = in_order(block_ranges(start, end, blocks))
    return ranges.reshape(-1), lambda found, row, step: found[5 * (row * ranges.shape[1] + step) + 4]


def _forward_call(
    q: Array, k: Array, v: Array, start: Array, end: Array, *, static: _Static, interpret: bool
) -> tuple[Array, Array]:
    """Arrays with heads first, padded to blocks -> output, log-sum-exp in units of log2 [N, B, 1, T]."""
    (n, b, t, h), (kv, _, s, _), (bq, bk), p = q.shape, k.shape, static.sizes.forward, static.sizes.heads
    kv_heads = _kv_heads(static.sizes, n, kv)
    sharing = n // kv * kv_heads // p  # grid steps of a query block that read the same keys
    ranges, number = _ordered(start, end, static.sizes.forward)
    columns = pl.BlockSpec((None, bq, LANES), lambda b, n, i, found: (b, number(found, b, i), 0))
    query = pl.BlockSpec((p, None, bq, h), lambda b, n, i, found: (n, b, number(found, b, i), 0))
    keys = pl.BlockSpec((kv_heads, None, s, h), lambda b, n, i, *_: (jax.lax.div(n, sharing), b, 0, 0))
    stats = pltpu.VMEM((p, bq, LANES), jnp.float32)
    return pl.pallas_call(
        functools.partial(_forward_kernel, static=static),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(b, n // p, t // bq),
            in_specs=[columns, query, keys, keys],
            out_specs=[query, pl.BlockSpec((p, None, 1, bq), lambda b, n, i, found: (n, b, 0, number(found, b, i)))],
            scratch_shapes=[stats, stats, pltpu.VMEM((p, bq, h), jnp.float32)],
        ),
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((n, b, 1, t), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=interpret,
        name=f"interval_attention_{bq}x{bk}x{p}",
    )(ranges, _columns(start, end), q, k, v)


def _backward_call(
    q: Array, k: Array, v: Array, start: Array, end: Array, lse: Array, dlse: Array, out: Array, do: Array, *,
    static: _Static, interpret: bool,
) -> tuple[Array, Array, Array]:  # fmt: skip
    (n, b, t, h), (kv, _, s, _), (bq, bk), p = q.shape, k.shape, static.sizes.backward, static.sizes.heads
    kv_heads = _kv_heads(static.sizes, n, kv)
    sharing = n // kv * kv_heads // p
    ranges, number = _ordered(start, end, static.sizes.backward)
    row = pl.BlockSpec((None, 1, bq), lambda b, k, g, i, found: (b, 0, number(found, b, i)))
    stat = pl.BlockSpec((p, None, 1, bq), lambda b, k, g, i, found: (k * sharing + g, b, 0, number(found, b, i)))
    query = pl.BlockSpec((p, None, bq, h), lambda b, k, g, i, found: (k * sharing + g, b, number(found, b, i), 0))
    keys = pl.BlockSpec((kv_heads, None, s, h), lambda b, k, g, i, *_: (k, b, 0, 0))
    return pl.pallas_call(
        functools.partial(_backward_kernel, static=static),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(b, kv // kv_heads, sharing, t // bq),
            in_specs=[row, row, stat, stat, query, query, query, keys, keys],
            out_specs=[query, keys, keys],
            scratch_shapes=[pltpu.VMEM((p, 1, bq), jnp.float32), pltpu.VMEM((p, h, bq), jnp.float32)]
            + [pltpu.VMEM((kv_heads, s, h), jnp.float32)] * 2,
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=interpret,
        name=f"interval_attention_gradients_{bq}x{bk}x{p}",
    )(ranges, start[:, None], end[:, None], lse, dlse, q, out, do, k, v)
