"""Peak performance of accelerators, by prefix of jax's ``device_kind``: dense bfloat16, per jax device.

Sources: Google Cloud's pages on TPU v3 to v6e and TPU7x (docs.cloud.google.com/tpu/docs/tpu7x), NVIDIA's data sheets.
``memory`` of TPUs is the compiler's limit for a program, from its out-of-memory message. Network bandwidth is per
direction. Clocks: those at which the compiler's estimate of a large product takes its time at the peak rate; that of
TPU7x was not determined.
"""

from typing import NamedTuple

GIB = 1024.0**3


class Chip(NamedTuple):
    """One jax device; None: not known.

    Attributes:
        flops: Peak, in FLOP/s.
        memory: In bytes.
        bandwidth: Of the memory, in bytes/s.
        link: To its neighbours, all links together, in bytes/s, one way.
        clock: Cycles per second, for the compiler's estimates.
        cores: That share one jax device's work.
    """

    flops: float
    memory: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    clock: float | None = None
    cores: int = 1


CHIPS: dict[str, Chip] = {
    "TPU v3": Chip(61.5e12),  # half a chip
    "TPU v4": Chip(275e12),
    "TPU v5 lite": Chip(197e12, 15.75 * GIB, 819e9, 200e9, 1.5e9),
    "TPU v5": Chip(459e12, 95.74 * GIB, 2765e9, 600e9, 1.75e9, 2),
    "TPU v6 lite": Chip(918e12, 31.25 * GIB, 1640e9, 400e9, 1.75e9),
    "TPU7x": Chip(1153.5e12, 94.75 * GIB, 3690e9, 300e9),  # half a chip; links of a chip are counted half to each
    "NVIDIA A100": Chip(312e12),
    "NVIDIA H100": Chip(989e12),
    "NVIDIA H200": Chip(989e12),
}


def chip(device_kind: str) -> Chip | None:
    """The entry whose name is the longest prefix of ``device_kind``; None: not in the table."""
    fitting = [kind for kind in CHIPS if device_kind.startswith(kind)]
    return CHIPS[max(fitting, key=len)] if fitting else None
