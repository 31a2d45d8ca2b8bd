"""Verdicts: what counts as holding, on errors made up so that the answer is known."""

import numpy as np
import pytest

from zipper_jax.sweep.plan import Claim
from zipper_jax.sweep.statistics import _interval, compare, rate, spread

WORDS = 5.0


def lines(errors, measure="asr"):
    """Result lines, a seed each, from errors [seeds, sentences]."""
    return [{"seed": seed, "measures": {measure: [[float(e), WORDS] for e in row]}} for seed, row in enumerate(errors)]


def draws(mean, seed=0, seeds=3, sentences=100):
    return np.random.default_rng(seed).poisson(mean, (seeds, sentences))


def test_an_order_holds_one_way_and_not_the_other():
    few, many = lines(draws(0.5)), lines(draws(2.0, 1))
    claim = Claim("few are fewer", "asr", "few", "many")
    found = compare(claim, few, many)
    assert found.verdict == "holds"
    assert found.p < 1e-6
    assert (found.sentences, found.seeds) == (100, 3)
    assert found.a == pytest.approx(draws(0.5).sum() / (300 * WORDS))
    assert found.interval[0] < found.a - found.b < found.interval[1] < 0
    assert compare(claim, many, few).verdict == "does not hold"
    assert compare(claim, few, lines(draws(0.5, 2))).verdict == "undecided"


def test_one_seed_decides_nothing_and_neither_do_seeds_that_disagree():
    claim = Claim("x", "asr", "a", "b")
    found = compare(claim, lines(draws(0.5, seeds=1)), lines(draws(2.0, 1, seeds=1)))
    assert found.p < 1e-6
    assert found.verdict == "undecided"
    # Twice better, once worse: the sentences agree on average, the seeds do not.
    a = np.concatenate([draws(0.6, 1, 2), draws(2.0, 2, 1)])
    assert compare(claim, lines(a), lines(draws(1.4, 3))).verdict == "undecided"


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_two_runs_of_one_recipe_are_seldom_distinguished(seeds):
    """Seeds differ by five points, sentences in hardness: the interval excludes 0 once in twenty at most."""
    random, excluded, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        level = 0.3 + random.normal(0, 0.05, (2, seeds, 1))
        errors = random.poisson(level.clip(0.01) * WORDS * random.gamma(2, 0.5, 100))
        low, high = _interval(*(np.stack([e, np.full_like(e, WORDS)], axis=-1).astype(float) for e in errors))
        excluded += low > 0 or high < 0
    assert 0 < excluded <= 0.05 * trials


def test_the_interval_over_sentences_is_that_of_a_bootstrap():
    random = np.random.default_rng(0)
    x, y = (
        np.stack([draws(m, n, 1), random.integers(3, 9, (1, 100))], axis=-1).astype(float) for n, m in enumerate((1, 2))
    )
    found = []
    for _ in range(2000):
        n = random.integers(100, size=100)
        found.append(rate(x[0, n]) - rate(y[0, n]))
    np.testing.assert_allclose(_interval(x, y), np.quantile(found, (0.025, 0.975)), atol=0.01)


def test_ranks_against_rates_decide_nothing():
    """a is slightly worse on most sentences, b far worse on a few."""
    a, b = np.full((3, 100), 2), np.ones((3, 100))
    b[:, :15] = 40
    found = compare(Claim("x", "asr", "a", "b"), lines(a), lines(b))
    assert found.a < found.b
    assert found.p < 0.01
    assert found.verdict == "undecided"


def test_equal_arms_are_undecided_not_an_error():
    errors = lines(draws(1.0))
    assert compare(Claim("same", "asr", "a", "b"), errors, errors).verdict == "undecided"


@pytest.mark.parametrize("relation", ["lower", "similar"])
def test_one_sentence_decides_nothing(relation):
    claim = Claim("x", "asr", "a", "b", relation=relation, margin=0.4)
    found = compare(claim, lines(draws(0.5, sentences=1)), lines(draws(2.0, 1, sentences=1)))
    assert found.verdict == "undecided"
    assert np.isnan(found.interval).all()


def test_likeness_needs_the_whole_interval_within_the_margin():
    a, close, far = lines(draws(1.0)), lines(draws(1.0, 5)), lines(draws(2.0, 6))
    assert compare(Claim("alike", "asr", "a", "b", "similar", 0.15), a, close).verdict == "holds"
    assert compare(Claim("alike", "asr", "a", "b", "similar", 0.001), a, close).verdict == "undecided"
    assert compare(Claim("alike", "asr", "a", "b", "similar", 0.1), a, far).verdict == "does not hold"


def test_only_seeds_that_both_have_are_compared():
    found = compare(Claim("x", "asr", "a", "b"), lines(draws(1.0)), lines(draws(2.0, 1, seeds=1)))
    assert found.seeds == 1
    assert found.a == pytest.approx(draws(1.0)[0].sum() / (100 * WORDS))
    assert compare(Claim("x", "asr", "a", "b"), lines(draws(1.0)), []).verdict == "not run"
    assert compare(Claim("x", "tts", "a", "b"), lines(draws(1.0)), lines(draws(1.0))).verdict == "not run"


def test_spread_is_over_seeds():
    mean, deviation, seeds = spread(lines([[0, 1], [2, 3]]), "asr")
    assert (mean, seeds) == (pytest.approx(0.3), 2)
    assert deviation == pytest.approx(np.std([0.1, 0.5], ddof=1))
