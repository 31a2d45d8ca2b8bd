"""Control inputs: a model's output must depend on its input (rule: no error rate is reported without controls)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from zipper_jax.inference.model import Model


def others(items: Sequence[Any]) -> list[Any]:
    """Mismatched pairs: the items rotated by half the list, so that each sentence gets another one's item."""
    half = len(items) // 2
    return [*items[half:], *items[:half]]


def of_transcription(model: Model, units: Sequence[Any]) -> dict[str, tuple[Model, list[Any]]]:
    """Name -> the model and the units that it transcribes, against the same references."""
    found = {"shuffled_audio": (model, others(units)), "no_audio": (model, [[] for _ in units])}
    if model.config.zips:
        found["gates_zero"] = (model.without_zips(), list(units))
    return found


def sounds(recordings: Sequence[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Control audio for the judge: the recordings, the recordings reversed, and white noise of the same lengths."""
    rng = np.random.default_rng(0)
    return {
        "raw_audio": list(recordings),
        "reversed": [waveform[::-1].copy() for waveform in recordings],
        "noise": [rng.standard_normal(len(waveform)).astype(np.float32) * 0.1 for waveform in recordings],
    }
