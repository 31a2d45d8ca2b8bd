"""Token losses.

Axis letters: B rows, T positions, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Losses(NamedTuple):
    """Losses of a batch's tokens, float32.

    Attributes:
        total: The minimised sum over tokens: of ``nll``, and of the z-loss where there is one. It alone is
            differentiable.
        nll: Weighted negative log likelihood of each token, in nats.
        correct: Weight of each token whose target has the largest logit, else 0.
    """

    total: Float[Array, ""]
    nll: Float[Array, "B T"]
    correct: Float[Array, "B T"]


def cross_entropy(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"], weights: Float[Array, "B T"], z_loss: float = 0.0
) -> Losses:
    """Losses of tokens from their logits.

    Args:
        logits: Of any float dtype.
        targets: Token ids.
        weights: Of each token.
        z_loss: Factor of weights * (log Z)^2 in the minimised sum.
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # A comparison instead of a gather: its gradient is elementwise, that of a gather is a scatter.
    picked = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], logits, 0.0), axis=-1)
    correct = (picked >= jnp.max(logits, axis=-1)).astype(jnp.float32)  # XLA computes an argmax slowly on CPU
    nll = weights * (log_z - picked)
    total = jnp.sum(nll)
    if z_loss:
        total += z_loss * jnp.sum(weights * log_z**2)
    return Losses(total, jax.lax.stop_gradient(nll), weights * correct)
