"""Passes of a model as functions of plain parameters, for tests to compile, and what they are made of."""

import jax

from zipper_jax.models.cache import next_tokens
from zipper_jax.models.module import unsharded
from zipper_jax.models.zipper import bind_params


def forward(config, params, towers, placer=unsharded):
    """The fused path: tower -> logits [B, T, V]."""
    return bind_params(config, params, placer)(towers)


def losses(config, params, towers, placer=unsharded):
    """The fused path: tower -> losses of its targets."""
    return bind_params(config, params, placer).losses(towers)


def unimodal(config, params, tower, batch):
    """One tower alone: logits [B, T, V]."""
    return bind_params(config, params).towers[tower](batch)


def attention_weights(config, params, towers):
    return bind_params(config, params).attention_weights(towers)


def advance(config, params, cache, tower, tokens, counts, placer=unsharded):
    """Feeds ``counts[b]`` tokens to row b of one tower: (logits [B, T, V], cache)."""
    logits, cache = bind_params(config, params, placer)({tower: next_tokens(cache, tower, tokens, counts)}, cache)
    return logits[tower], cache


def equations(jaxpr):
    """Every equation of a jaxpr, those of inner ones included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)
