"""Interleaved examples: an utterance in spans of alternating modalities, cut between words (`tasks.Interleaving`).

A pure function of the settings, the example and the number of its copy: packed rows hold the result, like all else.

Axis letters: W words, U units.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from zipper_jax.data.prepared import with_modalities
from zipper_jax.sequences import Example, Span
from zipper_jax.tasks import SPEECH, Interleaving, TaskConfig, TaskSet
from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import Vocabulary

NOT_ALIGNED = "not_aligned"


class Cut(NamedTuple):
    """A span: words ``first`` to ``last`` (exclusive) of the utterance, in one modality."""

    modality: str
    first: int
    last: int


def uniforms(*key: Any) -> Iterator[float]:
    """Numbers in [0, 1), a function of ``key`` alone, on any machine and with any version of NumPy."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    bits = np.random.PCG64(np.random.SeedSequence(list(np.frombuffer(digest, np.uint32))))
    while True:
        yield (int(bits.random_raw()) >> 11) * 2.0**-53


def unit_bounds(
    times: Float[np.ndarray, "W 2"], count: int, rate_hz: float, offset: float = 0.0
) -> Int[np.ndarray, " _"]:
    """The first unit of each word, and ``count`` last: W + 1 numbers from 0 that never decrease.

    Two words part in the middle between the end of the first and the start of the second. What comes before the first
    word and after the last one belongs to these.

    Args:
        times: Start and end of each word, in seconds.
        count: U, units of the utterance.
        rate_hz: Units per second.
        offset: Where the first unit begins, in seconds.
    """
    middles = (times[:-1, 1] + times[1:, 0]) / 2
    inner = np.clip(np.round((middles - offset) * rate_hz), 0, count).astype(np.int64)
    return np.maximum.accumulate(np.concatenate([[0], inner, [count]])).astype(np.int64)


def cut(
    settings: Interleaving,
    modalities: Sequence[str],
    times: Float[np.ndarray, "W 2"],
    bounds: Int[np.ndarray, " _"],
    draws: Iterator[float],
) -> list[Cut]:
    """Cut an utterance of at least one word and one unit into spans of different modalities.

    Args:
        settings: How likely spans end, and where they may.
        modalities: Those to choose from; the first is drawn, each further one among the others.
        times: Start and end of each word, in seconds.
        bounds: From `unit_bounds`; a span has at least one unit, whatever its modality.
        draws: From `uniforms`.
    """
    words, first, found = len(times), 0, []
    now = modalities[int(next(draws) * len(modalities))]
    for word in range(1, words):
        drawn = next(draws)
        pause = times[word, 0] - times[word - 1, 1]
        long_enough = min(word - first, words - word) >= settings.words and pause >= settings.pause
        if long_enough and bounds[first] < bounds[word] < bounds[words] and drawn < settings.switch[now]:
            found.append(Cut(now, first, word))
            others = [modality for modality in modalities if modality != now]
            now, first = others[int(next(draws) * len(others))], word
    return [*found, Cut(now, first, words)]


def interleaved(
    task: TaskConfig,
    task_set: TaskSet,
    vocabularies: Mapping[str, Vocabulary],
    row: Mapping[str, Any],
    rate_hz: float,
    offset: float,
    copy: int,
) -> Example | None:
    """An interleaved example of a prepared row; None where its words have no times, or not as many as it has words.

    Args:
        task: With an `Interleaving`.
        task_set: For the fields of the modalities.
        vocabularies: Modality -> its vocabulary.
        row: From `prepared.read_examples`.
        rate_hz: Units of speech per second.
        offset: Where the row's first unit begins, in seconds.
        copy: Another number gives another interleaving.
    """
    settings, weights = task.interleaving, dict(task.spans)
    assert settings is not None
    contents = {modality: row[task_set.field_of(modality)] for modality in weights}
    parts = {modality: content.split() for modality, content in contents.items() if modality != SPEECH}
    times = np.array(row.get("word_times") or [], np.float64).reshape(-1, 2)
    if not len(times) or any(len(words) != len(times) for words in parts.values()):
        return None
    count = len(contents[SPEECH]) if SPEECH in contents else len(times)
    bounds = unit_bounds(times, count, rate_hz, offset) if SPEECH in contents else np.arange(len(times) + 1)
    draws = uniforms(settings.seed, row["id"], row["shift"], copy)
    spans = []
    for modality, first, last in cut(settings, list(weights), times, bounds, draws):
        content = contents[SPEECH][bounds[first] : bounds[last]] if modality == SPEECH else parts[modality][first:last]
        content = content if modality == SPEECH else " ".join(content)
        spans.append(Span(modality, np.asarray(vocabularies[modality].encode(content), np.int32), weights[modality]))
    return tuple(spans)


def examples(
    name: str,
    task_set: TaskSet,
    vocabularies: Mapping[str, Vocabulary],
    rows: Iterable[Mapping[str, Any]],
    rate_hz: float,
    shifts: int,
) -> Iterator[Example | None]:
    """Yield the examples of an interleaved task, `Interleaving.copies` of each row; None for a row that has none.

    Args:
        name: The task.
        task_set: Its configuration.
        vocabularies: Modality -> its vocabulary.
        rows: From `prepared.read_examples`; those that lack a modality of the task are skipped.
        rate_hz: Units of speech per second.
        shifts: See `PrepareSettings`.

    Raises:
        UserError: No row has word times.
    """
    task = task_set.task(name)
    assert task.interleaving is not None
    found, total = False, 0
    for row in with_modalities(rows, task.modalities, task_set):
        total += 1
        offset = row["shift"] / shifts / rate_hz if rate_hz else 0.0
        for copy in range(task.interleaving.copies):
            example = interleaved(task, task_set, vocabularies, row, rate_hz, offset, copy)
            yield example
            if example is None:
                break
            found = True
    if total and not found:
        raise UserError(
            f"tasks: {name!r} is interleaved, but none of {total} examples has word times; import the corpus with "
            "--alignments, or leave the task out"
        )
