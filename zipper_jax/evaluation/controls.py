"""Changes that a cheat would survive: what a model says must depend on them (hard rule: no error rate without them)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from zipper_jax.inference.model import Model


def others(items: Sequence[Any]) -> list[Any]:
    """Another sentence's item for each: turned by half the list."""
    half = len(items) // 2
    return [*items[half:], *items[:half]]


def of_transcription(model: Model, units: Sequence[Any]) -> dict[str, tuple[Model, list[Any]]]:
    """Name -> the model and the units that it transcribes, against the same references."""
    found = {"shuffled_audio": (model, others(units)), "no_audio": (model, [[] for _ in units])}
    if model.config.zips:
        found["gates_zero"] = (model.without_zips(), list(units))
    return found


def sounds(recordings: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """What a judge of speech should hear beside it: the recordings, the same backwards, and as much noise."""
    rng = np.random.default_rng(0)
    return {
        "raw_audio": list(recordings),
        "reversed": [waveform[::-1].copy() for waveform in recordings],
        "noise": [rng.standard_normal(len(waveform)).astype(np.float32) * 0.1 for waveform in recordings],
    }
