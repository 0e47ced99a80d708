from __future__ import annotations

from mlaprof.analysis.cells import Floor
from mlaprof.analysis.limits import Limit, limit_of


def test_the_limit_is_the_largest_of_what_was_asked_and_both_floors() -> None:
    noisy, calm = Floor(0.02, 9, 0.001), Floor(0.005, 9, 0.001)
    assert limit_of(0.01, noisy, calm) == limit_of(0.01, calm, noisy) == Limit(0.01, 0.02)
    assert limit_of(0.01, noisy, calm).value == 0.02
    assert limit_of(0.03, noisy, calm).value == 0.03


def test_what_processes_differ_by_does_not_raise_it() -> None:
    """The interval of each change holds that, cell by cell."""
    assert limit_of(0.01, Floor(0.005, 9, 0.09), None).value == 0.01


def test_a_run_without_a_twin_is_taken_to_have_the_least_floor() -> None:
    assert limit_of(0.001, None, None).value == 0.005
