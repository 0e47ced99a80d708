"""Raw samples relative to their median."""

from __future__ import annotations

import pytest

from mlaprof.analysis.strips import LEAST_REACH, MOST_REACH, reach, strips


def test_every_sample_stands_at_its_share_of_the_median_by_process(fake_runs):
    row = fake_runs.timing(fake_runs.point("full", 1), 1e-4, 1e-5)
    run = fake_runs.make_run([row, fake_runs.in_process(row, 1)])
    (found,) = strips(run).values()
    assert set(found.deviations) == {0, 1}
    assert len(found.deviations[0]) == len(row.timing.device_s)
    assert found.deviations[0][0] == pytest.approx(row.timing.device_s[0] / 1e-4 - 1, abs=1e-4)


def test_what_may_not_be_shown_has_no_strip(fake_runs):
    wrong = fake_runs.ended(fake_runs.point("full", 1), "incorrect", "differs", stage="verify")
    assert strips(fake_runs.make_run([wrong])) == {}


def test_the_axis_holds_nearly_all_samples_within_bounds(fake_runs):
    quiet = strips(fake_runs.make_run([fake_runs.timing(fake_runs.point("full", 1), 1e-4, 1e-5)]))
    assert reach(quiet) == LEAST_REACH
    assert reach({}) == LEAST_REACH
    wild = {key: type(strip)({0: (-0.9, 0.0, 5.0)}) for key, strip in quiet.items()}
    assert reach(wild) == MOST_REACH
