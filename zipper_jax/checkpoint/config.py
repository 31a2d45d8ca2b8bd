"""Which checkpoints a run writes and keeps."""

from dataclasses import dataclass
from typing import Literal

from zipper_jax.utils.errors import UserError


@dataclass(frozen=True)
class SaveCheckpointConfig:
    """When checkpoints are written and which are kept.

    Attributes:
        period: Steps between checkpoints; the last step is always saved.
        keep: How many of the newest to keep; None: all.
        keep_best: How many of the best to keep in addition.
        best_metric: A metric of the validation at the saved step: ``loss``, ``towers/NAME/loss`` or
            ``tasks/NAME/accuracy``. Steps without a validation are never among the best.
        best_mode: ``min`` or ``max``.
        asynchronous: Write in the background while training continues.
        grace_seconds: After SIGTERM or Ctrl-C, exit after so many seconds even if saving has not finished (the previous
            checkpoint stays complete); 0: no limit.
    """

    period: int = 500
    keep: int | None = 2
    keep_best: int = 0
    best_metric: str = "loss"
    best_mode: Literal["min", "max"] = "min"
    asynchronous: bool = True
    grace_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("period", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"SaveCheckpointConfig.{name}={value}: give 1 or more")
        for name in ("keep_best", "grace_seconds"):
            if getattr(self, name) < 0:
                raise UserError(f"SaveCheckpointConfig.{name}={getattr(self, name)}: give 0 or more")
        if self.best_mode not in ("min", "max"):
            raise UserError(f"SaveCheckpointConfig.best_mode={self.best_mode!r}: choose 'min' or 'max'")
