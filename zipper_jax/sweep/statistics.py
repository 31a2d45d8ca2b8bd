"""Significance of differences between two arms: paired over sentences, seeds averaged (the paper's test: Wilcoxon).

Axes: S seeds, N sentences.
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
    """Comparison of two arms.

    Attributes:
        a: Rate of the first arm.
        b: Rate of the second arm.
        sentences: Number of paired sentences.
        seeds: Number of common seeds.
        p: Wilcoxon's p, two-sided.
        interval: 95 % interval of a - b, over sentences and seeds.
        verdict: Verdict on the claim.
    """

    a: float
    b: float
    sentences: int
    seeds: int
    p: float
    interval: tuple[float, float]
    verdict: Verdict


def rate(pairs: Sequence[Sequence[float]] | Float[np.ndarray, "N 2"]) -> float:
    """Total errors divided by total words."""
    errors, words = np.asarray(pairs, np.float64).sum(axis=0)
    return float(errors / words)


def spread(lines: Sequence[Mapping[str, Any]], measure: str) -> tuple[float, float, int]:
    """Mean rate over seeds, its standard deviation (nan for one seed), and the number of seeds with the measure."""
    rates = [rate(line["measures"][measure]) for line in lines if measure in line["measures"]]
    if not rates:
        return float("nan"), float("nan"), 0
    return float(np.mean(rates)), float(np.std(rates, ddof=1)) if len(rates) > 1 else float("nan"), len(rates)


def compare(claim: Claim, a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Comparison:
    """Test ``claim`` on the result lines of its two arms; only common seeds are used.

    "lower" is decided when the interval (over sentences and seeds) excludes 0 and Wilcoxon's p is below 0.05 in the
    same direction. "similar" holds when the interval is within the margin, and does not hold when it is outside. With
    one seed the verdict is "undecided".

    Raises:
        UserError: The arms were scored on different numbers of sentences.
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
    # Ranks and rates can disagree in sign when a few sentences have many errors: the claim is then undecided.
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
    """95 % interval of the difference of rates; not a number for one sentence.

    Half-widths of Student's interval over seeds and the normal interval over sentences are added in quadrature. A
    bootstrap over three seeds would exclude 0 whenever the three agree in sign, which has probability 1/4 by chance.
    """
    from scipy.stats import t

    seeds, sentences = x.shape[:2]
    if sentences < 2:
        return float("nan"), float("nan")
    middle = rate(x.sum(axis=0)) - rate(y.sum(axis=0))
    half = 1.96 * float(np.sqrt(sentences / (sentences - 1) * np.sum((_pull(x) - _pull(y)) ** 2)))
    if seeds > 1:
        of_seeds = [rate(one) - rate(two) for one, two in zip(x, y, strict=True)]
        half = float(np.hypot(half, t.ppf(1 - LEVEL / 2, seeds - 1) * np.std(of_seeds, ddof=1) / np.sqrt(seeds)))
    return middle - half, middle + half


def _pull(x: Float[np.ndarray, "S N 2"]) -> Float[np.ndarray, " N"]:
    """Influence of each sentence on the total rate, to first order."""
    errors, words = x.sum(axis=0).T
    return (errors - words * errors.sum() / words.sum()) / words.sum()
