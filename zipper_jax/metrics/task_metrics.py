"""Metrics with seqio's signature, ``(targets, predictions) -> {name: number}``; no TensorFlow.

The seqio tasks of a prepared folder carry them as ``metric_fns``, and the training loop computes the very same ones.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zipper_jax.metrics.error_rates import normalise, wer
from zipper_jax.tasks import TaskSet, VocabularyKind
from zipper_jax.utils.errors import UserError

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


def symbol_error_rate(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Edits over all reference symbols, a fraction; symbols have spaces between them and count as they are."""
    rate = unit_error_rate([target.split() for target in targets], [symbols.split() for symbols in predictions])
    return {"symbol_error_rate": rate["unit_error_rate"]}


METRICS: dict[VocabularyKind, tuple[MetricFn, ...]] = {
    "subwords": (word_error_rate,),
    "symbols": (symbol_error_rate,),
    "units": (unit_error_rate,),
}
"""Kind of the target's vocabulary -> metrics."""


def metrics_of(task_set: TaskSet, name: str) -> tuple[MetricFn, ...]:
    """The metrics of the task called ``name``; none where nothing is given from which its target would follow."""
    task = task_set.task(name)
    return METRICS[task_set.vocabulary_of(task.target)] if len(task.spans) > 1 else ()


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
