"""What an A/A self-test runs."""

from __future__ import annotations

import pytest

from mlaprof.noise_plan import SUBJECTS, noise_plan
from mlaprof.study import MeasureSpec


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_same_points_are_timed_in_every_process(device: str) -> None:
    plan = noise_plan(device)
    first = plan.jobs[0]

    assert [job.process for job in plan.jobs] == list(range(SUBJECTS[device].processes))
    assert {job.model_copy(update={"process": 0}) for job in plan.jobs} == {first}
    assert (first.kind, first.device) == ("noise", device)
    assert {point.mode for point in first.points} == {"monolithic_eager", "full"}
    assert len(first.points) == len({point.key for point in first.points}) >= 3


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_there_are_processes_enough_for_two_runs_and_rounds_enough_for_windows(device: str) -> None:
    """Fewer than two runs of the standard preset leave nothing to compare across runs."""
    standard = MeasureSpec()

    assert SUBJECTS[device].processes >= 2 * standard.processes
    assert SUBJECTS[device].rounds >= 2 * standard.min_samples


def test_a_gpu_is_timed_as_a_study_times_it_by_default() -> None:
    """A floor of warm steps would say nothing of a sweep's cold ones."""
    assert noise_plan("cuda").jobs[0].measure.cache == MeasureSpec().cache


def test_the_impatient_ask_for_fewer() -> None:
    plan = noise_plan("cuda", processes=2, rounds=7)

    assert len(plan.jobs) == 2
    assert {(job.measure.min_samples, job.measure.max_samples) for job in plan.jobs} == {(7, 7)}


@pytest.mark.parametrize(("processes", "rounds"), [(0, 20), (-1, 20), (3, 5), (3, 5001)])
def test_too_few_or_too_many_are_refused(processes: int, rounds: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        noise_plan("cpu", processes=processes, rounds=rounds)
