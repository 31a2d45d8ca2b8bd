"""What our Pallas kernels for TPUs share."""

import functools
import math
from typing import Any

import jax

LANES = 128
LOG2E = math.log2(math.e)
"""exp(x) = exp2(x * LOG2E); exp2 is what the hardware has."""
VMEM_LIMIT = 56 * 2**20  # bytes, of 64 MiB (v5p, tpu7x) or 128 MiB (v5e, v6e)


def by_platform(call: Any, static: Any) -> Any:
    """``call``, compiled where it is lowered for a TPU (also ahead of time), interpreted (slowly) elsewhere.

    ``call`` takes arrays, and ``static`` and ``interpret`` by name.
    """
    compiled, interpreted = (functools.partial(call, static=static, interpret=x) for x in (False, True))
    return lambda *args: jax.lax.platform_dependent(*args, tpu=compiled, default=interpreted)
