"""Token losses of a large vocabulary, without an array of all tokens' logits.

Tokens are processed in chunks. For each chunk one product gives the logits, from which a single pass keeps the summed
exponentials, their maximum and, in the compute dtype, the exponentials themselves; where a gradient is asked for, those
times the tables give it in the same pass, so the backward pass only scales what is stored. On TPUs a kernel does this
for frozen tables (`vocab_loss_tpu`), which keeps no exponentials.

The exponentials are relative to the target's own logit, which is known before the others:
``nll = log(own + others) - log(own)``, with ``others`` the sum over all tokens but the target. No maximum has to be
found first, and the gradient of the target's logit, ``-others / (own + others)``, has no cancellation. Where a logit
exceeds the target's by so much that the sum could overflow, the chunk is computed again relative to its maximum.

Axis letters: B rows, T positions, N tokens of a chunk, D embed_dim, V vocabulary of one table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from zipper_jax.ops import vocab_loss_tpu
from zipper_jax.ops.losses import Losses

LARGE_VOCABULARY = 8192
"""With more tokens than this `models` compute the loss here; with fewer from logits (`ops.losses`)."""
CHUNK = 2048
"""Tokens of a chunk on one device: enough for products at the peak of a TPU's matrix units, which then wait for
arithmetic and not for the table."""
MOST_CASTS = 4
"""Chunks up to which a table of another dtype is cast in every product, where it costs reading 2 bytes more per value,
and not once for all, which writes and reads a copy. By the cycles of `benchmarks/vocab_loss_tpu.py`."""

_OFFSET = 40.0  # of the reference above the target's logit, so that sums stay in the middle of float32's range
_LARGEST = 1e30  # of the summed exponentials, so that their products with a table are finite


@dataclass(frozen=True)
class Sharding:
    """How the arrays of a loss are sharded.

    Attributes:
        mesh: The devices.
        hidden: Of hidden states [B, T, D]; only rows may be sharded.
        tables: Of each table in use, [V, D]; only its rows may be sharded.
        stored: Of each table as stored, and of its gradient.
    """

    mesh: Mesh
    hidden: PartitionSpec
    tables: tuple[PartitionSpec, ...]
    stored: tuple[PartitionSpec, ...]

    @property
    def row_axes(self) -> tuple[str, ...]:
        """Mesh axes over which rows are sharded."""
        return _axes(self.hidden)

    @property
    def vocab_axes(self) -> tuple[tuple[str, ...], ...]:
        """Of each table, the mesh axes over which its rows are sharded."""
        return tuple(_axes(spec) for spec in self.tables)


@dataclass(frozen=True)
class OutputHead:
    """What turns products with the tables into logits.

    Attributes:
        scale: Factor of the products.
        softcap: c: logits are c * tanh(scaled product / c); None: not capped.
        z_loss: Factor of the square of log Z that is added to the loss.
        sharding: None: everything is on one device.
        implementation: Of the sums over frozen tables: "xla"; "pallas_tpu" (bfloat16 states; interpreted, slowly,
            elsewhere); or "auto": the kernel on TPUs, for tables that it serves. The compiler partitions no kernel: a
            program for several devices needs ``sharding`` for the latter two.
    """

    scale: float = 1.0
    softcap: float | None = None
    z_loss: float = 0.0
    sharding: Sharding | None = None
    implementation: Literal["auto", "pallas_tpu", "xla"] = "xla"

    def logits(self, products: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."] | float]:
        """Logits, and their derivative with respect to the scaled products."""
        scaled = products * self.scale if self.scale != 1 else products
        if self.softcap is None:
            return scaled, 1.0
        inner = jnp.tanh(scaled / self.softcap)
        return self.softcap * inner, 1.0 - inner * inner


def vocab_loss(
    hidden: Float[Array, "B T D"],
    tables: Sequence[Float[Array, "_ D"]],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    head: OutputHead = OutputHead(),
    chunk: int = CHUNK,
) -> Losses:
    """Losses of hidden states under one or more output tables, whose token ids follow each other.

    Tables are cast to the dtype of ``hidden`` for the products, which are accumulated in float32; so are the gradients
    of tables. Only tables that are differentiated get one.

    Args:
        hidden: The final states.
        tables: Output tables.
        targets: Token ids; one outside all tables is an error that is not detected.
        weights: Of each token.
        head: Scale, cap, z-loss, sharding.
        chunk: Tokens of a chunk on one device.
    """
    total, nll, correct = _losses(hidden, tuple(tables), targets, weights, head, chunk)
    return Losses(total, jax.lax.stop_gradient(nll), jax.lax.stop_gradient(correct))


# ---- the differentiable function -------------------------------------------------------------------------------------

_Outputs = tuple[Float[Array, ""], Float[Array, "B T"], Float[Array, "B T"]]


class _Chunk(NamedTuple):
    """Of each token of a chunk, N.

    Attributes:
        nll: -log softmax, unweighted.
        log_z: log of the sum of exponentials.
        correct: 1 where the target has the largest logit.
        hidden: Gradient of the weighted loss; None: not asked for.
    """

    nll: Float[Array, " N"]
    log_z: Float[Array, " N"]
    correct: Float[Array, " N"]
    hidden: Float[Array, "N D"] | None


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _losses(hidden: Any, tables: Any, targets: Any, weights: Any, head: OutputHead, chunk: int) -> _Outputs:
    found, _ = _every_device(hidden, tables, targets, weights, head, chunk, None)
    return _outputs(found, weights, head)


def _forward(
    hidden: Any, tables: Any, targets: Any, weights: Any, head: OutputHead, chunk: int
) -> tuple[_Outputs, tuple[Any, ...]]:
    trained = tuple(table.perturbed for table in tables)
    arrays = (hidden.value, tuple(table.value for table in tables), targets.value, weights.value)
    found, gradients = _every_device(*arrays, head, chunk, trained)
    outputs = _outputs(found, weights.value, head)
    of_weights = found.nll + head.z_loss * found.log_z**2
    likes = tuple(jnp.zeros((0,), table.value.dtype) for table in tables)  # their dtypes, for the backward pass
    return outputs, (found.hidden, gradients, of_weights, likes)


def _backward(head: OutputHead, chunk: int, kept: tuple[Any, ...], cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden, gradients, of_weights, likes = kept
    by = cotangents[0]
    by = jnp.zeros((), jnp.float32) if isinstance(by, SymbolicZero) else by
    tables = tuple(
        None if gradient is None else (gradient * by).astype(like.dtype)
        for gradient, like in zip(gradients, likes, strict=True)
    )
    return (hidden * by).astype(hidden.dtype), tables, None, of_weights * by


_losses.defvjp(_forward, _backward, symbolic_zeros=True)


def _outputs(found: _Chunk, weights: Float[Array, "B T"], head: OutputHead) -> _Outputs:
    nll = weights * found.nll
    total = jnp.sum(nll)
    if head.z_loss:
        total += head.z_loss * jnp.sum(weights * found.log_z**2)
    return total, nll, weights * found.correct


# ---- devices and chunks ----------------------------------------------------------------------------------------------


def _every_device(
    hidden: Float[Array, "B T D"],
    tables: tuple[Float[Array, "_ D"], ...],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    head: OutputHead,
    chunk: int,
    trained: tuple[bool, ...] | None,
) -> tuple[_Chunk, tuple[Float[Array, "_ D"] | None, ...]]:
    """`_one_device` on every device, with its rows and its part of the tables; gradients are summed over devices.

    ``trained``: which tables get a gradient; None: nothing does.
    """
    sharding = head.sharding
    run = partial(_one_device, head=head, chunk=chunk, trained=trained)
    if sharding is None:
        return run(hidden, tables, targets, weights)
    mesh, rows = sharding.mesh, PartitionSpec(sharding.hidden[0], None)
    cast = tuple(table.astype(hidden.dtype) for table in tables)
    used = _constrain(cast, mesh, sharding.stored)  # cast before they are gathered
    of_hidden = None if trained is None else sharding.hidden
    of_tables = tuple(spec if train else None for spec, train in zip(sharding.tables, trained or (), strict=False))
    mapped = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(sharding.hidden, sharding.tables, rows, rows),
        out_specs=(_Chunk(rows, rows, rows, of_hidden), of_tables),  # type: ignore[arg-type]
        check_vma=False,
    )
    found, gradients = mapped(hidden, used, targets, weights)
    return found, _constrain(gradients, mesh, sharding.stored)


def _constrain(tables: Sequence[Any], mesh: Mesh, specs: Sequence[PartitionSpec]) -> tuple[Any, ...]:
    return tuple(
        None if table is None else jax.lax.with_sharding_constraint(table, NamedSharding(mesh, spec))
        for table, spec in zip(tables, specs, strict=False)
    )


def _one_device(
    hidden: Float[Array, "B T D"],
    tables: tuple[Float[Array, "_ D"], ...],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    head: OutputHead,
    chunk: int,
    trained: tuple[bool, ...] | None,
) -> tuple[_Chunk, tuple[Float[Array, "_ D"] | None, ...]]:
    rows, positions, _ = hidden.shape
    tokens = rows * positions
    chunks = max(-(-tokens // chunk), 1)
    size = -(-tokens // chunks)
    size = size if chunks == 1 else -(-size // 16) * 16
    if chunks > MOST_CASTS:
        tables = tuple(table.astype(hidden.dtype) for table in tables)
    pad = chunks * size - tokens

    def split(x: Array) -> Array:
        x = x.reshape(tokens, *x.shape[2:])
        return jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)).reshape(chunks, size, *x.shape[1:])

    def merge(x: Array) -> Array:
        return x.reshape(chunks * size, *x.shape[2:])[:tokens].reshape(rows, positions, *x.shape[2:])

    def body(sums: Any, part: Any) -> tuple[Any, _Chunk]:
        x, targets, weights = part
        served = _served(x, tables, head, trained)
        plain, kernel = (partial(_one_chunk, head=head, trained=trained, served=each) for each in (frozenset(), served))
        if not served or head.implementation == "pallas_tpu":
            found, gradients = kernel(x, targets, weights, tables)
        else:
            found, gradients = jax.lax.platform_dependent(x, targets, weights, tables, tpu=kernel, default=plain)
        return jax.tree.map(jnp.add, sums, gradients), found

    zeros = tuple(
        jnp.zeros(table.shape, jnp.float32) if train else None
        for table, train in zip(tables, trained or (), strict=False)
    )
    sums, found = jax.lax.scan(body, zeros, (split(hidden), split(targets), split(weights)))
    if head.sharding is not None and head.sharding.row_axes:
        sums = jax.lax.psum(sums, head.sharding.row_axes)
    return jax.tree.map(merge, found), sums


# ---- one chunk -------------------------------------------------------------------------------------------------------


class _Sums(NamedTuple):
    """Sums over all tokens but the target, relative to a reference logit.

    Attributes:
        reference: The logit that exponentials are relative to.
        others: Sum of the exponentials.
        largest: Their maximum.
        kept: Of each table, the exponentials times the logits' derivative, in the compute dtype, 0 for the target; of
            one that the kernel serves, their product with the table.
    """

    reference: Float[Array, " N"]
    others: Float[Array, " N"]
    largest: Float[Array, " N"]
    kept: tuple[Float[Array, "N _"], ...]


def _served(
    x: Float[Array, "N D"], tables: tuple[Float[Array, "_ D"], ...], head: OutputHead, trained: tuple[bool, ...] | None
) -> frozenset[int]:
    """The tables that the kernel serves: frozen ones, where a gradient is asked for.

    None whose embed_dim is sharded: XLA gathers those into another layout than the kernel's, and would hold a copy.
    """
    if head.implementation == "xla" or trained is None or x.dtype != jnp.bfloat16:
        return frozenset()
    split = [_axes(spec, 1) for spec in head.sharding.stored] if head.sharding is not None else [()] * len(tables)
    frozen = [i for i, train in enumerate(trained) if not train and not split[i]]
    return frozenset(i for i in frozen if vocab_loss_tpu.sizes(len(x), tables[i].shape, tables[i].dtype.itemsize))


def _one_chunk(
    x: Float[Array, "N D"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    tables: tuple[Float[Array, "_ D"], ...],
    *,
    head: OutputHead,
    trained: tuple[bool, ...] | None,
    served: frozenset[int],
) -> tuple[_Chunk, tuple[Float[Array, "_ D"] | None, ...]]:
    """``served``: tables whose sums the kernel makes."""
    axes = head.sharding.vocab_axes if head.sharding is not None else ((),) * len(tables)
    ids, rows = _targets(targets, tables, axes, x.dtype)
    own_product = jnp.zeros(targets.shape, jnp.float32)
    for row, axis in zip(rows, axes, strict=True):
        own_product += _psum(jnp.sum(x.astype(jnp.float32) * row, axis=-1), axis)
    own, own_slope = head.logits(own_product)
    scaling: dict[str, Any] = {"scale": head.scale, "softcap": head.softcap}

    def sums(x: Float[Array, "N D"], reference: Float[Array, " N"]) -> _Sums:
        others, largest, kept = jnp.zeros_like(reference), jnp.zeros_like(reference), []
        for i, (table, own_ids, axis) in enumerate(zip(tables, ids, axes, strict=True)):
            if i in served:
                total, most, product = vocab_loss_tpu.sums(x, table, own_ids, reference, **scaling)
                kept.append(product)
            else:
                logits, slope = head.logits(_products(x, table))
                e = jnp.where(_hits(own_ids, table), 0.0, jnp.exp(logits - reference[:, None]))
                total, most = jnp.sum(e, axis=-1), jnp.max(e, axis=-1)
                kept += [] if trained is None else [(e * slope).astype(x.dtype)]
            others += _psum(total, axis)
            largest = jnp.maximum(largest, _pmax(most, axis))
        return _Sums(reference, others, largest, tuple(kept))

    @jax.named_scope("rarely")  # see `aot.profile`
    def again(first: _Sums) -> _Sums:
        reference = own
        for i, (table, axis) in enumerate(zip(tables, axes, strict=True)):
            if i in served:
                top = vocab_loss_tpu.top(x, table, **scaling)
            else:
                top = jnp.max(head.logits(_products(x, table))[0], axis=-1)
            reference = jnp.maximum(reference, _pmax(top, axis))
        return sums(*jax.lax.optimization_barrier((x, reference)))  # a second product instead of logits in float32

    found = sums(x, own + _OFFSET)
    # The branch also keeps the compiler from computing exponentials from stored logits, once for each use.
    found = jax.lax.cond(_everywhere(found.others < _LARGEST, head), lambda first: first, again, found)
    others, own_exp = found.others, jnp.exp(own - found.reference)
    total = own_exp + others
    log_z = jnp.log(total) + found.reference
    correct = (found.largest < own_exp).astype(jnp.float32)
    if trained is None:
        return _Chunk(log_z - own, log_z, correct, None), ()

    # d loss / d logits = weight * ((1 + z) softmax - one-hot), z from the z-loss; the target apart from the others.
    z = 2 * head.z_loss * log_z
    scale = weights * head.scale / total * (1 + z)
    own_share = own_slope * (z * own_exp - others) / (1 + z)
    gradient = jnp.zeros(x.shape, jnp.float32)
    of_tables: list[Any] = []
    each = zip(tables, ids, rows, axes, found.kept, trained, strict=True)
    for i, (table, own_ids, row, axis, e, train) in enumerate(each):
        part = e if i in served else jnp.einsum("NV,VD->ND", e, _cast(table, e), preferred_element_type=jnp.float32)
        gradient += _psum(part + own_share[:, None] * row, axis)
        if train:
            every = jnp.where(_hits(own_ids, table), own_share[:, None], e.astype(jnp.float32)).astype(x.dtype)
            scaled = (x * scale[:, None]).astype(x.dtype)
            of_tables.append(jnp.einsum("NV,ND->VD", every, scaled, preferred_element_type=jnp.float32))
        else:
            of_tables.append(None)
    gradient = (gradient * scale[:, None]).astype(x.dtype)
    return _Chunk(log_z - own, log_z, correct, gradient), tuple(of_tables)


def _targets(
    targets: Int[Array, " N"], tables: tuple[Float[Array, "_ D"], ...], axes: tuple[tuple[str, ...], ...], dtype: Any
) -> tuple[list[Int[Array, " N"]], list[Float[Array, "N D"]]]:
    """The target's row number in each table of this device, and the row in float32 (0 where the table lacks it).

    Rows are rounded to ``dtype``, in which products see them.
    """
    bits = jnp.finfo(dtype)
    ids, rows, first = [], [], 0
    for table, axis in zip(tables, axes, strict=True):
        size = table.shape[0]
        ways = jax.lax.axis_size(axis) if axis else 1
        local = targets - first - (jax.lax.axis_index(axis) * size if axis else 0)
        ids.append(local)
        inside = (local >= 0) & (local < size)
        row = jnp.take(table, local, axis=0, mode="clip").astype(jnp.float32)
        row = jax.lax.reduce_precision(row, bits.nexp, bits.nmant)  # the compiler may skip a cast there and back
        rows.append(jnp.where(inside[:, None], row, 0.0))
        first += size * ways
    return ids, rows


def _hits(ids: Int[Array, " N"], table: Float[Array, "V D"]) -> Bool[Array, "N V"]:
    return jnp.arange(table.shape[0]) == ids[:, None]


def _products(x: Float[Array, "N D"], table: Float[Array, "V D"]) -> Float[Array, "N V"]:
    return jnp.einsum("ND,VD->NV", x, _cast(table, x), preferred_element_type=jnp.float32)


def _cast(table: Float[Array, "V D"], other: Array) -> Float[Array, "V D"]:
    """The table in the dtype of a product's other operand, by a cast of its own, which becomes part of the product."""
    if table.dtype == other.dtype:
        return table
    return jax.lax.optimization_barrier((table, other))[0].astype(other.dtype)


def _everywhere(condition: Bool[Array, " N"], head: OutputHead) -> Bool[Array, ""]:
    """Whether all tokens of this chunk on all devices fulfil it: devices must branch alike."""
    fails = jnp.sum(~condition, dtype=jnp.int32)
    if head.sharding is not None:
        fails = jax.lax.psum(fails, head.sharding.mesh.axis_names)
    return fails == 0


def _psum(x: Array, axes: tuple[str, ...]) -> Array:
    return jax.lax.psum(x, axes) if axes else x


def _pmax(x: Array, axes: tuple[str, ...]) -> Array:
    return jax.lax.pmax(x, axes) if axes else x


def _axes(spec: PartitionSpec, axis: int = 0) -> tuple[str, ...]:
    """Mesh axes over which an axis of an array is sharded."""
    found = spec[axis] if len(spec) > axis else None
    return () if found is None else (found,) if isinstance(found, str) else tuple(found)
