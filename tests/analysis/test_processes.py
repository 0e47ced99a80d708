"""A cell that several fresh processes timed: one outcome, one estimate, and ratios of the rounds they share."""

from __future__ import annotations

from itertools import combinations
from types import ModuleType

import numpy as np
import pytest

from mlaprof.analysis.arms import Arm, arm_of, speedup
from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.summary import summarize
from mlaprof.errors import RunFileError
from mlaprof.records import work


def only(summary: Summary) -> Cell:
    (cell,) = summary.cells
    return cell


def kinds(summary: Summary) -> set[str]:
    return {found.kind for found in summary.findings}


def test_the_samples_of_all_processes_are_one_estimate(fake_runs: ModuleType) -> None:
    """As wide as the processes lie apart, not as narrow as the rounds of each would have it."""
    first = fake_runs.timing(fake_runs.point(), 1e-4)
    rows = [fake_runs.in_process(first, process, factor) for process, factor in enumerate((0.99, 1.0, 1.01))]
    cell = only(summarize(fake_runs.make_run(rows)))
    assert cell.device_s is not None and cell.submit_s is not None
    assert cell.device_s.median == pytest.approx(1e-4, rel=1e-3)
    assert cell.device_s.n == cell.submit_s.n == 150 and cell.processes == 3
    assert cell.device_s.half_width > 0.02
    assert cell.outcome == "ok" and cell.notes == ()
    alone = only(summarize(fake_runs.make_run([first])))
    assert alone.device_s is not None and alone.device_s.half_width < 0.001 and alone.processes == 1


def test_what_happened_in_any_process_is_said_of_the_cell(fake_runs: ModuleType) -> None:
    """Counts add up, shares and medians are over all rounds, the worst of the rest."""
    first = fake_runs.timing(fake_runs.point(), 1e-4, stop="interval")
    rows = [
        fake_runs.in_process(first, 0, dropped_rounds=2, first_call_s=1.0, unfilled=1, sm_clock_hz=(1e9,) * 50),
        fake_runs.in_process(first, 1, clock_event_reasons=(4,) * 50, other_processes=3, sm_clock_hz=(2e9,) * 50),
        fake_runs.in_process(first, 2, dropped_rounds=5, first_call_s=9.0, throttled=True, sm_clock_hz=()),
    ]
    cell = only(summarize(fake_runs.make_run(rows)))
    assert (cell.dropped_rounds, cell.unfilled, cell.other_processes, cell.throttled) == (7, 1, 3, True)
    assert (cell.first_call_s, cell.sm_clock_hz) == (1.5, 1.5e9)
    assert cell.power_capped == pytest.approx(1 / 3) and cell.clock_events == ("SwPowerCap",)


@pytest.mark.parametrize(("worse", "better"), [*combinations(("incorrect", "failed", "skipped", "ok"), 2)])
@pytest.mark.parametrize("place", [0, 1])
def test_the_gravest_process_decides(fake_runs: ModuleType, worse: str, better: str, place: int) -> None:
    """And is named; a cell that is not ok shows no latency of the processes that were."""
    at = fake_runs.point()
    good = fake_runs.timing(at, 1e-4) if better == "ok" else fake_runs.ended(at, better, "another")
    bad = fake_runs.ended(at, worse, "shape [3, 5]", stage="verify")
    rows = [
        each.model_copy(update={"process": process})
        for process, each in enumerate([bad, good] if place == 0 else [good, bad])
    ]
    cell = only(summarize(fake_runs.make_run(rows)))
    assert (cell.outcome, cell.stage) == (worse, "verify")
    assert cell.reason == f"process {place + 1}: shape [3, 5]"
    assert not cell.timed and cell.processes == 0


def test_what_all_processes_agree_on_needs_no_process(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    rows = [
        fake_runs.ended(at, "skipped", "aten::nonzero", stage="plan").model_copy(update={"process": process})
        for process in range(3)
    ]
    assert only(summarize(fake_runs.make_run(rows))).reason == "aten::nonzero"
    some = [*rows[:2], fake_runs.timing(at, 1e-4).model_copy(update={"process": 2})]
    assert only(summarize(fake_runs.make_run(some))).reason == "process 1, 2: aten::nonzero"


def test_a_run_that_ended_early_keeps_the_cells_it_has_and_says_what_they_lack(fake_runs: ModuleType) -> None:
    at, other = fake_runs.point(), fake_runs.point("breakable")
    planned = [work("timing", each.key, process) for process in range(3) for each in (at, other)]
    first = fake_runs.timing(at, 1e-4)
    summary = summarize(fake_runs.make_run([first], planned=planned))
    cell, absent = summary.cells
    assert cell.outcome == "ok" and cell.timed and cell.processes == 1
    assert cell.notes == ("timing of process 2, 3 missing: the run ended before it was measured",)
    assert (absent.outcome, absent.notes) == ("missing", ())
    assert kinds(summary) == {"missing", "partial"}


def test_a_later_timing_replaces_that_of_its_own_process_alone(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    failed = fake_runs.ended(at, "failed", "CUDA error").model_copy(update={"process": 1})
    first = fake_runs.timing(at, 1e-4)
    cell = only(summarize(fake_runs.make_run([first, failed, fake_runs.in_process(first, 1)])))
    assert cell.outcome == "ok" and cell.processes == 2


@pytest.mark.parametrize("line", ["timing#x KEY", "timings KEY", "timing#-1 KEY", "KEY", ""])
def test_a_planned_line_that_is_none_is_refused(fake_runs: ModuleType, line: str) -> None:
    line = line.replace("KEY", fake_runs.point().key)
    with pytest.raises(RunFileError, match="planned: expected `KIND KEY` or `KIND#N KEY`"):
        summarize(fake_runs.make_run([], planned=[line]))


def arms_of(fake_runs: ModuleType, base: np.ndarray, new: np.ndarray, **changes: object) -> tuple[Arm, Arm]:
    """Two arms with these device times, a row a process."""
    found = []
    for mode, rows in (("monolithic_eager", base), ("full", new)):
        at = fake_runs.point(mode)
        measured = {
            process: fake_runs.timing(at, 1e-4, device_s=tuple(row), **changes) for process, row in enumerate(rows)
        }
        arm = arm_of(at.key, measured)
        assert arm is not None
        found.append(arm)
    return found[0], found[1]


def test_a_speed_up_is_of_the_rounds_that_both_arms_share(fake_runs: ModuleType) -> None:
    """Processes 5 % apart and a drift of 3 % leave a ratio of 1.02 as sharp as its rounds are."""
    rng = np.random.default_rng(0)
    common = 1e-4 * np.array([[0.95], [1.0], [1.05]]) * np.linspace(1, 1.03, 40)
    base, new = (common * rng.lognormal(0, 0.001, (3, 40)) for _ in range(2))
    slower, faster = arms_of(fake_runs, 1.02 * base, new)
    found = speedup(slower, faster)
    assert found is not None and found.n == 120
    assert found.ci_low < 1.02 < found.ci_high and found.half_width < 0.001
    back = speedup(faster, slower)
    assert back is not None and back.median == pytest.approx(1 / found.median)


@pytest.mark.parametrize(("rounds", "processes"), [(39, 3), (40, 2)])
def test_arms_without_common_rounds_are_compared_by_their_medians(
    fake_runs: ModuleType, rounds: int, processes: int
) -> None:
    rng = np.random.default_rng(0)
    base, new = 2e-4 * rng.lognormal(0, 0.001, (3, 40)), 1e-4 * rng.lognormal(0, 0.001, (processes, rounds))
    found = speedup(*arms_of(fake_runs, base, new))
    assert found is not None and found.median == pytest.approx(np.median(base) / np.median(new))
    assert found.n == processes * rounds


def test_an_arm_over_itself_is_one_exactly(fake_runs: ModuleType) -> None:
    arm, _ = arms_of(fake_runs, *np.random.default_rng(0).lognormal(0, 0.1, (2, 3, 40)))
    found = speedup(arm, arm)
    assert found is not None and (found.ci_low, found.median, found.ci_high, found.n) == (1, 1, 1, 120)


def test_an_arm_is_shown_only_if_every_process_may_be(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    good = fake_runs.timing(at, 1e-4)
    assert arm_of(at.key, {}) is None
    assert arm_of(at.key, {0: good, 1: fake_runs.ended(at, "incorrect", "differs")}) is None
    empty = fake_runs.timing(at, 1e-4, device_s=(), submit_s=())
    assert arm_of(at.key, {0: empty}) is None
    kept = arm_of(at.key, {0: good, 1: empty})
    assert kept is not None and list(kept.timings) == [0]
