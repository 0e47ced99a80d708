from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from mlaprof.analysis.draws import DRAWS, Draws
from mlaprof.analysis.stats import (
    Estimate,
    benjamini_hochberg,
    bootstrap,
    geometric_mean,
    hierarchical,
    holm,
    mann_whitney,
    paired,
    quotient,
    student_interval,
)


def one_by_one(draws: Draws) -> np.ndarray:
    return draws.values if draws.chosen is None else np.repeat(draws.values, draws.chosen.times)


def estimate(values: list[float], seed: int = 0) -> Estimate:
    return bootstrap(values, seed=seed).estimate


@pytest.mark.parametrize("n", [3, 4, 7, 30, 51, 500])
def test_the_interval_is_that_of_resampling_by_hand(n: int) -> None:
    """Drawing order statistics gives the distribution that resampling n values gives."""
    values = np.random.default_rng(n).lognormal(0, 0.5, n)
    picks = np.random.default_rng(1).integers(0, n, size=(20_000, n))
    by_hand = np.median(values[picks], axis=1)
    drawn = one_by_one(bootstrap(values.tolist(), seed=0).draws)
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
    got = quotient(estimate(base, 0), estimate(new, 1))
    assert got.median == pytest.approx(np.median(new) / np.median(base))
    assert got.ci_low < 0.8 < got.ci_high and got.half_width < 0.02
    assert got.n == 50


def test_exchanging_the_sides_inverts_a_quotient() -> None:
    base, new = Estimate(2.0, 1.5, 2.1, 40), Estimate(3.0, 2.9, 3.9, 30)
    there, back = quotient(base, new), quotient(new, base)
    assert (there.median, there.ci_low, there.ci_high) == pytest.approx(
        (1 / back.median, 1 / back.ci_high, 1 / back.ci_low)
    )


def test_a_quotient_refuses_what_has_no_ratio() -> None:
    good = estimate([1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="base: expected a positive interval, got one from 0"):
        quotient(estimate([0.0, 1.0, 1.0]), good)
    with pytest.raises(ValueError, match="new: expected a positive interval, got one from -1"):
        quotient(good, estimate([1.0, -1.0]))


@pytest.mark.parametrize("skew", [0.05, 0.6])
def test_what_is_put_together_covers_the_truth_as_often_as_it_says(skew: float) -> None:
    """Over 300 sets of six skewed pairs, true ratio 1 each: their quotients, and the geometric mean of these."""
    rng = np.random.default_rng(5)
    quotients, means = [], []
    for _ in range(300):
        sides = [[estimate(rng.lognormal(0, skew, 30).tolist()) for _ in range(6)] for _ in range(2)]
        ratios = [quotient(base, new) for base, new in zip(*sides, strict=True)]
        quotients += [each.ci_low <= 1 <= each.ci_high for each in ratios]
        mean = geometric_mean(ratios)
        means.append(mean.ci_low <= 1 <= mean.ci_high)
    assert 0.93 <= np.mean(quotients) <= 0.99
    assert 0.93 <= np.mean(means) <= 0.99


def test_what_is_put_together_is_nearly_as_wide_as_drawing_all_of_it() -> None:
    """By hand: draws of twelve skewed ratios, each in an order of its own, which hold the truth somewhat too often."""
    rng = np.random.default_rng(2)
    sides = [[bootstrap(rng.lognormal(0, 0.3, 31).tolist(), seed=0) for _ in range(12)] for _ in range(2)]
    logs = [[np.log(rng.permutation(one_by_one(each.draws))) for each in side] for side in sides]

    by_hand = np.percentile(np.mean(logs[1], axis=0) - np.mean(logs[0], axis=0), (2.5, 97.5))
    pairs = zip(*([each.estimate for each in side] for side in sides), strict=True)
    mean = geometric_mean([quotient(base, new) for base, new in pairs])

    assert 0.9 < np.log(mean.ci_high / mean.ci_low) / (by_hand[1] - by_hand[0]) < 1.02


def test_a_geometric_mean_narrows_with_the_number_of_ratios() -> None:
    def one(seed: int) -> Estimate:
        rng = np.random.default_rng(seed)
        base, new = rng.normal(1, 0.05, 40).tolist(), rng.normal(2, 0.1, 40).tolist()
        return quotient(estimate(base), estimate(new))

    ratios = [one(seed) for seed in range(16)]
    mean = geometric_mean(ratios)
    assert mean.median == pytest.approx(np.exp(np.mean([np.log(each.median) for each in ratios])))
    assert mean.n == 16
    assert mean.half_width < 0.5 * min(each.half_width for each in ratios)
    alone = geometric_mean(ratios[:1])
    assert (alone.ci_low, alone.ci_high) == pytest.approx((ratios[0].ci_low, ratios[0].ci_high))
    with pytest.raises(ValueError, match="at least one"):
        geometric_mean([])


def test_student_s_interval_is_that_of_the_tables() -> None:
    """Two-sided 95 %, four degrees of freedom: 2.776 standard errors, in logarithms."""
    got = student_interval(2.0, 0.01**2, 4, n=9)
    assert got.ci_high == pytest.approx(2 * np.exp(0.02776), rel=1e-5)
    assert got.ci_low == pytest.approx(2 * np.exp(-0.02776), rel=1e-5)
    assert (got.median, got.n) == (2.0, 9)


@pytest.mark.parametrize("n", [1, 2, 7, 20, 61])
def test_an_interval_is_that_of_its_draws_one_by_one(n: int) -> None:
    """Read off the few values that they come to, it is their percentiles to the last digit."""
    found = bootstrap(np.random.default_rng(n).lognormal(0, 0.3, n).tolist(), seed=0)
    every = one_by_one(found.draws)
    assert len(every) == DRAWS
    assert found.draws.interval == pytest.approx(np.percentile(every, (2.5, 97.5)), rel=1e-15)
    assert found.draws.log_variance == pytest.approx(np.var(np.log(every)))


def alike(n: int, likeness: float, seed: int) -> np.ndarray:
    """A lognormal series whose neighbours are correlated."""
    rng = np.random.default_rng(seed)
    log = rng.normal(size=n)
    for place in range(1, n):
        log[place] = likeness * log[place - 1] + np.sqrt(1 - likeness**2) * log[place]
    return np.exp(0.1 * log)


def medians_of_blocks(values: np.ndarray, seed: int) -> np.ndarray:
    """Resampling circular blocks of 8 by hand."""
    n = len(values)
    starts = np.random.default_rng(seed).integers(0, n, size=(2000, -(-n // 8)))
    return np.median(values[((starts[:, :, None] + np.arange(8)) % n).reshape(2000, -1)[:, :n]], axis=1)


@pytest.mark.parametrize("n", [51, 64, 200])
def test_blocks_spread_the_median_as_resampling_them_by_hand_does(n: int) -> None:
    """Over 60 series of like neighbours the widths agree within 5 %, and are far from those of single samples."""
    widths = []
    for seed in range(60):
        values = alike(n, 0.7, seed)
        drawn = (one_by_one(bootstrap(values.tolist(), seed=seed, block=block).draws).std() for block in (8, 1))
        widths.append([*drawn, medians_of_blocks(values, seed).std()])
    blocks, single, by_hand = np.median(widths, axis=0)
    assert blocks == pytest.approx(by_hand, rel=0.05)
    assert blocks > 1.4 * single


@pytest.mark.parametrize(("likeness", "least"), [(0.0, 0.91), (0.3, 0.85)])
def test_blocks_cover_the_true_median_at_least_as_often_as_by_hand(likeness: float, least: float) -> None:
    """Few blocks fit into 50 rounds, so of like neighbours a 95 % interval covers too little; by hand yet less."""
    ours, theirs, sets = 0, 0, 300
    for seed in range(sets):
        values = alike(50, likeness, seed)  # the true median is 1
        found = bootstrap(values.tolist(), seed=seed, block=8).estimate
        low, high = np.percentile(medians_of_blocks(values, seed), (2.5, 97.5))
        ours += found.ci_low <= 1 <= found.ci_high
        theirs += low <= 1 <= high
    assert ours >= theirs and ours >= least * sets


def test_blocks_never_narrow_an_interval() -> None:
    """A series that swings to and fro would have resampled blocks claim more than independent samples could."""
    swinging = [1.0 + 0.01 * (-1) ** place + 0.0001 * place for place in range(48)]
    assert bootstrap(swinging, seed=0, block=8).estimate == bootstrap(swinging, seed=0).estimate


@pytest.mark.parametrize("n", [1, 2, 5, 7, 8, 9, 16])
def test_a_series_shorter_than_its_blocks_keeps_an_interval(n: int) -> None:
    """Blocks as long as the series would all be the series itself, an interval of no width."""
    values = np.random.default_rng(n).lognormal(0, 0.1, n).tolist()
    blocks, single = bootstrap(values, seed=0, block=8).estimate, bootstrap(values, seed=0).estimate
    assert blocks.ci_high - blocks.ci_low >= single.ci_high - single.ci_low
    assert (blocks.ci_high > blocks.ci_low) == (n > 1)


def test_of_one_process_only_its_rounds_are_resampled() -> None:
    values = alike(50, 0.5, seed=0).tolist()
    assert hierarchical([values], seed=3).estimate == bootstrap(values, seed=3, block=8).estimate


def test_processes_that_differ_widen_the_interval_to_their_own_difference() -> None:
    """By hand, of levels far apart beside their rounds: Student's t times the standard error of the mean level."""
    rng = np.random.default_rng(0)
    levels = (0.99, 0.995, 1.0, 1.005, 1.01)
    apart = [(level * rng.lognormal(0, 0.001, 50)).tolist() for level in levels]
    together = [(rng.lognormal(0, 0.001, 50)).tolist() for _ in levels]
    wide, narrow = hierarchical(apart, seed=0), hierarchical(together, seed=0)
    assert wide.value == pytest.approx(np.median(np.concatenate(apart))) and wide.n == narrow.n == 250
    assert len(one_by_one(wide.draws)) == DRAWS
    assert narrow.estimate.half_width < 0.001
    quantile_of_t = 2.776  # four degrees of freedom
    assert wide.estimate.half_width == pytest.approx(quantile_of_t * np.std(levels, ddof=1) / np.sqrt(5), rel=0.05)


def of_processes(count: int, apart: float, rounds: float, rng: np.random.Generator) -> np.ndarray:
    """Lognormal series of true median 1 whose processes are `apart` and whose rounds `rounds`."""
    return np.exp(rng.normal(0, apart, (count, 1)) + rng.normal(0, rounds, (count, 50)))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("apart", [0.0, 0.003, 0.01])
def test_few_processes_cover_the_true_median_as_often_as_they_say(count: int, apart: float) -> None:
    """Over 400 sets: resampling three processes held it in three quarters."""
    rng = np.random.default_rng(11)
    sets = [hierarchical(of_processes(count, apart, 0.002, rng), seed=k).estimate for k in range(400)]
    assert np.mean([each.ci_low <= 1 <= each.ci_high for each in sets]) >= 0.92


def test_two_processes_are_never_sure_of_their_level() -> None:
    """That they agree may be chance: one pair of twenty lies ten times nearer than pairs do on the whole."""
    alike_rounds = np.random.default_rng(0).lognormal(0, 0.01, 50)
    near = hierarchical([alike_rounds.tolist(), (1.001 * alike_rounds).tolist()], seed=0).estimate
    three = hierarchical([alike_rounds.tolist()] * 2 + [(1.001 * alike_rounds).tolist()], seed=0).estimate
    assert near.half_width > 0.006 > 2 * three.half_width


def test_what_the_clock_cannot_resolve_still_has_a_median() -> None:
    got = hierarchical([[0.0, 1e-6, 0.0], [0.0, 0.0, 0.0], [1e-6, 1e-6, 0.0]], seed=0).estimate
    assert got.median == 0.0 and got.ci_high >= 1e-6


def test_the_draws_of_processes_far_apart_are_positive_and_finite() -> None:
    """Of two processes they have the tails of Cauchy's distribution, and a quotient is still to be taken."""
    wild = hierarchical([[1.0] * 10, [50.0] * 10], seed=0)
    assert np.isfinite(wild.draws.values).all() and wild.draws.values.min() > 0
    other = hierarchical([[1.0] * 10, [2.0] * 10], seed=1).estimate
    assert np.isfinite(astuple(quotient(wild.estimate, other))).all()


def drifting(count: int, apart: float, rng: np.random.Generator, rounds: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Two arms of equal speed, whose processes are `apart` and drift by 1 % together; rounds of each are 0.2 %."""
    common = rng.normal(0, apart, (count, 1)) + np.cumsum(rng.normal(0, 0.01 / rounds**0.5, (count, rounds)), axis=1)
    return tuple(np.exp(common + rng.normal(0, 0.002, (count, rounds))) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize(("count", "apart"), [(1, 0.0), (3, 0.0), (3, 0.003)])
def test_pairs_cover_the_true_ratio_whatever_both_arms_share(count: int, apart: float) -> None:
    """Over 400 A/A pairs; and they stay far narrower than the quotient of two medians, which holds the drift."""
    rng = np.random.default_rng(3)
    held, widths, unpaired = [], [], []
    for k in range(400):
        base, new = drifting(count, apart, rng)
        found = paired(base, new, seed=k).estimate
        held.append(found.ci_low <= 1 <= found.ci_high)
        widths.append(found.half_width)
        if k < 50:
            sides = (hierarchical(side, seed=seed).estimate for seed, side in enumerate((base, new), start=2 * k))
            unpaired.append(quotient(*sides))
    assert np.mean(held) >= 0.93
    assert np.median(widths) < 0.0012
    assert np.median([each.half_width for each in unpaired]) > 3 * np.median(widths)


def test_pairs_whose_ratio_changes_from_process_to_process_say_so() -> None:
    """A ratio that three processes put at 1, 1.01 and 1.02 is not known to a per mille."""
    rng = np.random.default_rng(0)
    base = rng.lognormal(0, 0.001, (3, 50))
    found = paired(base, base * np.array([[1.0], [1.01], [1.02]]), seed=0).estimate
    assert found.median == pytest.approx(1.01, rel=1e-3) and found.n == 150
    assert found.half_width > 0.02


def test_exchanging_the_arms_of_pairs_inverts_the_ratio() -> None:
    rng = np.random.default_rng(0)
    base, new = rng.lognormal(0, 0.01, (3, 30)), 1.1 * rng.lognormal(0, 0.01, (3, 30))
    there, back = paired(base, new, seed=5), paired(new, base, seed=5)
    assert there.value == pytest.approx(1 / back.value)
    assert one_by_one(there.draws) == pytest.approx(1 / one_by_one(back.draws))


def test_a_pair_of_a_series_with_itself_is_one_exactly() -> None:
    series = np.random.default_rng(0).lognormal(0, 0.1, (2, 9))
    assert paired(series, series, seed=0).estimate == Estimate(1.0, 1.0, 1.0, 18)


@pytest.mark.parametrize(
    ("base", "new", "told"),
    [
        ([], [], "new: expected rounds like base's"),
        ([[1.0, 2.0]], [[1.0]], r"expected rounds like base's, \[2\] a process, got \[1\]"),
        ([[1.0]], [[1.0], [1.0]], r"\[1\] a process, got \[1, 1\]"),
        ([[1.0, 0.0]], [[1.0, 1.0]], "base: expected positive samples, got 0"),
        ([[1.0, 1.0]], [[1.0, -2.0]], "new: expected positive samples, got -2"),
        ([[1.0, float("nan")]], [[1.0, 1.0]], "samples: expected one or more finite"),
        ([[]], [[]], "samples: expected one or more finite"),
    ],
)
def test_rounds_that_are_no_pairs_are_refused(base: list, new: list, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        paired(base, new, seed=0)


def test_no_processes_and_empty_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="processes: expected at least one"):
        hierarchical([], seed=0)
    with pytest.raises(ValueError, match="samples: expected one or more"):
        hierarchical([[1.0], []], seed=0)


def test_holm_multiplies_the_smallest_by_all_and_the_next_by_fewer() -> None:
    """By hand: 4 x 0.01, 3 x 0.02, 2 x 0.03, 1 x 0.04, none below one before it; in the order given."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx((0.06, 0.04, 0.06, 0.06))
    assert holm([0.5, 0.6, 0.001]) == pytest.approx((1.0, 1.0, 0.003))


def test_benjamini_and_hochberg_multiply_by_all_over_the_rank() -> None:
    """By hand: 4/1 x 0.01, 4/2 x 0.04, 4/3 x 0.045, 4/4 x 0.9, none above one behind it; in the order given."""
    assert benjamini_hochberg([0.9, 0.01, 0.045, 0.04]) == pytest.approx((0.9, 0.04, 0.06, 0.06))
    assert benjamini_hochberg([0.2, 0.2]) == pytest.approx((0.2, 0.2))


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_adjusting_keeps_one_p_value_and_refuses_what_is_none(adjust: object) -> None:
    assert adjust([]) == () and adjust([0.03]) == (0.03,)
    for bad in ([-0.1], [1.1], [float("nan")]):
        with pytest.raises(ValueError, match="p_values"):
            adjust(bad)


def test_mann_and_whitney_count_pairs() -> None:
    """By hand: of 20 ways to place three of six ranks, two are as far apart as 1 2 3 and 4 5 6. Equal series: 1."""
    assert mann_whitney([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]) == pytest.approx(0.1)
    assert mann_whitney([2.0] * 30, [2.0] * 30) == 1.0
    assert mann_whitney(np.arange(50.0), np.arange(50.0) + 30) < 1e-6
    with pytest.raises(ValueError, match="samples"):
        mann_whitney([], [1.0])
