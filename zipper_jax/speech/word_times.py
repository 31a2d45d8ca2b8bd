"""Times of the words of a synthesised corpus, from the engine that synthesised it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zipper_jax.speech.audio import SAMPLE_RATE, not_silent
from zipper_jax.speech.synthesis import Engine, WordTimes, find_engine
from zipper_jax.speech.workers import parallel_map
from zipper_jax.utils.errors import UserError

logger = logging.getLogger(__name__)


def require(engine: Engine) -> WordTimes:
    """Return the engine. Raises UserError when it reports no word times."""
    if not isinstance(engine, WordTimes):
        raise UserError(
            f"word_times = 'engine': {engine.name} does not report when it says which word; give --engine flite, or "
            "use a forced aligner and `zipper data import --alignments`"
        )
    return engine


def added(rows: Sequence[dict[str, Any]], engine: str, processes: int | None) -> list[dict[str, Any]]:
    """Return manifest rows of a synthesised corpus with ``word_times``, where the engine knows them.

    Each sentence is synthesised once more, which gives the same samples.
    """
    found = list(parallel_map(f"{__name__}:make_timer", {"engine": engine}, rows, processes))
    without = sum(not times for times in found)
    logger.info(
        f"word times: {len(found) - without:,} utterances; without: {without:,} that {engine} reads in other words"
    )
    return [row | ({"word_times": times} if times else {}) for row, times in zip(rows, found, strict=True)]


def make_timer(engine: str) -> Callable[[Mapping[str, Any]], list[list[float]]]:
    """Return the function that a worker runs: the word times of a manifest row's audio; [] where they are not known."""
    synthesiser = find_engine(engine)
    timed = require(synthesiser)

    def measure(row: Mapping[str, Any]) -> list[list[float]]:
        spoken = row["text"], row["voice"], row["rate"], row["pitch"]
        kept = not_silent(synthesiser.say(*spoken))  # the corpus trims its audio so
        first, last = kept.start / SAMPLE_RATE, kept.stop / SAMPLE_RATE
        times = timed.word_times(*spoken)
        return [[round(min(max(time, first), last) - first, 4) for time in word] for word in times]

    return measure
