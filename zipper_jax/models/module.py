"""Base of all modules: declared parameters, their initialisation, and conversion to and from nested dicts.

A module declares its parameters (shape, logical axes, initial values, use) with `param`; they are initialised when the
outermost constructor returns, each leaf on the host from (seed, its path). So ``Zipper(config, rngs=nnx.Rngs(0))`` is
an ordinary initialised Flax NNX model, adding a part does not change the initial values of others, and a process can
initialise single leaves. (Sixty draws traced by JAX take half a minute to compile on a CPU.)

Outside ``models/`` parameters are nested dicts of arrays; `bind` puts them into a model, `pure` extracts them.
"""

import functools
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from zipper_jax.ops.interval_attention.registry import Implementation, Partition, Setting, using
from zipper_jax.utils.trees import unflatten

Params = dict[str, Any]
Use = Literal["product", "lookup", "scale", "gate"]
M = TypeVar("M", bound=nnx.Module)

_context = threading.local()


class Module(nnx.Module):
    """An ``nnx.Module`` whose declared parameters are initialised when its outermost constructor returns.

    Constructors take ``rngs`` by keyword, as in Flax.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _drawing(cls.__init__)  # type: ignore[method-assign]


def _drawing(construct: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(construct)
    def wrapped(self: Any, *args: Any, rngs: nnx.Rngs, **kwargs: Any) -> None:
        inner = getattr(_context, "inside", False)
        before = None if inner else rngs.params.count[...]  # plain Flax layers inside draw from the same stream
        _context.inside = True
        try:
            construct(self, *args, rngs=rngs, **kwargs)
        finally:
            _context.inside = inner
        if not inner:
            _draw(self, rngs, before)

    return wrapped


def param(
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    *,
    use: Use,
    fan_in: int | None = None,
    fill: float = 0.0,
    output: bool = False,
) -> nnx.Param:
    """Declare a float32 parameter.

    Args:
        shape: Of one member; `stack` prepends an axis.
        axes: Logical name of each axis, for sharding; None: never sharded.
        use: "product": a kernel of matrix products, cast to their dtype; "lookup": an embedding table; "scale": norms
            and biases, used in float32; "gate": a scalar whose tanh scales an effect.
        fan_in: Initialised from a normal of variance 1 / fan_in; None: filled with ``fill``.
        fill: The constant.
        output: Whether it is an output table: logits are products with its rows.
    """
    assert len(shape) == len(axes), (shape, axes)
    value: Any = jax.ShapeDtypeStruct(shape, jnp.float32)
    return nnx.Param(value, axes=axes, fan_in=fan_in, fill=fill, use=use, output=output, stacked=False)


def stack(make: Callable[[], M], count: int, axis: str) -> M:
    """Stack ``count`` modules into one whose parameters are [count, ...], the first axis named ``axis``.

    Parameters that a module initialises itself (plain Flax layers) are initialised for each member.
    """
    first = make()
    found = parameters(first)
    own = {path: v for path, v in found.items() if not isinstance(v.get_raw_value(), jax.ShapeDtypeStruct)}
    others = [parameters(make()) for _ in range(count - 1)] if own else []
    for path, variable in found.items():
        value = variable.get_raw_value()
        axes = variable.get_metadata().get("axes") or (None,) * value.ndim
        variable.set_metadata(axes=(axis, *axes), stacked=True)
        if path in own:
            variable.set_raw_value(jnp.stack([value, *(other[path].get_raw_value() for other in others)]))
        else:
            variable.set_raw_value(jax.ShapeDtypeStruct((count, *value.shape), value.dtype))
    return first


def draw(seed: int, path: str, variable: nnx.Variable) -> np.ndarray:
    """The initial value of a declared parameter, on the host: a pure function of (seed, path)."""
    declared = variable.get_metadata()
    shape = tuple(variable.get_raw_value().shape)
    if declared["fan_in"] is None:
        return np.full(shape, declared["fill"], np.float32)
    normal = np.random.default_rng([seed, zlib.crc32(path.encode())]).standard_normal(shape, np.float32)
    return normal * np.float32(declared["fan_in"] ** -0.5)


def is_declared(variable: nnx.Variable) -> bool:
    """Whether the parameter was declared with `param`, so that `draw` can initialise it."""
    return "fan_in" in variable.get_metadata()


def _draw(module: nnx.Module, rngs: nnx.Rngs, count: Any) -> None:
    """Initialise all declared parameters. The first module of an Rngs(s) uses seed s, later ones other seeds.

    ``count`` is the stream's count before the module was constructed.
    """
    declared = [
        (path, v) for path, v in parameters(module).items() if isinstance(v.get_raw_value(), jax.ShapeDtypeStruct)
    ]
    if not declared:
        return
    stream = rngs.params
    key = stream.key[...]
    stream()  # the next module of these rngs starts from another seed
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    for path, variable in declared:
        if isinstance(words, jax.core.Tracer) or isinstance(count, jax.core.Tracer):  # in jit, or for its shape alone
            like = variable.get_raw_value()
            shape = jax.ShapeDtypeStruct(like.shape, like.dtype)
            frozen = variable.replace(like)
            call = functools.partial(_draw_words, path=path, variable=frozen)
            variable.set_raw_value(jax.pure_callback(call, shape, words, count))
        else:
            variable.set_raw_value(jnp.asarray(_draw_words(np.asarray(words), int(count), path, variable)))


def _draw_words(words: Any, count: Any, path: str, variable: nnx.Variable) -> np.ndarray:
    seed = int.from_bytes(np.asarray(words, ">u4").tobytes(), "big")
    return draw(seed, path if int(count) == 0 else f"{int(count)}:{path}", variable)


def parameters(module: nnx.Module) -> dict[str, nnx.Param]:
    """Path -> parameter with its metadata, sorted by path: ``blocks/attention/query/kernel``."""
    leaves = jax.tree_util.tree_flatten_with_path(module, is_leaf=lambda x: isinstance(x, nnx.Variable))[0]
    return dict(sorted(("/".join(map(_name, path)), leaf) for path, leaf in leaves if isinstance(leaf, nnx.Param)))


def _name(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", key)))


def pure(module: nnx.Module) -> Params:
    """The parameters of a module as nested dicts of arrays."""
    return unflatten({path: variable.get_raw_value() for path, variable in parameters(module).items()})


def bind(module: M, params: Mapping[str, Any]) -> M:
    """``module`` with its parameters replaced by those of a nested dict (arrays or tracers).

    Raises:
        ValueError: A parameter is missing in ``params``.
    """

    def of(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Param):
            return leaf
        value: Any = params
        for key in path:
            if not isinstance(value, Mapping) or _name(key) not in value:
                raise ValueError(f"the parameters lack {'/'.join(_name(k) for k in path)}")
            value = value[_name(key)]
        return leaf.replace(value)

    return jax.tree_util.tree_map_with_path(of, module, is_leaf=lambda x: isinstance(x, nnx.Variable))


# ---- how a model is run ----------------------------------------------------------------------------------------------


@runtime_checkable
class Placer(Protocol):
    """Shards arrays by their logical axes: ``placer(x, tower, name or None per axis)``; ``batch`` names the rows.

    With ``in_use=True``: a parameter as it is used, gathered over the mesh axes that shard batch rows.

    Attributes:
        mesh: The devices; None: one device, nothing is sharded.
    """

    @property
    def mesh(self) -> Mesh | None: ...

    def __hash__(self) -> int: ...

    def __call__(self, x: Array, tower: str, *names: str | None, in_use: bool = False) -> Array: ...

    def spec(self, shape: tuple[int, ...], tower: str, *names: str | None, in_use: bool = False) -> PartitionSpec:
        """The spec of an array of this shape."""
        ...


class Unsharded:
    """The placer for one device."""

    mesh = None

    def __call__(self, x: Array, tower: str, *names: str | None, in_use: bool = False) -> Array:
        """``x`` as it is."""
        return x

    def spec(self, shape: tuple[int, ...], tower: str, *names: str | None, in_use: bool = False) -> PartitionSpec:
        """Of nothing sharded."""
        return PartitionSpec()


unsharded = Unsharded()


@dataclass(frozen=True)
class Execution:
    """How a tower and the zips into it are executed.

    Attributes:
        dtype: Of matrix products.
        scan: Run identical blocks under ``lax.scan``, or unrolled.
        remat: What the backward pass recomputes, see `ZipperConfig`.
        placer: Shards arrays; one that shards over a mesh has a ``mesh``, and ``spec`` for the spec it applies.
        tower: The tower whose sharding rules apply.
        attention: Implementation of attention, see `ZipperConfig`.
    """

    dtype: Any = jnp.float32
    scan: bool = True
    remat: str = "none"
    placer: Placer = unsharded
    tower: str = ""
    attention: Implementation = "auto"

    def shard(self, x: Array, *names: str | None) -> Array:
        """Shard an activation by its logical axes."""
        return self.placer(x, self.tower, *names)

    def gather(self, x: Array, *names: str | None) -> Array:
        """Gather a sharded parameter for use; in the backward pass its gradient is sharded in the same way.

        The explicit constraint keeps the compiler from splitting a product along its contracted axis, which would
        all-reduce activations of the whole batch.
        """
        return self.placer(self.placer(x, self.tower, *names), self.tower, *names, in_use=True)

    def in_use(self, module: M) -> M:
        """Prepare a module for use: cast and gather kernels; lookup tables, of which few rows are read, stay sharded.

        All parameters are cast and gathered here, except output tables (`Tower.logits`).
        """
        if self.placer is unsharded:  # each layer casts its own kernel
            return module

        def of(variable: Any) -> Any:
            if not isinstance(variable, nnx.Param):
                return variable
            x, declared = variable.get_raw_value(), variable.get_metadata()
            axes = declared.get("axes") or (None,) * x.ndim
            axes = axes[len(axes) - x.ndim :]  # a member of a stack has lost the first
            use = declared.get("use")
            if use == "lookup":
                return variable.replace(self.shard(x, *axes))
            return variable.replace(self.gather(x.astype(self.dtype) if use == "product" else x, *axes))

        return jax.tree.map(of, module, is_leaf=lambda x: isinstance(x, nnx.Variable))

    def attending(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """``body`` with this tower's implementation of attention, on its mesh, also in fusions of the user's."""
        mesh = getattr(self.placer, "mesh", None)
        setting = Setting(self.attention, None if mesh is None else self.partition, mesh)

        @functools.wraps(body)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with using(setting):
                return body(*args, **kwargs)

        return wrapped

    def partition(self, query: tuple[int, ...], key: tuple[int, ...]) -> Partition:
        """How an attention call's arrays of these shapes, [B, T, N, H] and [B, S, K, H], are sharded."""
        placer: Any = self.placer
        rows, _, heads, _ = placer.spec(query, self.tower, "batch", None, "heads", None)
        return Partition(placer.mesh, rows, heads, placer.spec(key, self.tower, "batch", None, "kv_heads", None)[2])

    def recompute(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """``body`` under ``jax.checkpoint``, as ``remat`` says."""
        if self.remat == "none":
            return body
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.remat == "dots" else None
        return jax.checkpoint(body, policy=policy)


def loop(body: Callable[[Any, Any], tuple[Any, None]], carry: Any, tree: Any, indices: Any, scan: bool) -> Any:
    """The carry after ``body`` for each member of ``tree`` and its index, under ``lax.scan`` or unrolled."""
    if scan and len(indices) > 1:
        return jax.lax.scan(body, carry, (tree, indices))[0]
    for i, index in enumerate(indices):
        carry, _ = body(carry, (member(tree, i), index))
    return carry


def cut(tree: Any, first: int, last: int) -> Any:
    """Members ``first`` to ``last`` (from 1, inclusive) of stacked or separate parameters."""
    if isinstance(tree, nnx.List):
        return nnx.List(list(tree)[first - 1 : last])
    leaves = jax.tree.leaves(tree)
    complete = not leaves or leaves[0].shape[0] == last - first + 1  # a fusion may have no parameters
    return tree if complete else jax.tree.map(lambda leaf: leaf[first - 1 : last], tree)


def member(tree: Any, index: Any) -> Any:
    """One member of stacked (or, by `unstack`, separate) parameters, counted from 0; ``index`` may be a tracer."""
    return tree[int(index)] if isinstance(tree, nnx.List) else jax.tree.map(lambda leaf: leaf[index], tree)


def unstack(tree: M) -> Any:
    """The members of stacked parameters, each in arrays of its own."""
    if isinstance(tree, nnx.List) or not jax.tree.leaves(tree):
        return tree
    count = jax.tree.leaves(tree)[0].shape[0]
    return nnx.List([member(tree, i) for i in range(count)])
