"""Token losses.

Axis letters: B rows, T positions, V vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"], weights: Float[Array, "B T"]
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Weighted negative log likelihood (nats) and weighted correctness of each token, both float32.

    Returns:
        (weights * -log softmax(logits)[targets], weights * (argmax(logits) == targets)).
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # A comparison instead of a gather: its gradient is elementwise, that of a gather is a scatter.
    picked = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], logits, 0.0), axis=-1)
    correct = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    return weights * (log_z - picked), weights * correct
