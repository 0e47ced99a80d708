"""The A/A twin in a timing job on a CPU: proven like its baseline, and timed beside it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from mlaprof.kernels import reference
from mlaprof.records import Job, Measurement, Started
from mlaprof.worker import timing
from mlaprof.worker.jobs import run_job
from mlaprof.worker.rig import Rig

TWIN = ("measure.twin=true",)


def by_key(job: Job) -> dict[str, Measurement]:
    found = [event for event in run_job(job) if isinstance(event, Measurement)]
    assert sorted(each.point.key for each in found) == sorted(point.key for point in job.points)
    return {each.point.key.partition("/ctx0/")[2]: each for each in found}


@pytest.mark.parametrize("modes", ["monolithic_eager, split_eager", "full"])
def test_a_twin_is_timed_round_by_round_with_its_baseline(planned, modes: str) -> None:
    """Under a key of its own, with as many rounds and its own samples; captured or not."""
    (job,) = planned(f"sweep: {{num_tokens: 3, mode: [{modes}]}}", settings=TWIN).jobs
    found = by_key(job)

    name = modes.split(",")[0]
    assert f"{name}/aa" in found and len(found) == len(modes.split(",")) + 1
    assert {each.outcome.status for each in found.values()} == {"ok"}
    assert len({len(each.timing.device_s) for each in found.values() if each.timing}) == 1
    baseline, twin = found[name], found[f"{name}/aa"]
    assert baseline.timing and twin.timing and baseline.timing.device_s != twin.timing.device_s
    assert twin.graph and baseline.graph and twin.graph.state == baseline.graph.state


def test_a_twin_shares_the_runner_of_its_baseline_and_is_an_arm_of_the_rounds(planned, monkeypatch) -> None:
    """Two graphs of one step would differ by where they lie in memory; the rounds know two arms all the same."""
    rounds: list[dict[str, Any]] = []
    sample = timing.sample_rounds

    def watched(steps: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        rounds.append(steps)
        return sample(steps, *args, **kwargs)

    monkeypatch.setattr(timing, "sample_rounds", watched)
    (job,) = planned("sweep: {num_tokens: [5, 3], mode: [monolithic_eager]}", settings=TWIN).jobs
    with torch.inference_mode():
        rig = Rig(job)
        list(timing.timing_job(rig))

    assert [list(steps) for steps in rounds] == [
        [f"tiny/prefill/t{size}/ctx0/monolithic_eager{suffix}" for suffix in ("", "/aa")] for size in (5, 3)
    ]
    assert all(len({id(step) for step in steps.values()}) == 2 for steps in rounds)
    assert len({id(rig.arm(point).runner) for point in job.points}) == 1


def test_a_twin_has_its_own_stages(planned) -> None:
    (job,) = planned("sweep: {num_tokens: 3, mode: [monolithic_eager]}", settings=TWIN).jobs
    stages = [
        (event.stage, event.key.endswith("/aa"))
        for event in run_job(job)
        if isinstance(event, Started) and event.stage in ("capture", "verify")
    ]
    assert stages == [("capture", False), ("capture", True), ("verify", False), ("verify", True)]


def test_a_baseline_that_is_not_reproducible_shows_in_its_twin(planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the oracle's tolerance at each call, but never twice the same: the bits of the twin differ."""
    right, calls = reference.sparse_attn, itertools.count()

    def drifting(*args: Any, out: torch.Tensor, **kwargs: Any) -> None:
        right(*args, out=out, **kwargs)
        out.mul_(1 + 0.0005 * next(calls))

    monkeypatch.setattr(reference, "sparse_attn", drifting)
    (job,) = planned("sweep: {num_tokens: 3, mode: [monolithic_eager]}", settings=TWIN).jobs
    found = by_key(job)

    assert found["monolithic_eager"].outcome.status == "ok"
    twin = found["monolithic_eager/aa"]
    assert (twin.outcome.status, twin.timing) == ("incorrect", None)
    assert "eager, own batch: differing bytes vs eager" in twin.outcome.reason
