"""Who sets the pace of a step in service, by how much, and where its time goes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from mlaprof.analysis.cells import Cell
from mlaprof.analysis.clocks import DEVICE_BOUND_RATIO, HOST_BOUND_RATIO, SUBMIT_SHARE, StepBudget, bound, step_budget
from mlaprof.analysis.summary import summarize


@pytest.mark.parametrize(
    ("submit", "sustained", "expected"),
    [
        pytest.param(1.00, 1.10, "host", id="the device waits and the host is busy"),
        pytest.param(9.00, 9.50, "host", id="far beyond"),
        pytest.param(0.98, 1.10, "mixed", id="the device waits for something else"),
        pytest.param(1.09, 1.09, "mixed", id="it hardly waits"),
        pytest.param(0.10, 1.04, "mixed", id="gaps that submitting does not explain"),
        pytest.param(0.10, 1.03, "device", id="within the noise"),
        pytest.param(1.02, 1.02, "device", id="the host has no margin, nor is it waited for"),
        pytest.param(0.50, 0.97, "device", id="faster than one step by itself"),
    ],
)
def test_the_pace_is_judged_by_warm_times(submit: float, sustained: float, expected: str) -> None:
    """In units of the warm device time; the cold one, longer by half here, is not looked at."""
    assert bound(1.5, submit, sustained, 1.0) == expected


def test_the_limits_leave_no_gap_and_no_overlap() -> None:
    assert 1 < DEVICE_BOUND_RATIO < HOST_BOUND_RATIO and 0 < SUBMIT_SHARE <= 1


@pytest.mark.parametrize(("submit", "expected"), [(1.1, "host"), (1.0, "device"), (0.9, "device")])
@pytest.mark.parametrize("bursts", [(None, None), (2.0, None), (2.0, 0.0)])
def test_without_bursts_the_slower_one_sets_the_pace(submit: float, expected: str, bursts: Any) -> None:
    assert bound(1.0, submit, *bursts) == expected


@pytest.mark.parametrize(
    ("sustained", "stall", "wait", "parts"),
    [
        pytest.param(10.0, 1.0, 2.0, (4.0, 2.0, 1.0, 3.0), id="all four"),
        pytest.param(10.0, 0.0, 0.0, (4.0, 0.0, 0.0, 6.0), id="launch gaps alone"),
        pytest.param(10.0, 5.0, 2.0, (4.0, 2.0, 4.0, 0.0), id="stalls are clipped"),
        pytest.param(10.0, 5.0, 9.0, (4.0, 6.0, 0.0, 0.0), id="waits are clipped first"),
        pytest.param(3.9, 5.0, 9.0, (4.0, 0.0, 0.0, 0.0), id="never idle"),
        pytest.param(10.0, -1.0, -1.0, (4.0, 0.0, 0.0, 6.0), id="clocks that disagree by less than they resolve"),
    ],
)
def test_the_idle_time_of_a_step_is_shared_out_once(
    sustained: float, stall: float, wait: float, parts: tuple[float, ...]
) -> None:
    """Busy, sync waits, host stalls, launch gaps: none negative, and together what the step took."""
    found = step_budget(sustained, 4.0, stall, wait)
    assert found == StepBudget(*parts)
    assert found.total_s == max(sustained, 4.0)


def cell_of(fake_runs: ModuleType, *, sync_wait_s: float | None = None, syncs: int = 0, **changes: Any) -> Cell:
    at = fake_runs.point("split_eager")
    rows = [
        fake_runs.timing(at, 100e-6, 150e-6, **changes),
        fake_runs.counts(at, stream_syncs=syncs, sync_wait_s=sync_wait_s),
    ]
    return summarize(fake_runs.make_run(rows)).cells[0]


def test_a_cell_has_four_clocks_a_verdict_a_margin_and_a_budget(fake_runs: ModuleType) -> None:
    """Planted: 90 us of work in 160 us of service, of which 20 us are waits and 10 us the thread is off its CPU."""
    submit = fake_runs.samples(150e-6, seed=1)
    cell = cell_of(
        fake_runs,
        **fake_runs.bursts(160e-6, 90e-6),
        submit_s=submit,
        submit_cpu_s=tuple(each - 10e-6 for each in submit),
        latency_s=fake_runs.samples(260e-6),
        syncs=1,
        sync_wait_s=20e-6,
    )
    clocks = (cell.device_s, cell.submit_s, cell.latency_s, cell.sustained_s, cell.warm_device_s)
    assert [each and each.median for each in clocks] == pytest.approx([100e-6, 150e-6, 260e-6, 160e-6, 90e-6])
    assert [each and each.n for each in clocks] == [50, 50, 50, 8, 8]
    assert cell.bound == "host" and cell.margin_s == pytest.approx(-50e-6)
    assert cell.step == cell.sustained_s
    assert cell.budget is not None
    parts = (cell.budget.busy_s, cell.budget.sync_wait_s, cell.budget.host_stall_s, cell.budget.launch_gap_s)
    assert parts == pytest.approx((90e-6, 20e-6, 10e-6, 40e-6))
    assert cell.budget.total_s == pytest.approx(160e-6)


@pytest.mark.parametrize(("syncs", "sync_wait_s"), [(0, 20e-6), (1, None)])
def test_waits_that_nothing_counted_are_launch_gaps(fake_runs: ModuleType, syncs: int, sync_wait_s: float) -> None:
    cell = cell_of(fake_runs, **fake_runs.bursts(160e-6, 90e-6), syncs=syncs, sync_wait_s=sync_wait_s)
    assert cell.budget == StepBudget(
        pytest.approx(90e-6),
        0.0,
        0.0,
        pytest.approx(70e-6),  # type: ignore[arg-type]
    )


def test_an_older_timing_has_a_bound_and_no_budget(fake_runs: ModuleType) -> None:
    cell = cell_of(fake_runs)
    assert cell.latency_s is cell.sustained_s is cell.warm_device_s is cell.budget is None
    assert cell.bound == "host" and cell.step == cell.submit_s and cell.margin_s == pytest.approx(-50e-6)


def test_of_an_emulated_step_no_bound_and_no_budget_is_told(fake_runs: ModuleType) -> None:
    """All its clocks are one."""
    cell = cell_of(fake_runs, emulated=True, **fake_runs.bursts(160e-6, 90e-6))
    assert cell.sustained_s is not None
    assert cell.bound is cell.margin_s is cell.budget is None


def test_of_a_step_that_waits_for_the_device_no_bound_is_told(fake_runs: ModuleType) -> None:
    """Its submit time holds the waits; its budget says how long they are."""
    cell = cell_of(fake_runs, unfilled=50, syncs=1, sync_wait_s=30e-6, **fake_runs.bursts(160e-6, 90e-6))
    assert cell.self_synchronising and cell.bound is cell.margin_s is None
    assert cell.budget is not None and cell.budget.sync_wait_s == 30e-6


def test_replays_pay_by_what_they_save_in_service(fake_runs: ModuleType) -> None:
    """Sustained times are compared with each other, never with another clock."""
    eager = fake_runs.timing(fake_runs.point("split_eager"), 1e-4, 3e-4, **fake_runs.bursts(2e-4, 9e-5))
    full = fake_runs.captured(fake_runs.timing(fake_runs.point("full"), 1e-4, 2e-5, **fake_runs.bursts(1e-4, 9e-5)))
    cell = summarize(fake_runs.make_run([eager, full])).cells[1]
    assert cell.break_even is not None and cell.break_even.replays == pytest.approx(0.1 / 1e-4)
    older = fake_runs.timing(fake_runs.point("split_eager"), 1e-4, 3e-4)
    assert summarize(fake_runs.make_run([older, full])).cells[1].break_even is None
