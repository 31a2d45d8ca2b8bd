"""The seam between Flax NNX modules and plain pytrees.

A module class describes its parameters and what they do; everything outside ``models/`` sees nested dicts. A *maker* is
a function Rngs -> module; it is only ever run abstractly: to learn shapes, axes and how to initialise, and whenever
parameters are bound to it inside a traced function (which costs nothing at run time).

Each parameter declares its logical axes beside its shape: ``param(rngs, shape, axes)``.
"""

import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Params = dict[str, Any]
Module = TypeVar("Module", bound=nnx.Module)
Maker = Callable[[nnx.Rngs], Module]


def param(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], fan_in: int | None = None, fill: float = 0.0
) -> nnx.Param:
    """A float32 parameter with logical axis names: normal with variance 1 / fan_in, or the constant ``fill``.

    It only declares these; `init` draws. (Dozens of draws traced by JAX take half a minute to compile on a CPU.)
    """
    del rngs
    assert len(shape) == len(axes), (shape, axes)
    return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes, fan_in=fan_in, fill=fill)


def shapes(make: Maker, stacked: int | None = None) -> Params:
    """The shape and dtype of each leaf, with ``stacked`` in front where that many modules are stacked."""
    front = () if stacked is None else (stacked,)
    return _each(make, lambda _, v: jax.ShapeDtypeStruct(front + v.shape, v.dtype))


def axes(make: Maker, stacked: str | None = None) -> Params:
    """The logical axis names of each leaf, with ``stacked`` in front where modules are stacked."""
    front = () if stacked is None else (stacked,)
    return _each(make, lambda _, v: front + v.get_metadata()["axes"])


def init(make: Maker, seed: int, path: tuple[str, ...], stacked: int | None = None) -> Params:
    """Fresh float32 NumPy arrays. Each leaf draws from (seed, its path), so a new part changes no other."""
    front = () if stacked is None else (stacked,)

    def draw(leaf_path, variable):
        declared = variable.get_metadata()
        if declared["fan_in"] is None:
            return np.full(front + variable.shape, declared["fill"], np.float32)
        name = zlib.crc32("/".join((*path, *leaf_path)).encode())
        normal = np.random.default_rng([seed, name]).standard_normal(front + variable.shape, np.float32)
        return normal * np.float32(declared["fan_in"] ** -0.5)

    return _each(make, draw)


def _each(make: Maker, function: Callable[[tuple[str, ...], nnx.Variable], Any]) -> Params:
    """A nested dict of ``function(path, variable)`` over a module's parameters, which are shapes only."""
    tree: Params = {}
    for path, variable in nnx.state(nnx.eval_shape(lambda: make(nnx.Rngs(0)))).flat_state():
        put(tree, path, function(path, variable))
    return tree


def put(tree: Params, path: tuple[str, ...], value: Any) -> None:
    """tree[path[0]][path[1]]... = value, making the dicts on the way."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def bind(make: Maker[Module], params: Params) -> Module:
    """The module with these parameters (arrays, tracers, or slices of stacked ones) in it."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)
