"""What is accepted, what is not, and that the process that confirms is another than the one that chose."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlaprof.study import MeasureSpec
from mlaprof.tuning.candidates import point_of
from mlaprof.tuning.finals import decide, default_point, final_jobs, final_points

sys.path.insert(0, str(Path(__file__).parent))

from tuning_rows import DEFAULT, TARGET, final, searched, tiles

OTHER, THIRD = tiles(num_warps=8), tiles(num_pieces=2)


def finals(*others, default=(1e-5, 1e-5), twin=(1e-5, 1e-5), spread=0.002):
    """Rows of both processes: (choice, seconds of the first, of the second), beside the default and its twin."""
    arms = [
        (default_point(TARGET, DEFAULT), default),
        (default_point(TARGET, DEFAULT, twin=True), twin),
        *((point_of(TARGET, choice), times) for choice, *times in others),
    ]
    return [
        final(point, process, times[process], seed=number, spread=spread)
        for process in range(2)
        for number, (point, times) in enumerate(arms)
    ]


def decided(rows, deployed=None):
    return decide(TARGET, [searched(OTHER, 9e-6)], rows, DEFAULT, deployed)


def test_a_gain_that_both_processes_see_is_accepted():
    decision = decided(finals((OTHER, 9e-6, 9e-6), (THIRD, 9.5e-6, 9.5e-6)))
    assert decision.verdict == "tuned" and decision.chosen == OTHER
    assert decision.gain is not None and decision.gain.ci_low < 1 / 0.9 < decision.gain.ci_high
    assert decision.confirmed is not None and decision.confirmed.ci_low > 1.1


def test_a_gain_that_the_fresh_process_does_not_see_keeps_the_default_with_the_evidence():
    decision = decided(finals((OTHER, 9e-6, 1e-5)))
    assert decision.verdict == "keep-default" and "fresh process" in decision.reason
    assert decision.chosen == OTHER and decision.confirmed is not None


def test_a_gain_below_one_percent_is_none():
    assert decided(finals((OTHER, 0.995e-5, 0.995e-5))).verdict == "keep-default"


def test_a_gain_within_the_twins_difference_is_none():
    """The default and itself differ by 6 % here, so that 5 % mean nothing."""
    decision = decided(finals((OTHER, 9.5e-6, 9.5e-6), twin=(1.06e-5, 1.0e-5)))
    assert decision.floor == pytest.approx(0.058, abs=0.003)
    assert decision.verdict == "keep-default"


def test_a_gain_within_the_noise_is_none():
    assert decided(finals((OTHER, 9.7e-6, 9.7e-6), spread=0.15)).verdict == "keep-default"


def test_the_default_as_the_fastest_found_is_kept():
    decision = decided(finals((DEFAULT, 1e-5, 1e-5), (OTHER, 1.2e-5, 1.2e-5)))
    assert decision.verdict == "keep-default" and decision.reason == "the default is the fastest found"


def test_what_is_deployed_stays_unless_it_is_beaten_beyond_noise():
    """The newcomer is 0.3 % faster than what is deployed: both beat the default, and nothing is exchanged for it."""
    rows = finals((OTHER, 0.9e-5, 0.9e-5), (THIRD, 0.897e-5, 0.897e-5))
    assert decided(rows, deployed=OTHER).chosen == OTHER
    assert decided(rows).chosen == THIRD
    rows = finals((OTHER, 0.9e-5, 0.9e-5), (THIRD, 0.8e-5, 0.8e-5))
    assert decided(rows, deployed=OTHER).chosen == THIRD


def test_ties_with_the_fastest_are_marked():
    decision = decided(finals((OTHER, 9e-6, 9e-6), (THIRD, 9.001e-6, 9.001e-6), (tiles(num_warps=32), 1e-5, 1e-5)))
    assert [each.tied for each in decision.finalists] == [True, True, False]


def test_without_a_time_of_the_default_nothing_is_decided():
    rows = [row for row in finals((OTHER, 9e-6, 9e-6)) if row.point.tiles is not None]
    assert decided(rows).verdict == "not-measured"


def test_the_finalists_are_the_best_beside_the_default_its_twin_and_the_deployed():
    rows = [
        searched(tiles(num_registers=each), 1e-5 + each * 1e-8, number=each) for each in (0, 32, 48, 64, 80, 96, 128)
    ]
    rows.append(searched(tiles(ambiguous=32), None, status="failed", stage="compile", reason="no"))
    points = final_points(TARGET, rows, DEFAULT, OTHER)
    assert [point.twin for point in points[:2]] == [False, True] and points[0].tiles is None
    assert points[2].tiles == OTHER.values
    assert [point.tiles["num_registers"] for point in points[3:]] == [0, 32, 48, 64, 80, 96, 128]
    assert len({point.key for point in points}) == len(points)


def test_the_second_process_has_inputs_of_its_own():
    points = final_points(TARGET, [searched(OTHER, 1e-5)], DEFAULT, None)
    one, two = final_jobs(points, "cuda", MeasureSpec(), seed=5)
    assert (one.process, one.seed, two.process, two.seed) == (0, 5, 1, 6)
    assert final_points(TARGET, [searched(OTHER, None, status="failed", stage="compile")], DEFAULT, None) == ()


def test_a_search_without_its_finalists_says_how_to_go_on():
    decision = decide(TARGET, [searched(OTHER, 9e-6)], [], DEFAULT, None)
    assert decision.verdict == "not-measured" and "--resume" in decision.reason
