"""Metrics with seqio's signature, ``(targets, predictions) -> {name: number}``; no TensorFlow.

The seqio tasks of a prepared folder carry them as ``metric_fns``, and the training loop computes the very same ones.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zipper_jax.errors import UserError
from zipper_jax.evaluation.wer import normalise, wer

MetricFn = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, Any]]


def word_error_rate(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Corpus-level word error rate of sentences, a fraction; of those that have words (nan where none has)."""
    pairs = [(t, p) for t, p in zip(targets, predictions, strict=True) if normalise(t)]
    return {"wer": wer(*zip(*pairs, strict=True)) if pairs else float("nan")}


def unit_error_rate(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Edits over all reference units, a fraction; units are sequences of ints.

    Two good takes of one sentence differ by far: the rate tells that a model learns, not how well it speaks
    (`zipper eval` does).
    """
    import jiwer

    spoken = [" ".join(map(str, units)) for units in targets]
    heard = [" ".join(map(str, units)) for units in predictions]
    return {"unit_error_rate": float(jiwer.wer(spoken, heard))}


METRICS: dict[str, tuple[MetricFn, ...]] = {"asr": (word_error_rate,), "tts": (unit_error_rate,)}
"""task -> its metrics."""


def find(name: str) -> MetricFn:
    """The function that ``package.module:function`` names.

    Raises:
        UserError: There is none.
    """
    module, _, function = name.partition(":")
    try:
        found: MetricFn = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"metric {name!r} cannot be imported ({error}); give 'package.module:function'") from None
    return found
