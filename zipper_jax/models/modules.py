"""The seam between Flax NNX modules and plain pytrees.

A module class describes its parameters and what they do; everything outside ``models/`` sees nested dicts. A *maker* is
a function Rngs -> module; it is run once to initialise, once abstractly to learn shapes and axes, and abstractly again
whenever parameters are bound to it inside a traced function (which costs nothing at run time).

Each parameter declares its logical axes beside its shape: ``param(rngs, shape, axes)``.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

Params = dict[str, Any]
Module = TypeVar("Module", bound=nnx.Module)
Maker = Callable[[nnx.Rngs], Module]


def param(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], fan_in: int | None = None, fill: float = 0.0
) -> nnx.Param:
    """A float32 parameter with logical axis names: normal with variance 1 / fan_in, or the constant ``fill``."""
    assert len(shape) == len(axes), (shape, axes)
    if fan_in is None:
        value = jnp.full(shape, fill, jnp.float32)
    else:
        value = jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5
    return nnx.Param(value, axes=axes)


def init(make: Maker, key: jax.Array) -> Params:
    """Parameters of one module as a nested dict of float32 arrays."""
    return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(params=key))))


def init_stacked(make: Maker, key: jax.Array, count: int) -> Params:
    """``count`` modules made under vmap: every leaf has a leading axis of that length."""
    return jax.vmap(lambda k: init(make, k))(jax.random.split(key, count))


def axes(make: Maker, stacked: str | None = None) -> Params:
    """The logical axis names of each leaf, with ``stacked`` in front where modules are stacked."""
    state = nnx.state(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    front = () if stacked is None else (stacked,)
    return nnx.to_pure_dict(
        jax.tree.map(lambda v: front + v.get_metadata()["axes"], state, is_leaf=lambda v: isinstance(v, nnx.Variable))
    )


def bind(make: Maker[Module], params: Params) -> Module:
    """The module with these parameters (arrays, tracers, or slices of stacked ones) in it."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)
