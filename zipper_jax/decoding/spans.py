"""The spans that decoding is given and returns."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from zipper_jax.sequences import Place

Given = tuple[str, np.ndarray]
"""A span of the prompt: (modality, content token ids)."""
Outputs = Sequence[str] | Literal["auto"]
"""Modalities to generate, in order; "auto": the model chooses, see `decoding.auto`."""


class Generated(NamedTuple):
    """One generated span.

    Attributes:
        modality: Its name.
        tokens: Content token ids of the modality, int32 [n].
        truncated: Whether max_new_tokens ended it, or max_spans the row after it.
        log_probs: Of each content token and, last, of the end token, under the tower's whole vocabulary, float32
            [n + 1].
        next_modality: With outputs "auto" what the model chose at the end token; None: the end of the example.
        choice_log_probs: With outputs "auto" of every choice there, see `ZipperConfig.choices`.
    """

    modality: str
    tokens: np.ndarray
    truncated: bool
    log_probs: np.ndarray
    next_modality: str | None = None
    choice_log_probs: np.ndarray | None = None


def fetch(arrays: Any) -> Any:
    """Gather arrays to NumPy in every process; with several processes, all must make the same calls."""
    if all(array.is_fully_addressable for array in jax.tree.leaves(arrays)):
        return jax.device_get(arrays)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(arrays, tiled=True)


def to_host(spans: Any, place: Place) -> Iterator[tuple[np.ndarray, bool, np.ndarray]]:
    """(content ids, truncated, log probs) of each row."""
    out, scores, cut_off = fetch(spans)
    for row, row_scores, truncated in zip(out - place.offset, scores, cut_off, strict=True):
        n = int(np.argmax(row == place.end))
        yield row[:n].astype(np.int32), bool(truncated), row_scores[: n + 1]
