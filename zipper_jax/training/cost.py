"""Estimated cost of a run, from its configuration alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zipper_jax.models.flops import flops_per_row
from zipper_jax.sharding.chips import CHIPS
from zipper_jax.training.config import TrainConfig
from zipper_jax.training.program import parameter_shapes
from zipper_jax.utils.errors import UserError


@dataclass(frozen=True)
class Cost:
    """Totals over all steps.

    Attributes:
        slots: Token positions of all towers' rows, padding included.
        flops: See `models.flops`; recomputation is not counted.
    """

    slots: int
    flops: float

    def device_hours(self, peak: float, mfu: float) -> float:
        """Device-hours at ``peak`` FLOP/s per device and model FLOP utilisation ``mfu`` (0 to 1)."""
        return self.flops / (peak * mfu) / 3600


def cost(config: TrainConfig) -> Cost:
    """Estimate the cost of a run."""
    trainable, frozen, known = parameter_shapes(config.model, config.freeze)
    leaves = {**trainable, **frozen}
    rows = config.steps * config.batch_size
    lengths = config.data.lengths
    return Cost(rows * sum(lengths.values()), rows * flops_per_row(config.model, leaves, known, trainable, lengths))


def parameters(config: TrainConfig) -> dict[str, int]:
    """Count the model's parameters: how many are ``trained`` and how many ``frozen``."""
    trained, frozen, _ = parameter_shapes(config.model, config.freeze)
    count = {"trained": trained, "frozen": frozen}
    return {name: sum(int(np.prod(leaf.shape)) for leaf in part.values()) for name, part in count.items()}


def lines(config: TrainConfig, mfu: float) -> Iterator[str]:
    """Format the cost: tokens, FLOP, and device-hours on every accelerator of known peak.

    Raises:
        UserError: ``mfu`` is not in (0, 1].
    """
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu={mfu}: give a share of the peak above 0, at most 1")
    found = cost(config)
    yield (
        f"{config.steps:,} steps x {config.batch_size:,} rows: {found.slots:.3g} token positions, "
        f"{found.flops:.3g} FLOP ({found.flops / config.steps:.3g} a step)"
    )
    hours = ((kind, found.device_hours(chip.flops, mfu)) for kind, chip in CHIPS.items())
    listed = ", ".join(f"{kind} {count:,.0f}" if count >= 10 else f"{kind} {count:.2g}" for kind, count in hours)
    yield f"device-hours at {mfu:.0%} of the peak: {listed}"
