from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from mlaprof.analysis.stats import Estimate, hierarchical, holm, mann_whitney, quotient
from mlaprof.analysis.verdicts import MOST_ROUNDS, SIGNIFICANCE, Verdict, at_least, effort_to_settle, verdict

LIMIT = 0.01


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.02, 1.05, "SLOWER"),
        (0.95, 0.98, "FASTER"),
        (0.995, 1.005, "SAME"),
        (1 / 1.01, 1.01, "SAME"),
        (0.99, 1.005, "AMBIGUOUS"),
        (1.005, 1.05, "AMBIGUOUS"),
        (0.95, 0.995, "AMBIGUOUS"),
        (0.95, 1.05, "AMBIGUOUS"),
    ],
)
def test_the_verdict_follows_the_whole_interval(low: float, high: float, expected: str) -> None:
    """A limit is a factor, up as down."""
    assert verdict(Estimate((low + high) / 2, low, high, 50), LIMIT) == expected
    assert verdict(Estimate(2 / (low + high), 1 / high, 1 / low, 50), LIMIT) == {
        "SLOWER": "FASTER",
        "FASTER": "SLOWER",
    }.get(expected, expected)


@pytest.mark.parametrize(("median", "half_width"), [(1.02, 0.02), (1.0, 0.03), (0.985, 0.01), (1.005, 0.007)])
def test_the_rounds_that_settle_it_do(median: float, half_width: float) -> None:
    """An interval that narrows with the root of the rounds is settled at that number, and just before it is not."""

    def after(rounds: float) -> Verdict:
        width = half_width * math.sqrt(50 / rounds)
        return verdict(Estimate(median, median * math.exp(-width), median * math.exp(width), 50), LIMIT)

    assert after(50) == "AMBIGUOUS"
    now = Estimate(median, median * math.exp(-half_width), median * math.exp(half_width), 50)
    needed = at_least(effort_to_settle(now, LIMIT), 50, MOST_ROUNDS)
    assert needed and after(needed + 1) != "AMBIGUOUS"
    assert after(0.98 * needed) == "AMBIGUOUS"


@pytest.mark.parametrize("median", [1 + LIMIT, 1 / (1 + LIMIT), 1.0101])
def test_no_number_of_rounds_settles_a_change_of_the_limit_itself(median: float) -> None:
    effort = effort_to_settle(Estimate(median, median * 0.98, median * 1.02, 50), LIMIT)
    assert at_least(effort, 50, MOST_ROUNDS) is None


# The gate by simulation: what a test at the door of a repository would see.

ROUNDS, NOISE, LIKENESS = 50, 0.004, 0.3  # likeness: correlation of neighbours, as of a clock that drifts


def noisy(cells: int, median_s: float, seed: int) -> NDArray[np.float64]:
    """Lognormal series of an AR(1) process, [cells, ROUNDS]."""
    rng = np.random.default_rng(seed)
    log = rng.normal(size=(cells, ROUNDS))
    for place in range(1, ROUNDS):
        log[:, place] = LIKENESS * log[:, place - 1] + math.sqrt(1 - LIKENESS**2) * log[:, place]
    return np.asarray(median_s * np.exp(NOISE * log))


def verdicts_on(cells: int, factor: float, limit: float, seed: int) -> list[Verdict]:
    """The verdicts of the gate on a grid of `cells` that all changed by `factor`."""
    pairs = list(zip(noisy(cells, 1e-4, seed), noisy(cells, 1e-4 * factor, seed + 1), strict=True))
    adjusted = holm([mann_whitney(base, new) for base, new in pairs])
    found = []
    for place, ((base, new), p) in enumerate(zip(pairs, adjusted, strict=True)):
        sides = (hierarchical([side], seed=seed).estimate for seed, side in enumerate((base, new), start=2 * place))
        change = quotient(*sides)
        seen = verdict(change, limit)
        found.append("AMBIGUOUS" if seen in ("SLOWER", "FASTER") and p >= SIGNIFICANCE else seen)
    return found


def test_of_a_thousand_comparisons_of_the_same_less_than_one_per_cent_find_a_change() -> None:
    """At the least limit that there is, the assumed floor; and nearly all are told to be the same."""
    found = verdicts_on(1000, 1.0, 0.005, seed=1)
    assert found.count("SLOWER") + found.count("FASTER") < 10
    assert found.count("SAME") > 900


@pytest.mark.parametrize(("factor", "limit", "share"), [(1.02, 0.01, 0.99), (1.01, 0.005, 0.90)])
def test_a_planted_change_is_found(factor: float, limit: float, share: float) -> None:
    """+2 % in more than 99 % of cells at a limit of 1 %, +1 % in more than 90 % at the floor; none is called FASTER."""
    found = verdicts_on(500, factor, limit, seed=2)
    assert found.count("SLOWER") > share * len(found)
    assert "FASTER" not in found and "SAME" not in found
