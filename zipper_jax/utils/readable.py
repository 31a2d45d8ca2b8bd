"""Human-readable durations and sizes."""

import math

from humanize import naturalsize


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``; ``?`` when unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: float) -> str:
    """Bytes as ``1.5 GiB``."""
    return naturalsize(count, binary=True)
