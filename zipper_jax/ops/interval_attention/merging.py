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
    lses = jnp.stack([lse for _, lse in parts])
    largest = jax.lax.stop_gradient(jnp.max(lses, axis=0))
    seen = lses > -jnp.inf
    # Where no key is visible, -inf - -inf would be NaN, in the gradient too: replaced before exp, masked after it.
    shares = jnp.where(seen, jnp.exp(jnp.where(seen, lses - jnp.where(seen, largest, 0.0), 0.0)), 0.0)
    total = jnp.sum(shares, axis=0)
    known = jnp.where(total == 0.0, 1.0, total)
    shares = shares / known
    outs = jnp.stack([out.astype(jnp.float32) for out, _ in parts])
    out = jnp.sum(outs * shares[..., None], axis=0).astype(parts[0][0].dtype)
    return out, jnp.where(total == 0.0, -jnp.inf, largest + jnp.log(known))
