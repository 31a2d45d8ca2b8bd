"""Metrics with seqio's signature, ``(targets, predictions) -> {name: number}``; no TensorFlow.

They are the ``metric_fns`` of a prepared folder's seqio tasks, and the training loop uses the same functions.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial, update_wrapper
from typing import Any

from zipper_jax.metrics.error_rates import wer
from zipper_jax.metrics.normalisers import DEFAULT, Policy
from zipper_jax.tasks import TaskSet, VocabularyKind
from zipper_jax.utils.errors import UserError

MetricFn = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, Any]]


def word_error_rate(targets: Sequence[str], predictions: Sequence[str], policy: Policy = DEFAULT) -> dict[str, float]:
    """Corpus-level word error rate, a fraction, over the sentences whose reference has words (nan if none has)."""
    pairs = [(t, p) for t, p in zip(targets, predictions, strict=True) if policy(t)]
    return {"wer": wer([t for t, _ in pairs], [p for _, p in pairs], policy) if pairs else float("nan")}


def unit_error_rate(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Edits over all reference units, a fraction; units are sequences of ints.

    Two good recordings of one sentence differ in many units, so the rate shows that a model learns, not how
    intelligible its speech is (`zipper eval` measures that).
    """
    import jiwer

    references = [" ".join(map(str, units)) for units in targets]
    hypotheses = [" ".join(map(str, units)) for units in predictions]
    return {"unit_error_rate": float(jiwer.wer(references, hypotheses))}


def symbol_error_rate(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Edits over all reference symbols, a fraction; symbols are separated by spaces and not normalised."""
    rate = unit_error_rate([target.split() for target in targets], [symbols.split() for symbols in predictions])
    return {"symbol_error_rate": rate["unit_error_rate"]}


METRICS: dict[VocabularyKind, tuple[MetricFn, ...]] = {
    "subwords": (word_error_rate,),
    "symbols": (symbol_error_rate,),
    "units": (unit_error_rate,),
}
"""Kind of the target's vocabulary -> default metrics."""


def metrics_of(task_set: TaskSet, name: str) -> tuple[MetricFn, ...]:
    """Default metrics of the task ``name``; none for a task without a condition, or an interleaved one."""
    task = task_set.task(name)
    conditioned = len(task.spans) > 1 and task.interleaving is None
    return METRICS[task_set.vocabulary_of(task.target)] if conditioned else ()


def under(policy: Policy, functions: Sequence[MetricFn]) -> tuple[MetricFn, ...]:
    """Return the metrics with the normalisation of texts that a corpus chose, those that compare texts."""
    compared = update_wrapper(partial(word_error_rate, policy=policy), word_error_rate)
    return tuple(compared if function is word_error_rate else function for function in functions)


def find(name: str) -> MetricFn:
    """Import the function ``package.module:function``.

    Raises:
        UserError: It does not exist.
    """
    module, _, function = name.partition(":")
    try:
        found: MetricFn = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"metric {name!r} cannot be imported ({error}); give 'package.module:function'") from None
    return found
