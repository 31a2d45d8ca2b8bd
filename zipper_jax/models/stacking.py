"""Stacking: k consecutive source tokens become one soft token, derived from the order of the source's tokens.

A *run* is what is consecutive in the linear sequence: tokens of one tower and one example without a token of another
tower between them. Within a run tokens are grouped by k; a group closes with its last token and from then on is one
soft token at that token's place in the linear sequence, so that nothing sees a group before it is complete. A remainder
of less than k tokens at the end of a run never becomes a soft token.

All of this is a function of the tokens so far, so a pass with a cache finds the groups in the cached order, and needs
of earlier tokens only the states of a group that is still open: at most the last k - 1.

Axis letters: B rows, T tokens of this pass, S tokens, all cached ones included, G groups, k tokens of a group,
C embed_dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zipper_jax.models.masks import Order


class Groups(NamedTuple):
    """Complete groups of k tokens, in order, padding at the end.

    Attributes:
        k: Tokens of a group.
        order: That of each group's last token.
        last: Index of each group's last token; at least the number of tokens: padding.
    """

    k: int
    order: Order
    last: Int[Array, "B G"]


def group(tokens: Order, k: int) -> Groups:
    """The complete groups of ``k`` in rows of tokens [B, S]; G = S // k."""
    segments, positions = tokens
    size = segments.shape[1]
    index = jnp.arange(size, dtype=jnp.int32)
    follows = (segments[:, 1:] == segments[:, :-1]) & (positions[:, 1:] == positions[:, :-1] + 1)
    follows = jnp.pad(follows, ((0, 0), (min(1, size), 0)))
    first = jax.lax.cummax(jnp.where(follows, 0, index), axis=1)  # of the token's run
    closes = (segments > 0) & ((index - first) % k == k - 1)
    last = jnp.sort(jnp.where(closes, index, size), axis=1)[:, : size // k]
    return Groups(k, Order(*(_take(x, last) for x in tokens)), last)


def new_groups(groups: Groups, before: Int[Array, " B"], tokens: int) -> tuple[Groups, Int[Array, "B G"]]:
    """The groups that close in a pass with a cache.

    Args:
        groups: Of all tokens, those of this pass included.
        before: Number of tokens of each row that precede this pass.
        tokens: T.

    Returns:
        They, counting tokens from the first of this pass, G the most that can close; and the index of each among all
        groups, past the end for padding.
    """
    many = groups.last.shape[1]
    known = jnp.sum(groups.last < before[:, None], axis=1, dtype=jnp.int32)
    number = known[:, None] + jnp.arange(min(many, -(-tokens // groups.k)), dtype=jnp.int32)
    order = Order(*(_take(x, number) for x in groups.order))
    last = jnp.where(order.segment_ids > 0, _take(groups.last, number) - before[:, None], tokens)
    return Groups(groups.k, order, last), jnp.where(order.segment_ids > 0, number, many)


def stack_states(
    states: Float[Array, "B T C"], earlier: Float[Array, "B O C"], groups: Groups
) -> Float[Array, "B G k C"]:
    """The states of each group; of padding those of any tokens.

    Args:
        states: Of the pass's tokens.
        earlier: Of the O = k - 1 tokens before them; O = 0 without a cache.
        groups: Of the pass.
    """
    both = jnp.concatenate([earlier, states], axis=1)
    index = groups.last[:, :, None] + earlier.shape[1] - (groups.k - 1) + jnp.arange(groups.k)
    found = jnp.take_along_axis(both, index.reshape(len(index), -1, 1), axis=1, mode="clip")
    return found.reshape(*index.shape, states.shape[-1])


def last_states(
    states: Float[Array, "B T C"], earlier: Float[Array, "B O C"], counts: Int[Array, " B"]
) -> Float[Array, "B O C"]:
    """The states of each row's last O tokens, of which ``counts`` are of this pass: `stack_states` of the next pass
    needs them."""
    both = jnp.concatenate([earlier, states], axis=1)
    index = counts[:, None] + jnp.arange(earlier.shape[1])
    return jnp.take_along_axis(both, index[:, :, None], axis=1, mode="clip")


def _take(x: Int[Array, "B S"], index: Int[Array, "B G"]) -> Int[Array, "B G"]:
    """``x`` at ``index``, 0 past the end."""
    return jnp.take_along_axis(x, index, axis=1, mode="fill", fill_value=0)
