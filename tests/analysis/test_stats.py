from __future__ import annotations

import numpy as np
import pytest

from mlaprof.analysis.stats import DRAWS, Estimate, bootstrap, geometric_mean, quotient


def estimate(values: list[float], seed: int = 0) -> Estimate:
    return bootstrap(values, seed=seed).estimate


@pytest.mark.parametrize("n", [3, 4, 7, 30, 51, 500])
def test_the_interval_is_that_of_resampling_by_hand(n: int) -> None:
    """Drawing order statistics gives the distribution that resampling n values gives."""
    values = np.random.default_rng(n).lognormal(0, 0.5, n)
    picks = np.random.default_rng(1).integers(0, n, size=(20_000, n))
    by_hand = np.median(values[picks], axis=1)
    drawn = bootstrap(values.tolist(), seed=0).draws
    assert len(drawn) == DRAWS
    # Both are discrete: compare the distribution functions, whose Monte Carlo error is about 0.006.
    at = np.unique(np.quantile(by_hand, np.linspace(0.02, 0.98, 25)))
    ours = (drawn[:, None] <= at + 1e-12).mean(0)
    theirs = (by_hand[:, None] <= at + 1e-12).mean(0)
    assert np.abs(ours - theirs).max() < 0.025


@pytest.mark.parametrize("n", [30, 51])
def test_the_interval_covers_the_true_median_as_often_as_it_says(n: int) -> None:
    """Over 400 skewed data sets a 95 % interval holds the true median in at least 91 %."""
    rng = np.random.default_rng(7)
    sets = rng.lognormal(0, 0.3, size=(400, n))  # the true median is 1
    held = [e.ci_low <= 1.0 <= e.ci_high for e in (estimate(row.tolist(), seed=k) for k, row in enumerate(sets))]
    assert 0.91 <= np.mean(held) <= 0.995


def test_an_estimate_is_the_same_every_time() -> None:
    values = np.random.default_rng(0).normal(1, 0.1, 40).tolist()
    assert estimate(values) == estimate(values)
    assert estimate(values).median == float(np.median(values))
    assert estimate(values).n == 40


@pytest.mark.parametrize("values", [[3.0], [3.0, 5.0]])
def test_below_three_samples_the_interval_is_the_range(values: list[float]) -> None:
    got = estimate(values)
    assert (got.ci_low, got.ci_high) == (min(values), max(values))


def test_equal_samples_have_a_point_for_an_interval() -> None:
    got = estimate([2.0] * 30)
    assert (got.median, got.ci_low, got.ci_high, got.half_width) == (2.0, 2.0, 2.0, 0.0)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_hostile_samples_are_refused_by_name(values: list[float]) -> None:
    with pytest.raises(ValueError, match="samples: expected one or more finite numbers"):
        estimate(values)


def test_a_quotient_is_that_of_the_medians() -> None:
    rng = np.random.default_rng(3)
    base, new = rng.normal(10, 0.1, 50).tolist(), rng.normal(8, 0.1, 61).tolist()
    got = quotient(bootstrap(base, seed=0), bootstrap(new, seed=1)).estimate
    assert got.median == pytest.approx(np.median(new) / np.median(base))
    assert got.ci_low < 0.8 < got.ci_high and got.half_width < 0.02
    assert got.n == 50


def test_a_quotient_refuses_what_has_no_ratio() -> None:
    good = bootstrap([1.0, 1.0, 1.0], seed=0)
    with pytest.raises(ValueError, match="base: expected positive samples, got 0"):
        quotient(bootstrap([0.0, 1.0, 1.0], seed=1), good)
    with pytest.raises(ValueError, match="new: expected positive samples, got -1"):
        quotient(good, bootstrap([1.0, -1.0], seed=1))


def test_a_geometric_mean_narrows_with_the_number_of_ratios() -> None:
    def one(seed: int) -> object:
        rng = np.random.default_rng(seed)
        base, new = rng.normal(1, 0.05, 40).tolist(), rng.normal(2, 0.1, 40).tolist()
        return quotient(bootstrap(base, seed=2 * seed), bootstrap(new, seed=2 * seed + 1))

    ratios = [one(seed) for seed in range(16)]
    mean = geometric_mean(ratios).estimate
    assert mean.median == pytest.approx(np.exp(np.mean([np.log(each.value) for each in ratios])))
    assert mean.n == 16
    assert mean.half_width < 0.5 * min(each.estimate.half_width for each in ratios)
    with pytest.raises(ValueError, match="at least one"):
        geometric_mean([])
