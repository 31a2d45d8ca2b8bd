"""The order of an array's axes in memory, where it decides how fast XLA on CPU makes the array's gradient."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array


def held_on_cpu(x: Array, axes: Sequence[int]) -> Array:
    """``x``, which a program on CPU holds, and makes the gradient of, in the order ``axes``; elsewhere nothing.

    The order is that of ``x.transpose(axes)``. XLA on CPU makes a product of two arrays transposed, as gradients of
    kernels and keys are, at up to three times another speed in the other order, and does not choose.
    """

    def held(x: Array) -> Array:
        return jax.lax.optimization_barrier(x.transpose(axes)).transpose(np.argsort(axes))

    return jax.lax.platform_dependent(x, cpu=held, default=lambda x: x)
