"""What a sweep says of a cell while it runs is what its summary would say of what is recorded so far."""

from __future__ import annotations

from types import ModuleType

import pytest

from mlaprof.analysis.running import Running
from mlaprof.analysis.summary import summarize


@pytest.fixture
def points(fake_runs: ModuleType):
    base = fake_runs.point("monolithic_eager")
    return base, base.model_copy(update={"twin": True}), fake_runs.point("full")


def planned(*points, processes: int = 2):
    return [("timing", point.key, process) for process in range(processes) for point in points]


def test_a_running_cell_agrees_with_the_summary_of_what_is_there(fake_runs: ModuleType, points) -> None:
    """Median, interval and speed-up, after the first process and after the second."""
    base, _, full = points
    running = Running(planned(base, full), begin_s=0.0)
    kept = []
    for process, factor in ((0, 1.0), (1, 1.02)):
        for point, median_s in ((base, 200e-6), (full, 100e-6)):
            row = fake_runs.in_process(fake_runs.timing(point, median_s), process, factor)
            kept.append(row)
            found = running.take(row, now_s=len(kept))
        (cell,) = (each for each in summarize(fake_runs.make_run(kept)).cells if each.key == full.key)
        assert (found.device_s, found.speedup, found.submit_s) == (cell.device_s, cell.speedup, cell.submit_s)
        assert (found.processes, found.planned, found.verdict) == (process + 1, 2, "FASTER")


@pytest.mark.parametrize(
    ("median_s", "verdict"), [(100e-6, "SAME"), (110e-6, "SLOWER"), (90e-6, "FASTER"), (101e-6, "AMBIGUOUS")]
)
def test_a_verdict_is_over_the_cells_baseline(fake_runs: ModuleType, points, median_s: float, verdict: str) -> None:
    base, _, full = points
    running = Running(planned(base, full, processes=1), begin_s=0.0)
    first = running.take(fake_runs.timing(base, 100e-6), 1.0)
    assert (first.speedup, first.verdict) == (None, None)
    assert running.take(fake_runs.timing(full, median_s), 2.0).verdict == verdict


def test_a_baseline_that_differs_from_its_twin_raises_the_limit(fake_runs: ModuleType, points) -> None:
    base, twin, full = points
    running = Running(planned(base, twin, full, processes=1), begin_s=0.0)
    running.take(fake_runs.timing(base, 100e-6), 1.0)
    running.take(fake_runs.timing(twin, 108e-6), 2.0)
    assert running.take(fake_runs.timing(full, 103e-6), 3.0).verdict == "SAME"


def test_what_went_wrong_has_its_verdict_and_no_time(fake_runs: ModuleType, points) -> None:
    """One process suffices, whatever the others say; a cell that was kept cool tells nothing."""
    base, _, full = points
    running = Running(planned(base, full), begin_s=0.0)
    running.take(fake_runs.timing(base, 1e-4), 1.0)
    hot = running.take(fake_runs.timing(full, 5e-5, stop="interval", throttled=True), 2.0)
    assert hot.verdict == "THROTTLED"
    wrong = fake_runs.ended(full, "incorrect", "max_abs").model_copy(update={"process": 1})
    found = running.take(wrong, 3.0)
    assert (found.verdict, found.device_s, found.speedup) == ("INCORRECT", None, None)


def test_the_time_left_counts_what_comes_before_the_cell_is_done(fake_runs: ModuleType, points) -> None:
    """Each kind as long as it took so far, a new kind as long as all together; skips took no time."""
    base, _, full = points
    work = [*planned(base, full), ("memory", full.key, 0)]
    running = Running(work, begin_s=100.0)
    assert running.left_s is None
    skipped = fake_runs.ended(fake_runs.point("breakable"), "skipped", "no", stage="plan")
    assert running.take(skipped, 100.0).left_s is None
    found = running.take(fake_runs.timing(base, 1e-4), 110.0)
    assert found.left_s == pytest.approx(20.0)  # full, then base once more
    assert running.left_s == pytest.approx(40.0)
    found = running.take(fake_runs.timing(full, 1e-4), 130.0)
    assert found.left_s == pytest.approx(3 * 15.0)  # to its memory, of which nothing is known
    for process_1 in (base, full):
        running.take(fake_runs.in_process(fake_runs.timing(process_1, 1e-4), 1), 160.0)
    assert running.take(fake_runs.memory(full, 1.0), 161.0).left_s == 0.0


def test_a_resumed_sweep_goes_on_from_what_is_recorded(fake_runs: ModuleType, points) -> None:
    base, _, full = points
    known = [fake_runs.timing(base, 2e-4), fake_runs.timing(full, 1e-4)]
    running = Running([("timing", full.key, 1)], known=known, begin_s=0.0)
    found = running.take(fake_runs.in_process(fake_runs.timing(full, 1e-4), 1), 1.0)
    assert (found.processes, found.planned) == (2, 2)
    assert found.speedup is not None and found.speedup.median == pytest.approx(2.0, rel=0.01)
