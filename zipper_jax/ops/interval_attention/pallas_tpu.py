"""Interval attention on TPUs: Pallas kernels that skip every block of scores that no query sees.

One grid step is one query block of one head; it loops over the key blocks between the first and the last that any of
its queries sees. Two facts make this cheap:

* Scalars prefetched per (row, query block) give that range, and inside it the run of key blocks that *every* query of
  the block sees. Only border blocks pay for a mask, which is one unsigned comparison, ``slot - start < end - start``.
* All keys and values of a head stay in VMEM while its query blocks run, so that nothing is fetched twice.

Scores are in units of log2 (exp2 is what the hardware has). The backward pass recomputes them, transposed, so that
statistics and ranges of queries are rows, which broadcast for free; dK, dV and dQ come from one pass. (Forward this
costs more than it saves: weights would be the stationary operand.) Keys beyond the VMEM bound are processed in parts
that are merged by log-sum-exp.

Axis letters: B rows, T queries, S keys, N query heads, K key/value heads, G = N // K, H head_dim.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from zipper_jax.ops.interval_attention.merging import merge

_LANES = 128
_HALF = 16  # bits; VMEM holds fewer than 2 ** 15 keys
_LOG2E = math.log2(math.e)
_HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)  # score of an invisible key
# The smallest running maximum: far above _HIDDEN, so that exp2 of an invisible score is exactly 0.
_LOWEST = 0.5 * _HIDDEN
_VMEM_LIMIT = 56 * 2**20  # of 64 MiB (v5p, tpu7x) or 128 MiB (v5e, v6e)
_VMEM_FOR_KEYS = 40 * 2**20


class Blocks(NamedTuple):
    """Queries and keys per block of scores, 128 times a power of two."""

    queries: int
    keys: int


class Sizes(NamedTuple):
    """Block sizes of the forward and the backward kernel."""

    forward: Blocks
    backward: Blocks


# From the bundles of kernels compiled for v5e, by whether a head has more than 128 lanes; a soft cap or float32 change
# little (benchmarks/attention_tpu.py). Backward, blocks of 512 x 256 are at the peak of the matrix units already.
_SIZES = {
    False: Sizes(Blocks(512, 512), Blocks(512, 256)),
    True: Sizes(Blocks(256, 512), Blocks(256, 256)),
}


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


def _columns(start: Int[Array, "B T"], end: Int[Array, "B T"]) -> Int[Array, "B T 128"]:
    """Ranges as columns, the same in every lane: start in the upper half of the bits, end - start in the lower.

    Turning rows into columns inside the kernel would cost as much as a third of a block of scores.
    """
    packed = (start << _HALF) | (end - start)
    return jnp.broadcast_to(packed[..., None], (*packed.shape, _LANES))


def _loop(ranges: Any, block: Any, step: Any) -> None:
    """``step(key block, masked)`` for the visible key blocks of a query block: first the border blocks, then the run
    of full ones, so that each body is compiled once."""
    first, last, full, full_end = (ranges[4 * block + i] for i in range(4))
    before = full - first

    def border(i: Any, _: None) -> None:
        step(jnp.where(i < before, first + i, full_end + i - before), True)

    jax.lax.fori_loop(0, before + last - full_end, border, None)
    jax.lax.fori_loop(full, full_end, lambda i, _: step(i, False), None)


def _scores(products: Array, static: _Static) -> tuple[Array, Array | None]:
    """Scores in units of log2, and tanh of the capped ones."""
    if static.softcap is None:
        return products * (static.scale * _LOG2E), None
    capped = jnp.tanh(products * (static.scale / static.softcap))
    return capped * (static.softcap * _LOG2E), capped


def _visible(start: Any, end: Any, first: Any, blocks: Blocks) -> Array:
    """Whether the queries (lanes) see the keys (sublanes) from ``first`` on: one unsigned comparison."""
    offset = jax.lax.broadcasted_iota(jnp.int32, (blocks.keys, blocks.queries), 0) - (start - first)
    return offset.astype(jnp.uint32) < (end - start).astype(jnp.uint32)


_dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
_PLAIN, _LEFT, _RIGHT = (((1,), (0,)), ((), ())), (((0,), (0,)), ((), ())), (((1,), (1,)), ((), ()))
"""Matrix products: a b, a' b, a b'."""


def _wide(x: Array, size: int) -> Array:
    """[X, 128] with equal lanes -> [X, size]."""
    return x[:, :size] if size < _LANES else jnp.tile(x, (1, size // _LANES))


def _forward_kernel(  # type: ignore[no-untyped-def]
    ranges, columns, q, k, v, out, lse, largest, total, acc, *, static: _Static
) -> None:
    bq, bk = static.sizes.forward
    largest[...] = jnp.full_like(largest, _LOWEST)
    total[...] = jnp.zeros_like(total)
    acc[...] = jnp.zeros_like(acc)

    def step(i: Any, masked: bool) -> None:
        keys = pl.ds(pl.multiple_of(i * bk, bk), bk)
        x, _ = _scores(_dot(q[...], k[keys, :], _RIGHT), static)  # [queries, keys]
        if masked:
            first, width = columns[...] >> _HALF, columns[...] & ((1 << _HALF) - 1)
            offset = jax.lax.broadcasted_iota(jnp.int32, (bq, bk), 1) - _wide(first - i * bk, bk)
            x = jnp.where(offset.astype(jnp.uint32) < _wide(width, bk).astype(jnp.uint32), x, _HIDDEN)
        before = largest[...]
        now = jnp.maximum(before, jnp.max(x, axis=1, keepdims=True))
        p = jnp.exp2(x - _wide(now, bk))
        shrink = jnp.exp2(before - now)
        total[...] = shrink * total[...] + jnp.sum(p, axis=1, keepdims=True)
        largest[...] = now
        acc[...] = acc[...] * _wide(shrink, acc.shape[1]) + _dot(p.astype(v.dtype), v[keys, :], _PLAIN)

    _loop(ranges, pl.program_id(0) * pl.num_programs(2) + pl.program_id(2), step)
    empty = total[...] == 0.0
    known = jnp.where(empty, 1.0, total[...])
    out[...] = (acc[...] * _wide(jnp.where(empty, 0.0, 1.0 / known), acc.shape[1])).astype(out.dtype)
    lse[...] = jnp.where(empty, -jnp.inf, largest[...] + jnp.log2(known)).T[:1]


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
    blocks = static.sizes.backward
    bk = blocks.keys
    group, number = pl.program_id(2), pl.program_id(3)
    blocks_of_keys = dk_acc.shape[0] // bk

    def each(body: Any) -> None:
        """``body(keys)`` for every block of keys, as a loop: unrolled it would be most of the program."""
        jax.lax.fori_loop(0, blocks_of_keys, lambda i, _: body(pl.ds(pl.multiple_of(i * bk, bk), bk)), None)

    @pl.when((group == 0) & (number == 0))
    def _() -> None:
        def clear(keys: Any) -> None:
            dk_acc[keys, :] = jnp.zeros_like(dk_acc[keys, :])
            dv_acc[keys, :] = jnp.zeros_like(dv_acc[keys, :])

        each(clear)

    dq_acc[...] = jnp.zeros_like(dq_acc)
    products = do[...].astype(jnp.float32) * out[...].astype(jnp.float32)
    delta[...] = _row_sums(products, parts=3 if do.dtype == jnp.float32 else 2) - dlse[...]  # exact to the last bit

    def step(i: Any, masked: bool) -> None:
        keys = pl.ds(pl.multiple_of(i * bk, bk), bk)
        x, capped = _scores(_dot(k[keys, :], q[...], _RIGHT), static)  # [keys, queries]
        p = jnp.exp2(x - lse[...])
        if masked:
            p = jnp.where(_visible(start[...], end[...], i * bk, blocks), p, 0.0)
        dv_acc[keys, :] += _dot(p.astype(do.dtype), do[...], _PLAIN)
        ds = p * (_dot(v[keys, :], do[...], _RIGHT) - delta[...])
        if capped is not None:
            ds = ds * (1.0 - capped * capped)
        ds = ds.astype(q.dtype)
        dk_acc[keys, :] += _dot(ds, q[...], _PLAIN)
        dq_acc[...] += _dot(k[keys, :], ds, _LEFT)  # [H, queries]

    _loop(ranges, pl.program_id(0) * pl.num_programs(3) + number, step)
    dq[...] = (dq_acc[...].T * static.scale).astype(dq.dtype)

    @pl.when((group == pl.num_programs(2) - 1) & (number == pl.num_programs(3) - 1))
    def _() -> None:
        def store(keys: Any) -> None:
            dk[keys, :] = (dk_acc[keys, :] * static.scale).astype(dk.dtype)
            dv[keys, :] = dv_acc[keys, :].astype(dv.dtype)

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
    sizes = block_sizes(t, s, h) if sizes is None else sizes
    static = _Static(float(scale), None if softcap is None else float(softcap), sizes)
    block = Blocks(*(max(both) for both in zip(*sizes, strict=True)))  # a multiple of both
    start = start.astype(jnp.int32)
    end = jnp.maximum(start, end.astype(jnp.int32))
    # Queries added as padding have the last query's range, so that they hide no full block; their gradients are 0.
    more = [(0, 0), (0, -t % block.queries)]
    start, end = (jnp.pad(x, more, mode="edge") for x in (start, end))
    # Heads before rows: the layout in which XLA writes the product that makes queries, keys or values.
    q = jnp.pad(query.transpose(2, 0, 1, 3), [(0, 0), *more, (0, 0)])
    k, v = key.transpose(2, 0, 1, 3), value.transpose(2, 0, 1, 3)
    most = min(max_keys or vmem_keys(h, key.dtype, block), 2 ** (_HALF - 1) - block.keys)
    parts = []
    for at in range(0, max(s, 1), most):
        size = min(most, s - at)
        pad = [(0, 0), (0, 0), (0, -size % block.keys if size else block.keys), (0, 0)]
        part = (jnp.pad(x[:, :, at : at + size], pad) for x in (k, v))
        parts.append(_attention(q, *part, *(jnp.clip(x - at, 0, size) for x in (start, end)), static))
    out, lse = parts[0] if len(parts) == 1 else merge(parts)
    return out[:, :, :t].transpose(1, 2, 0, 3), lse[:, :, :t].transpose(1, 2, 0)


def block_sizes(t: int, s: int, h: int) -> Sizes:
    """Block sizes for a shape: the largest of the table that do not add much padding."""

    def fitting(size: int, most: int) -> int:
        while most > _LANES and -size % most > size // 4:
            most //= 2
        return most

    return Sizes(*(Blocks(fitting(t, most.queries), fitting(s, most.keys)) for most in _SIZES[h > _LANES]))


def vmem_keys(h: int, dtype: Any, blocks: Blocks) -> int:
    """The largest number of keys whose rows of one head fit into VMEM: 13,312 for H 128 in bfloat16.

    The backward pass holds keys, values and their gradients twice (one being transferred), and two float32 sums.
    """
    lanes = -(-h // _LANES) * _LANES
    each = lanes * (8 * jnp.dtype(dtype).itemsize + 2 * 4)
    return max(1, _VMEM_FOR_KEYS // each // blocks.keys) * blocks.keys


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q: Array, k: Array, v: Array, start: Array, end: Array, static: _Static) -> tuple[Array, Array]:
    """Arrays with heads first, padded to blocks -> output [N, B, T, H], log-sum-exp [N, B, T]."""
    return _attention_forward(q, k, v, start, end, static)[0]


def _attention_forward(q: Array, k: Array, v: Array, start: Array, end: Array, static: _Static) -> Any:
    out, lse = _by_platform(_forward_call, static)(q, k, v, start, end)
    return (out, lse[:, :, 0] / _LOG2E), (q, k, v, start, end, out, lse)


def _attention_backward(static: _Static, residuals: Any, gradients: Any) -> Any:
    q, k, v, start, end, out, lse = residuals
    do, dlse = gradients
    seen = lse > -jnp.inf
    dlse = jnp.where(seen, dlse[:, :, None], 0.0)
    # Where no key is visible exp2(score - lse) must be 0.
    lse = jnp.where(seen, lse, -_HIDDEN)
    return *_by_platform(_backward_call, static)(q, k, v, start, end, lse, dlse, out, do), None, None


_attention.defvjp(_attention_forward, _attention_backward)


def _by_platform(call: Any, static: _Static) -> Any:
    """``call``, compiled where it is lowered for a TPU (also ahead of time), interpreted elsewhere."""
    compiled, interpreted = (functools.partial(call, static=static, interpret=x) for x in (False, True))
    return lambda *args: jax.lax.platform_dependent(*args, tpu=compiled, default=interpreted)


def _forward_call(
    q: Array, k: Array, v: Array, start: Array, end: Array, *, static: _Static, interpret: bool
) -> tuple[Array, Array]:
    """Arrays with heads first, padded to blocks -> output, log-sum-exp in units of log2 [N, B, 1, T]."""
    (n, b, t, h), (kv, _, s, _), bq = q.shape, k.shape, static.sizes.forward.queries
    group = n // kv
    columns = pl.BlockSpec((None, bq, _LANES), lambda b, n, i, *_: (b, i, 0))
    query = pl.BlockSpec((None, None, bq, h), lambda b, n, i, *_: (n, b, i, 0))
    keys = pl.BlockSpec((None, None, s, h), lambda b, n, i, *_: (jax.lax.div(n, group), b, 0, 0))
    stats = pltpu.VMEM((bq, _LANES), jnp.float32)
    return pl.pallas_call(
        functools.partial(_forward_kernel, static=static),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(b, n, t // bq),
            in_specs=[columns, query, keys, keys],
            out_specs=[query, pl.BlockSpec((None, None, 1, bq), lambda b, n, i, *_: (n, b, 0, i))],
            scratch_shapes=[stats, stats, pltpu.VMEM((bq, h), jnp.float32)],
        ),
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((n, b, 1, t), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=_VMEM_LIMIT
        ),
        interpret=interpret,
        name=f"interval_attention_{bq}x{static.sizes.forward.keys}",
    )(block_ranges(start, end, static.sizes.forward).reshape(-1), _columns(start, end), q, k, v)


def _backward_call(
    q: Array, k: Array, v: Array, start: Array, end: Array, lse: Array, dlse: Array, out: Array, do: Array, *,
    static: _Static, interpret: bool,
) -> tuple[Array, Array, Array]:  # fmt: skip
    (n, b, t, h), (kv, _, s, _), bq = q.shape, k.shape, static.sizes.backward.queries
    group = n // kv
    row = pl.BlockSpec((None, 1, bq), lambda b, k, g, i, *_: (b, 0, i))
    stat = pl.BlockSpec((None, None, 1, bq), lambda b, k, g, i, *_: (k * group + g, b, 0, i))
    query = pl.BlockSpec((None, None, bq, h), lambda b, k, g, i, *_: (k * group + g, b, i, 0))
    keys = pl.BlockSpec((None, None, s, h), lambda b, k, g, i, *_: (k, b, 0, 0))
    return pl.pallas_call(
        functools.partial(_backward_kernel, static=static),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(b, kv, group, t // bq),
            in_specs=[row, row, stat, stat, query, query, query, keys, keys],
            out_specs=[query, keys, keys],
            scratch_shapes=[pltpu.VMEM((1, bq), jnp.float32), pltpu.VMEM((h, bq), jnp.float32)]
            + [pltpu.VMEM((s, h), jnp.float32)] * 2,
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=_VMEM_LIMIT
        ),
        interpret=interpret,
        name=f"interval_attention_gradients_{bq}x{static.sizes.backward.keys}",
    )(
        block_ranges(start, end, static.sizes.backward).reshape(-1),
        start[:, None],
        end[:, None],
        lse,
        dlse,
        q,
        out,
        do,
        k,
        v,
    )
