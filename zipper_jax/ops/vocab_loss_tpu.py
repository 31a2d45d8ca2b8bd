"""The sums of a vocabulary loss on TPUs, as a Pallas kernel: no logit and no exponential leaves VMEM.

It is attention without a running maximum: hidden states are queries, rows of the output table are keys and values, and
the reference logit is known beforehand. As many tokens as fit stay in VMEM with their float32 sums, while blocks of the
table stream through, once for all of them; each block is a loop over blocks of tokens.

Axis letters: N tokens, D embed_dim, V vocabulary of one table.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from zipper_jax.ops.tpu_kernels import LANES, LOG2E, VMEM_LIMIT, by_platform

_VMEM = VMEM_LIMIT - 2 * 2**20  # for what `_needed` counts
_TABLE_ROWS = (512, 640, 384, 768, 256)  # of a block, the best first, by bundles for v5e
_TOKENS = (512, 384, 256, 128)  # of a block
_RESIDENT = 512  # tokens for which the table is read once, at least: with fewer, reading takes longer than the products


class Sums(NamedTuple):
    """Over all rows of a table but a token's own.

    Attributes:
        total: Of exp(logit - reference).
        largest: Of exp(logit - reference).
        product: Of exp(logit - reference) times the logit's derivative, in bfloat16, with the table.
    """

    total: Float[Array, " N"]
    largest: Float[Array, " N"]
    product: Float[Array, "N D"]


class Sizes(NamedTuple):
    """Rows of the table in a block, tokens in a block, and tokens in VMEM, a multiple of the latter."""

    table: int
    tokens: int
    resident: int


class _Static(NamedTuple):
    scale: float
    softcap: float | None
    sizes: Sizes
    top: bool


def sizes(tokens: int, table: tuple[int, ...], itemsize: int) -> Sizes | None:
    """Sizes of the kernel; None: it does not serve such a table.

    Args:
        tokens: N.
        table: V, a multiple of one of `_TABLE_ROWS`, and D, one of 128.
        itemsize: Bytes of a value of the table.
    """
    vocabulary, embed_dim = table
    if not tokens or embed_dim % LANES:
        return None
    tokens = -(-tokens // LANES) * LANES
    parts = 2 if tokens >= _RESIDENT else 1  # v5p has two cores
    least = min(tokens // parts, _RESIDENT)
    for rows in (rows for rows in _TABLE_ROWS if vocabulary % rows == 0):
        for number in range(parts, tokens // least + 1):
            resident = -(-tokens // number // LANES) * LANES
            block = next(block for block in _TOKENS if resident % block == 0)
            found = Sizes(rows, block, resident)
            if _needed(found, embed_dim, itemsize) <= _VMEM:
                return found
    return None


def _needed(sizes: Sizes, embed_dim: int, itemsize: int) -> int:
    """Bytes of VMEM: rows of the table twice and, if they are cast, again; states and sums; a block's intermediates."""
    rows, block, resident = sizes
    of_table = rows * embed_dim * (2 * itemsize + (2 if itemsize > 2 else 0))
    return of_table + resident * (6 * embed_dim + 10 * 4 * LANES) + block * 4 * (embed_dim + 3 * rows)


def sums(
    x: Float[Array, "N D"],
    table: Float[Array, "V D"],
    ids: Int[Array, " N"],
    reference: Float[Array, " N"],
    *,
    scale: float,
    softcap: float | None,
) -> Sums:
    """The sums of each token, compiled where it is lowered for a TPU, interpreted (slowly) elsewhere.

    Args:
        x: Final states, bfloat16.
        table: Output table.
        ids: Each token's own row of the table; outside of it: none.
        reference: Logit that exponentials are relative to.
        scale, softcap: See `vocab_loss.OutputHead`.
    """
    total, largest, product = _run(x, table, ids, reference, scale, softcap, top=False)
    return Sums(jnp.sum(total, axis=-1), jnp.max(largest, axis=-1), product)


def top(
    x: Float[Array, "N D"], table: Float[Array, "V D"], *, scale: float, softcap: float | None
) -> Float[Array, " N"]:
    """The largest logit of each token; arguments as of `sums`."""
    nothing = jnp.zeros(x.shape[0], jnp.float32)
    _, largest, _ = _run(x, table, nothing.astype(jnp.int32), nothing, scale, softcap, top=True)
    return jnp.max(largest, axis=-1)


def _kernel(  # type: ignore[no-untyped-def]
    x_all, table, reference, ids, product, total, largest, x, acc, *cast_and_sem, static: _Static
) -> None:
    (rows, block, resident), scale, softcap, find_top = static.sizes, static.scale, static.softcap, static.top
    part, number = pl.program_id(0), pl.program_id(1)
    *cast, sem = cast_and_sem
    tokens = pl.ds(pl.multiple_of(part * resident, LANES), resident)

    def copy(source: Any, to: Any) -> None:
        transfer = pltpu.make_async_copy(source, to, sem)
        transfer.start()
        transfer.wait()

    def each(body: Any) -> None:
        jax.lax.fori_loop(0, resident // block, lambda i, _: body(pl.ds(pl.multiple_of(i * block, block), block)), None)

    @pl.when(number == 0)
    def _() -> None:
        copy(x_all.at[tokens, :], x)
        total[...] = jnp.zeros_like(total)
        largest[...] = jnp.full_like(largest, -jnp.inf if find_top else 0.0)

        def clear(at: Any) -> None:
            acc[at, :] = jnp.zeros((block, acc.shape[1]), jnp.float32)

        each(clear)

    if cast:
        cast[0][...] = table[...].astype(x.dtype)
    used = cast[0] if cast else table
    dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
    wide = (1, rows // LANES)

    def step(at: Any) -> None:
        logits = dot(x[at, :], used[...], (((1,), (1,)), ((), ())))
        logits = logits * scale if scale != 1 else logits
        slope: Any = None
        if softcap is not None:
            inner = jnp.tanh(logits / softcap)
            logits, slope = softcap * inner, 1.0 - inner * inner
        if find_top:
            largest[at, :] = _by_lane(jnp.maximum, largest[at, :], logits)
            return
        e = jnp.exp2((logits - jnp.tile(reference[at, :], wide)) * LOG2E)
        columns = jax.lax.broadcasted_iota(jnp.int32, e.shape, 1)
        e = jnp.where(columns == jnp.tile(ids[at, :] - number * rows, wide), 0.0, e)
        total[at, :] = _by_lane(jnp.add, total[at, :], e)
        largest[at, :] = _by_lane(jnp.maximum, largest[at, :], e)
        e = e if slope is None else e * slope
        acc[at, :] += dot(e.astype(x.dtype), used[...], (((1,), (0,)), ((), ())))

    each(step)

    @pl.when(number == pl.num_programs(1) - 1)
    def _() -> None:
        copy(acc, product.at[tokens, :])


def _by_lane(op: Any, found: Array, x: Array) -> Array:
    """``op`` of [X, 128] and every 128 columns of [X, V]."""
    for at in range(0, x.shape[1], LANES):
        found = op(found, x[:, at : at + LANES])
    return found


def _run(
    x: Array, table: Array, ids: Array, reference: Array, scale: float, softcap: float | None, top: bool
) -> tuple[Array, Array, Array]:
    found = sizes(x.shape[0], table.shape, table.dtype.itemsize)
    assert found is not None, (x.shape, table.shape)
    static = _Static(float(scale), None if softcap is None else float(softcap), found, top)
    return by_platform(_call, static)(x, table, ids, reference)


def _call(
    x: Array, table: Array, ids: Array, reference: Array, *, static: _Static, interpret: bool
) -> tuple[Array, Array, Array]:
    """-> sums by lane [N, 128], maxima by lane [N, 128], products [N, D]."""
    (tokens, d), (rows, block, resident) = x.shape, static.sizes
    more = -tokens % resident
    x = jnp.pad(x, [(0, more), (0, 0)])
    ids, reference = (
        jnp.broadcast_to(jnp.pad(each, (0, more))[:, None], (tokens + more, LANES)) for each in (ids, reference)
    )
    vmem, lanes = pltpu.VMEM, pl.BlockSpec((resident, LANES), lambda i, j: (i, 0))
    cast = [] if table.dtype == x.dtype else [vmem((rows, d), x.dtype)]
    by_lane = jax.ShapeDtypeStruct((tokens + more, LANES), jnp.float32)
    stay = pl.BlockSpec(memory_space=pl.ANY)
    product, total, largest = pl.pallas_call(
        functools.partial(_kernel, static=static),
        grid=((tokens + more) // resident, table.shape[0] // rows),
        in_specs=[stay, pl.BlockSpec((rows, d), lambda i, j: (j, 0)), lanes, lanes],
        out_specs=[stay, lanes, lanes],
        out_shape=[jax.ShapeDtypeStruct(x.shape, jnp.float32), by_lane, by_lane],
        scratch_shapes=[vmem((resident, d), x.dtype), vmem((resident, d), jnp.float32), *cast, pltpu.SemaphoreType.DMA],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        interpret=interpret,
        name=f"vocab_{'top' if static.top else 'sums'}_{rows}x{block}x{resident}",
    )(x, table, reference, ids)
    return total[:tokens], largest[:tokens], product[:tokens]
