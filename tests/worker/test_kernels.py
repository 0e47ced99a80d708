"""A kernel job in this process, on cases that behave as they are told to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from mlaprof.cases import CASES, Unavailable
from mlaprof.facts import Check
from mlaprof.kernels.work import Work
from mlaprof.records import KernelJob, KernelMeasurement, KernelPoint, Started
from mlaprof.study import MeasureSpec
from mlaprof.worker.jobs import run_job

MEASURE = MeasureSpec(cache="warm", min_samples=6, max_samples=8, warmup_s=0.0, cell_time_s=5.0, ci_half_width=0.9)


def crash() -> None:
    raise RuntimeError("out of\nluck")


class Planted:
    """Providers: quick and slow are right, wrong is not, absent is not installed, broken raises when called."""

    kernel, precision, work = "topk", "", Work(flops=6, bytes=12)
    calls: Mapping[str, Callable[[], object]] = {
        "quick": lambda: 1.0,
        "slow": lambda: time.sleep(0.05) or 1.0,
        "wrong": lambda: 2.0,
        "broken": crash,
    }

    def call(self, provider: str, tiles: Mapping[str, int] | None = None) -> Callable[[], object]:
        if provider == "absent":
            raise Unavailable("absent is not installed", "pip install absent")
        if tiles:
            raise ValueError("tiles: expected none")
        return self.calls[provider]

    def check(self, result: object) -> list[Check]:
        return [Check(name="value", value=abs(float(result) - 1.0), limit=0.5)]  # type: ignore[arg-type]


@pytest.fixture
def measured(monkeypatch):
    def measured(*points: KernelPoint, build: Callable[..., Any] = lambda *args, **kwargs: Planted()):
        monkeypatch.setitem(CASES, "topk", build)
        events = list(run_job(KernelJob(device="cpu", seed=3, measure=MEASURE, points=points)))
        found = [event for event in events if isinstance(event, KernelMeasurement)]
        assert len({each.point.key for each in found}) == len(found) == len(points)
        assert all(isinstance(event, (Started, KernelMeasurement)) for event in events)
        return {each.point.way: each for each in found}

    return measured


def point(provider: str, **more: Any) -> KernelPoint:
    return KernelPoint(kernel="topk", shape={"num_rows": 1}, provider=provider, **more)


def test_each_provider_ends_as_what_it_is(measured):
    """Right ones are timed and carry their work; the others say why, and none costs another its place."""
    found = measured(*map(point, ("quick", "wrong", "absent", "broken")), point("quick", tiles={"block_n": 1}))
    assert {way: each.outcome.status for way, each in found.items()} == {
        "quick": "ok",
        "wrong": "incorrect",
        "absent": "skipped",
        "broken": "failed",
        "quick:block_n=1": "failed",
    }
    assert found["wrong"].outcome.reason == "value 1, limit 0.5" and found["wrong"].timing is None
    assert "pip install absent" in found["absent"].outcome.reason
    assert found["broken"].outcome.reason == "RuntimeError: out of luck"
    quick = found["quick"]
    assert quick.timing and len(quick.timing.device_s) >= 6 and quick.emulated
    assert (quick.flops, quick.bytes, [check.name for check in quick.checks]) == (6, 12, ["value"])


def test_a_slow_provider_is_sampled_apart(measured):
    """Its rounds are its own, so that few of them cost the fast ones none of theirs."""
    found = measured(point("quick"), point("slow"))
    quick, slow = found["quick"].timing, found["slow"].timing
    assert quick and slow
    assert max(quick.device_s) < 0.05 <= min(slow.device_s)


def test_a_graph_needs_a_gpu(measured):
    found = measured(point("quick", launch="graph"))
    assert found["quick@graph"].outcome.status == "skipped"
    assert "a CPU has no graphs" in found["quick@graph"].outcome.reason


def test_inputs_that_cannot_be_made_fail_the_whole_cell(measured):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("too much")

    found = measured(point("quick"), point("slow"), build=refuse)
    assert {each.outcome.status for each in found.values()} == {"failed"}
    assert {each.outcome.stage for each in found.values()} == {"build"}
