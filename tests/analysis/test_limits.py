from __future__ import annotations

import math

import numpy as np
import pytest

from mlaprof.analysis.cells import Floor
from mlaprof.analysis.limits import Limit, between_floor, limit_of

THREE = (3, 3)


def test_the_limit_is_the_largest_of_what_was_asked_and_both_floors() -> None:
    noisy, calm = Floor(0.02, 9, 0.001), Floor(0.005, 9, 0.001)
    assert limit_of(0.01, noisy, calm, THREE, paired=False).value == 0.02
    assert limit_of(0.03, noisy, calm, THREE, paired=False).value == 0.03
    apart = limit_of(0.01, calm, Floor(0.005, 9, 0.09), THREE, paired=False)
    assert apart.value == apart.floor == apart.between and apart.between > 0.03


def test_two_arms_of_one_run_need_the_floor_of_one_run_alone() -> None:
    """What processes differ by is in both arms, so it cancels."""
    floor = Floor(0.006, 9, 0.09)
    assert limit_of(0.001, floor, floor, THREE, paired=True) == Limit(0.001, 0.006, None)


@pytest.mark.parametrize("processes", [(1, 1), (1, 3), (3, 3), (2, 7)])
def test_the_floor_between_holds_for_nineteen_of_twenty_pairs_of_runs(processes: tuple[int, int]) -> None:
    """By simulation: what the means of two runs differ by is below it in 95 %, as two processes are below `between`."""
    rng = np.random.default_rng(3)
    single = rng.normal(0, 0.003, (2, 20_000))
    between = float(np.percentile(np.abs(single[0] - single[1]), 95))
    base, new = (rng.normal(0, 0.003, (20_000, count)).mean(axis=1) for count in processes)
    floor = between_floor(Floor(0.005, 9, between), Floor(0.005, 9, between), processes)
    assert floor is not None
    assert np.mean(np.abs(base - new) <= floor) == pytest.approx(0.95, abs=0.01)


def test_a_run_of_one_process_is_taken_to_spread_as_the_other_one() -> None:
    known, unknown = Floor(0.005, 9, 0.004), Floor(0.005, 9, None)
    expected = math.sqrt((0.004**2 / 1 + 0.004**2 / 3) / 2)
    assert between_floor(unknown, known, (1, 3)) == pytest.approx(expected)
    assert between_floor(None, known, (1, 3)) == between_floor(known, None, (3, 1)) == pytest.approx(expected)
    assert between_floor(unknown, None, (1, 1)) is None
