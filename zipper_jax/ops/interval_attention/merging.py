"""Several attention calls as one softmax over all their keys, from their outputs and log-sum-exps."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Part = tuple[Float[Array, "*X H"], Float[Array, "*X"]]
"""Output and log-sum-exp of one call."""


def merge_attention(parts: Sequence[Part]) -> Float[Array, "*X H"]:
    """The output of one softmax over all keys: sum_i out_i * exp(lse_i) / sum_i exp(lse_i).

    Exactly 0, with finite gradients, where no key is visible.

    Args:
        parts: (output, log-sum-exp) of each call.

    Returns:
        Computed in float32, in the dtype of the first output.
    """
    return merge(parts)[0]


def merge(parts: Sequence[Part]) -> Part:
    """`merge_attention`, and the log-sum-exp over all keys, float32, -inf where none is visible."""
    shares, lse = _shares([lse for _, lse in parts])
    outs = jnp.stack([out.astype(jnp.float32) for out, _ in parts])
    return jnp.sum(outs * shares[..., None], axis=0).astype(parts[0][0].dtype), lse


def merge_gated(own: Part, gated: Sequence[tuple[Part, Float[Array, ""]]]) -> Float[Array, "*X H"]:
    """`merge_attention` with factors g on the shares p of further keys: out + sum_i g_i * p_i * (out_i - out).

    Shares are those of one softmax over all keys: with every g = 1 the result is `merge_attention`'s, with every
    g = 0 it is the output of ``own``, bit for bit. What g takes from further keys goes to ``own``.

    Args:
        own: (output, log-sum-exp) of the call whose output is kept at g = 0.
        gated: Those of further calls, and g.

    Returns:
        Computed in float32, in the dtype of ``own``.
    """
    out, _ = own
    shares, _ = _shares([own[1], *(lse for (_, lse), _ in gated)])
    weights = jnp.stack([g * share for (_, g), share in zip(gated, shares[1:], strict=True)])
    further = jnp.stack([part.astype(jnp.float32) for (part, _), _ in gated])
    merged = out.astype(jnp.float32) * (1.0 - jnp.sum(weights, axis=0))[..., None]
    return (merged + jnp.sum(further * weights[..., None], axis=0)).astype(out.dtype)


def _shares(parts: Sequence[Array]) -> tuple[Array, Array]:
    """Each part's share of one softmax over all keys, [P, *X], from log-sum-exps [*X]; and their log-sum-exp, [*X]."""
    lses = jnp.stack(parts)
    largest = jax.lax.stop_gradient(jnp.max(lses, axis=0))
    seen = lses > -jnp.inf
    # Where no key is visible, -inf - -inf would be NaN, in the gradient too: replaced before exp, masked after it.
    shares = jnp.where(seen, jnp.exp(jnp.where(seen, lses - jnp.where(seen, largest, 0.0), 0.0)), 0.0)
    total = jnp.sum(shares, axis=0)
    known = jnp.where(total == 0.0, 1.0, total)
    return shares / known, jnp.where(total == 0.0, -jnp.inf, largest + jnp.log(known))
