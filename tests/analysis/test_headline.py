"""The one number of a run: the speed-up in service, its interval, and what it is of."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest

from mlaprof.analysis.headline import headlines
from mlaprof.analysis.summary import summarize


def step(fake_runs: ModuleType, mode: str, tokens: int, device_us: float, submit_us: float):
    return fake_runs.timing(fake_runs.point(mode, tokens), device_us * 1e-6, submit_us * 1e-6)


@pytest.fixture
def host_bound(fake_runs: ModuleType):
    """At 1 token the host sets the pace of both, at 64 of neither, by planted times."""
    rows = [
        step(fake_runs, "monolithic_eager", 1, 100, 800),
        step(fake_runs, "split_piecewise", 1, 80, 200),
        step(fake_runs, "full", 1, 80, 10),
        step(fake_runs, "monolithic_eager", 64, 1000, 800),
        step(fake_runs, "split_piecewise", 64, 1000, 200),
        step(fake_runs, "full", 64, 1000, 10),
    ]
    return summarize(fake_runs.make_run(rows))


def test_the_headline_is_of_the_split_and_of_what_service_sees(host_bound):
    (found,) = headlines(host_bound)
    assert found.way == "split_piecewise" and found.over == "monolithic_eager"
    assert found.mean.median == pytest.approx((4.0 * 1.0) ** 0.5, rel=0.01)  # 800 / 200, and 1000 / 1000
    assert found.mean.n == 2 and found.mean.ci_low <= found.mean.median <= found.mean.ci_high
    assert found.device.median == pytest.approx(1.25**0.5, rel=0.01)
    assert (found.most.num_tokens, found.least.num_tokens, found.num_tokens) == (1, 64, (1, 64))


def test_a_step_in_service_is_the_longer_of_submitting_and_running(host_bound):
    by_key = {(cell.num_tokens, cell.mode): cell for cell in host_bound.cells}
    assert by_key[1, "full"].step_speedup.median == pytest.approx(800 / 80, rel=0.01)
    assert by_key[1, "full"].submit_speedup.median == pytest.approx(80, rel=0.01)  # what service does not see
    assert by_key[1, "monolithic_eager"].step_speedup.median == 1


def test_where_bursts_were_timed_service_is_what_they_say(fake_runs):
    rows = [
        fake_runs.timing(fake_runs.point("monolithic_eager", 1), 1e-4, 8e-4, **fake_runs.bursts(6e-4, 1e-4)),
        fake_runs.timing(fake_runs.point("split_piecewise", 1), 8e-5, 2e-4, **fake_runs.bursts(3e-4, 8e-5)),
    ]
    (found,) = headlines(summarize(fake_runs.make_run(rows)))
    assert found.mean.median == pytest.approx(2.0, rel=0.01)


def test_without_the_split_another_way_is_the_subject_and_without_any_there_is_none(fake_runs):
    eager = step(fake_runs, "monolithic_eager", 1, 100, 800)
    (found,) = headlines(summarize(fake_runs.make_run([eager, step(fake_runs, "full", 1, 80, 10)])))
    assert found.way == "full"
    assert headlines(summarize(fake_runs.make_run([eager]))) == ()


def test_a_mean_stands_only_over_all_of_its_cells(host_bound):
    (found,) = headlines(host_bound)
    group = found.group
    assert {mean.way: mean.step is not None for mean in group.means} == {"split_piecewise": True, "full": True}
    lacking = replace(host_bound, means=tuple(replace(mean, step=None) for mean in host_bound.means))
    assert headlines(lacking) == ()
