"""What a difference between two arms is worth: paired over sentences, seeds averaged (the paper's test: Wilcoxon).

Axis letters: S seeds, N sentences.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from zipper_jax.sweep.plan import Claim
from zipper_jax.utils.errors import UserError

LEVEL = 0.05

Verdict = Literal["holds", "does not hold", "undecided", "not run"]


class Comparison(NamedTuple):
    """Of two arms: their rates, sentences and seeds compared, Wilcoxon's p (two-sided), the 95 % interval of the
    difference a - b (over sentences and seeds), and the verdict on a claim."""

    a: float
    b: float
    sentences: int
    seeds: int
    p: float
    interval: tuple[float, float]
    verdict: Verdict


def rate(pairs: Sequence[Sequence[float]] | Float[np.ndarray, "N 2"]) -> float:
    """All errors over all words."""
    errors, words = np.asarray(pairs, np.float64).sum(axis=0)
    return float(errors / words)


def spread(lines: Sequence[Mapping[str, Any]], measure: str) -> tuple[float, float, int]:
    """Mean rate over the seeds, their standard deviation (nan for one), and how many have the measure."""
    rates = [rate(line["measures"][measure]) for line in lines if measure in line["measures"]]
    if not rates:
        return float("nan"), float("nan"), 0
    return float(np.mean(rates)), float(np.std(rates, ddof=1)) if len(rates) > 1 else float("nan"), len(rates)


def compare(claim: Claim, a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Comparison:
    """Tests ``claim`` on the result lines of its two arms; only seeds that both have count.

    "lower" is decided when the interval, in which seeds vary too, excludes 0 and Wilcoxon's p, the same way, is below
    0.05. "similar" holds when the interval lies within the margin, does not when it lies outside. One seed decides
    nothing.
    """
    one, two = _of_seeds(claim.measure, a), _of_seeds(claim.measure, b)
    seeds = sorted(one.keys() & two.keys())
    if not seeds:
        nan = float("nan")
        return Comparison(nan, nan, 0, 0, nan, (nan, nan), "not run")
    if len({len(found[s]) for found in (one, two) for s in seeds}) > 1:
        raise UserError(f"{claim.a} and {claim.b} were scored on different numbers of sentences: score them again")
    x, y = np.stack([one[s] for s in seeds]), np.stack([two[s] for s in seeds])  # [S, N, 2]
    rates = rate(x.sum(axis=0)), rate(y.sum(axis=0))
    differences = x[..., 0].mean(axis=0) - y[..., 0].mean(axis=0)
    low, high = _interval(x, y)
    verdict: Verdict = _verdict(claim, differences, low, high) if len(seeds) > 1 else "undecided"
    return Comparison(*rates, x.shape[1], len(seeds), _wilcoxon(differences), (low, high), verdict)


def _verdict(claim: Claim, differences: Float[np.ndarray, " N"], low: float, high: float) -> Verdict:
    if claim.relation == "similar":
        if -claim.margin <= low and high <= claim.margin:
            return "holds"
        return "does not hold" if low > claim.margin or high < -claim.margin else "undecided"
    # Ranks and rates can point different ways, where a few sentences went very wrong: then nothing is decided.
    if high < 0 and _wilcoxon(differences, "less") < LEVEL / 2:
        return "holds"
    return "does not hold" if low > 0 and _wilcoxon(differences, "greater") < LEVEL / 2 else "undecided"


def _of_seeds(measure: str, lines: Sequence[Mapping[str, Any]]) -> dict[int, np.ndarray]:
    return {line["seed"]: np.asarray(line["measures"][measure]) for line in lines if measure in line["measures"]}


def _wilcoxon(differences: Float[np.ndarray, " N"], alternative: str = "two-sided") -> float:
    """p of the signed-rank test; 1 where all pairs are equal."""
    from scipy.stats import wilcoxon  # comes with jax

    return float(wilcoxon(differences, alternative=alternative).pvalue) if np.any(differences) else 1.0


def _interval(x: Float[np.ndarray, "S N 2"], y: Float[np.ndarray, "S N 2"]) -> tuple[float, float]:
    """95 % of the difference of rates: Student's over seeds and the normal one over sentences, halves added in squares.

    A bootstrap over three seeds would exclude 0 whenever the three agree in sign: every fourth time by luck alone.
    """
    from scipy.stats import t

    seeds, sentences = x.shape[:2]
    middle = rate(x.sum(axis=0)) - rate(y.sum(axis=0))
    half = 1.96 * float(np.sqrt(sentences / (sentences - 1) * np.sum((_pull(x) - _pull(y)) ** 2)))
    if seeds > 1:
        of_seeds = [rate(one) - rate(two) for one, two in zip(x, y, strict=True)]
        half = float(np.hypot(half, t.ppf(1 - LEVEL / 2, seeds - 1) * np.std(of_seeds, ddof=1) / np.sqrt(seeds)))
    return middle - half, middle + half


def _pull(x: Float[np.ndarray, "S N 2"]) -> Float[np.ndarray, " N"]:
    """How far each sentence pulls the rate of all from where it would be without it (to first order)."""
    errors, words = x.sum(axis=0).T
    return (errors - words * errors.sum() / words.sum()) / words.sum()
