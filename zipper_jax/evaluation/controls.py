"""Control inputs: a model's output must depend on its input (rule: no error rate is reported without controls)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from zipper_jax.inference.model import Model
from zipper_jax.metrics.normalisers import DEFAULT, Policy

Figure = float | str
"""A figure, or "not possible: ..." where the test set does not allow it."""


def partners(texts: Sequence[str], policy: Policy = DEFAULT) -> list[int] | str:
    """The index of another sentence's row for each row, such that the normalised texts of the two differ.

    Every row is the partner of exactly one other. Such a matching exists if and only if no text is in more than half of
    the rows: the rows of one text need as many rows of other texts.

    Returns:
        The partners, a function of the texts alone; or "not possible: ..." where there are none.
    """
    # Equal texts are contiguous, in the order of their first rows, so that moving by half the rows leaves every group
    # of at most half of them. Where all texts differ, this is the order of the rows.
    keys = [policy(text) for text in texts]
    counts = Counter(keys)
    half, most = len(keys) // 2, max(counts.values(), default=0)
    if len(keys) < 2:
        return "not possible: it takes two sentences"
    if most > half:
        return f"not possible: {most} of {len(keys)} sentences are the same, at most half may be"
    first = {key: number for number, key in enumerate(counts)}
    grouped = sorted(range(len(keys)), key=lambda row: first[keys[row]])
    found = [0] * len(keys)
    for row, partner in zip(grouped, [*grouped[half:], *grouped[:half]], strict=True):
        found[row] = partner
    return found


def of_transcription(
    model: Model, units: Sequence[Any], texts: Sequence[str], policy: Policy = DEFAULT
) -> dict[str, tuple[Model, list[Any]] | str]:
    """Name -> the model and the units that it transcribes, against the same references ``texts``; or why it cannot."""
    others = partners(texts, policy)
    found: dict[str, tuple[Model, list[Any]] | str] = {
        "shuffled_audio": others if isinstance(others, str) else (model, [units[i] for i in others]),
        "no_audio": (model, [[] for _ in units]),
    }
    if model.config.zips:
        found["gates_zero"] = (model.without_zips(), list(units))
    return found


def sounds(recordings: Sequence[np.ndarray], first: int = 0) -> dict[str, list[np.ndarray]]:
    """Audio for the judge: the recordings; as controls the same reversed, white noise and silence of their lengths.

    Args:
        recordings: Waveforms.
        first: Number of the first one in a larger set: the noise depends on a recording's number.
    """

    def noise(number: int, length: int) -> np.ndarray:
        return np.random.default_rng((0, number)).standard_normal(length).astype(np.float32) * 0.1

    return {
        "raw_audio": list(recordings),
        "reversed": [waveform[::-1].copy() for waveform in recordings],
        "noise": [noise(first + number, len(waveform)) for number, waveform in enumerate(recordings)],
        "silence": [np.zeros_like(waveform) for waveform in recordings],
    }
