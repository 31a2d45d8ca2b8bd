"""The implementations of interval attention, and the choice between them.

Axis letters: B rows, T queries, S keys, N query heads, K key/value heads, H head_dim, W distances.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from zipper_jax.ops.interval_attention import blockwise, dense, pallas_tpu

Implementation = Literal["auto", "dense", "blockwise", "pallas_tpu"]

# Up to this many scores per head the dense form is faster than blocks, and its memory is small.
_DENSE_LIMIT = 1024 * 1024
# Blocks have 128 queries or more: with fewer (single tokens in decoding) the kernel would compute mostly padding.
_KERNEL_QUERIES = 128
# Causal attention on CPU is computed in halves from so many queries on; the first is a multiple of _ALIGNED.
_TWO_HALVES, _ALIGNED = 128, 64


class Call(NamedTuple):
    """What the choice depends on.

    Attributes:
        platform: Of the devices that the program is compiled for: "cpu", "gpu", "tpu".
        queries, keys: T and S.
        head_dim: H.
        distance_bias: Whether there is one.
    """

    platform: str
    queries: int
    keys: int
    head_dim: int
    distance_bias: bool = False


class Choice(NamedTuple):
    """An implementation and why it was chosen."""

    implementation: str
    reason: str


def choose(call: Call, implementation: Implementation = "auto") -> Choice:
    """The implementation of a call.

    Args:
        call: Platform and shapes.
        implementation: The one to use; calls that it cannot serve (pallas_tpu with a distance bias, or head_dim above
            128 and not a multiple of it) are chosen for as by "auto".

    Raises:
        ValueError: There is no such implementation.
    """
    if implementation not in get_args(Implementation):
        known = ", ".join(get_args(Implementation))
        raise ValueError(f"unknown attention implementation {implementation!r}; known: {known}")
    fits = call.head_dim <= 128 or call.head_dim % 128 == 0
    refused = implementation == "pallas_tpu" and (call.distance_bias or not fits)
    if implementation != "auto" and not refused:
        return Choice(implementation, "as configured")
    served = fits and not call.distance_bias
    if call.platform == "tpu" and served and call.queries >= _KERNEL_QUERIES and call.keys > 0:
        return Choice("pallas_tpu", f"TPU, {_KERNEL_QUERIES} queries or more")
    lacks = "no distance bias" if call.distance_bias else f"no head_dim {call.head_dim}"
    why = f"; pallas_tpu has {lacks}" if not served and (refused or call.platform == "tpu") else ""
    if call.queries * call.keys <= _DENSE_LIMIT:
        return Choice("dense", f"at most {_DENSE_LIMIT:,} scores per head{why}")
    return Choice("blockwise", f"more than {_DENSE_LIMIT:,} scores per head{why}")


# ---- a model's setting -----------------------------------------------------------------------------------------------


class Partition(NamedTuple):
    """How the arrays of a call are sharded.

    Attributes:
        mesh: The devices.
        rows: Mesh axes of B; None: replicated.
        heads: Mesh axis of N; None: replicated.
        kv_heads: Mesh axis of K, the same as ``heads``, or None.
    """

    mesh: Mesh
    rows: Any = None
    heads: str | None = None
    kv_heads: str | None = None


@dataclass(frozen=True)
class Setting:
    """What `using` sets for the calls of a model.

    Attributes:
        implementation: The configured one.
        partition: (shape of query, shape of key) -> how they are sharded over ``mesh``; None: no mesh.
        mesh: The devices.
    """

    implementation: Implementation = "auto"
    partition: Callable[[tuple[int, ...], tuple[int, ...]], Partition] | None = None
    mesh: Mesh | None = None


_context = threading.local()


@contextlib.contextmanager
def using(setting: Setting) -> Iterator[None]:
    """Apply a setting to the calls traced inside, wherever a model (or a fusion of the user's) makes them."""
    before = current()
    _context.setting = setting
    try:
        yield
    finally:
        _context.setting = before


def current() -> Setting:
    """The setting that applies here."""
    return getattr(_context, "setting", Setting())


def platform() -> str:
    """Of the devices that the program traced here is for: "cpu", "gpu", "tpu"."""
    mesh = current().mesh
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def on_one_cpu() -> bool:
    """Whether the program traced here is for a single device, a CPU."""
    mesh = current().mesh
    return platform() == "cpu" and (jax.device_count() if mesh is None else mesh.size) == 1


# ---- the call --------------------------------------------------------------------------------------------------------


def run(
    query: Array, key: Array, value: Array, start: Array, end: Array, scale: float, softcap: float | None,
    distance_bias: Array | None, implementation: Implementation | None, return_lse: bool, causal: bool = False,
) -> Any:  # fmt: skip
    """Output and log-sum-exp (None without ``return_lse``) by the chosen implementation."""
    setting = current()
    partition = None if setting.partition is None else setting.partition(query.shape, key.shape)
    device = platform() if partition is None else partition.mesh.devices.flat[0].platform
    on_cpu = device == "cpu"
    if partition is None and device == "tpu" and jax.device_count() > 1:
        device = "cpu"  # the program may span devices, over which the compiler cannot partition a kernel
    call = Call(device, query.shape[1], key.shape[1], query.shape[3], distance_bias is not None)
    chosen = choose(call, implementation or setting.implementation).implementation
    if chosen == "pallas_tpu":
        return _kernel(query, key, value, start, end, scale, softcap, partition)
    plain = {"dense": dense.attention, "blockwise": blockwise.attention}[chosen]
    plain = _in_halves(plain) if causal and on_cpu and call.queries >= _TWO_HALVES else plain
    return plain(query, key, value, start, end, scale, softcap, distance_bias, return_lse)


def _in_halves(plain: Callable[..., Any]) -> Callable[..., Any]:
    """``plain`` for causal attention; the first half of the queries has only their own keys: 3/4 of all scores."""

    def attend(query: Array, key: Array, value: Array, start: Array, end: Array, *options: Any) -> Any:
        t = query.shape[1]
        middle = -(-t // (2 * _ALIGNED)) * _ALIGNED
        found = []
        for first, last in ((0, middle), (middle, t)):
            queries, starts, ends = (x[:, first:last] for x in (query, start, end))
            found.append(plain(queries, key[:, :last], value[:, :last], starts, ends, *options))
        return jax.tree.map(lambda *halves: jnp.concatenate(halves, axis=1), *found)

    return attend


def _kernel(
    query: Array, key: Array, value: Array, start: Array, end: Array, scale: float, softcap: float | None,
    partition: Partition | None,
) -> Any:  # fmt: skip
    """The TPU kernel on each device's rows and heads: the compiler cannot partition a kernel by itself."""

    def attend(*arrays: Array) -> Any:
        return pallas_tpu.attention(*arrays, scale=scale, softcap=softcap)

    if partition is None or partition.mesh.size == 1:
        return attend(query, key, value, start, end)
    rows, heads = partition.rows, partition.heads
    if heads is not None and partition.kv_heads is None:
        # More devices than key/value heads: each gets the one that its query heads share, or all heads stay together.
        ways, kv_heads = partition.mesh.shape[heads], key.shape[2]
        if ways % kv_heads == 0:
            key, value = (x.repeat(ways // kv_heads, axis=2) for x in (key, value))
        else:
            heads = None
    spec, ranges = PartitionSpec(rows, None, heads, None), PartitionSpec(rows, None)
    # check_vma: a kernel does not say over which mesh axes its results vary.
    return jax.shard_map(
        attend,
        mesh=partition.mesh,
        in_specs=(spec, spec, spec, ranges, ranges),
        out_specs=(spec, PartitionSpec(rows, None, heads)),
        check_vma=False,
    )(query, key, value, start, end)
