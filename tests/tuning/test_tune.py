"""The parent of a tuning, with workers that answer, die and hang as they are told."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from mlaprof.engine.job import spawn_worker
from mlaprof.kernel_shapes import complete
from mlaprof.records import KernelMeasurement
from mlaprof.study import MeasureSpec, TuneStudy, TuneTarget
from mlaprof.tune import Begun, Decided, tune
from mlaprof.tuning.plan import plan_search

TARGET = TuneTarget(kernel="topk", shape=complete("topk", {"num_rows": 64, "width": 4096}))
STUDY = TuneStudy(name="one", targets=(TARGET,), budget_s=60.0, measure=MeasureSpec(point_timeout_s=20.0))
FAKE = str(Path(__file__).with_name("fake_searcher.py"))


def tuned(mode: str, *, study: TuneStudy = STUDY, known=()):
    search = plan_search(TARGET, hopper=False)
    kept: list[KernelMeasurement] = []
    spawned: list[str] = []

    def spawn(job):
        spawned.append(job.kind)
        return spawn_worker(job, (sys.executable, FAKE, mode))

    events = list(tune([search], study, "cpu", known=known, keep=kept.append, spawn=spawn))
    assert isinstance(events[0], Begun) and isinstance(events[-1], Decided)
    assert [each for each in events if isinstance(each, KernelMeasurement)] == kept
    return events[-1].decision, kept, spawned


def test_a_search_and_two_fresh_processes_decide():
    decision, kept, spawned = tuned("ok")
    assert spawned == ["search", "kernel", "kernel"]
    assert decision.verdict == "tuned" and decision.chosen.values["num_warps"] == 8
    assert decision.gain.median == pytest.approx(1.25, abs=0.01) and decision.evaluations == 5 and decision.emulated
    assert {row.process for row in kept if row.kind == "kernel"} == {0, 1}


def test_a_configuration_that_kills_its_worker_is_a_row_and_is_not_tried_again():
    decision, kept, spawned = tuned("crash")
    assert spawned == ["search", "search", "kernel", "kernel"]
    [lost] = [row for row in kept if row.outcome.status == "failed"]
    assert lost.point.tiles["num_warps"] == 4 and lost.outcome.stage == "verify"
    assert "illegal memory access" in lost.outcome.reason and "SIGKILL" in lost.outcome.reason
    assert decision.verdict == "tuned"


def test_workers_that_say_nothing_are_given_up_after_three():
    study = STUDY.model_copy(update={"measure": MeasureSpec(point_timeout_s=0.5)})
    begin_s = time.monotonic()
    decision, kept, spawned = tuned("mute", study=study)
    assert spawned == ["search"] * 3 and not kept and time.monotonic() - begin_s < 20
    assert decision.verdict == "not-measured" and decision.reason == "no configuration was timed"


def test_never_worse_a_winner_that_loses_in_the_fresh_process_is_not_taken():
    decision, _, _ = tuned("loser")
    assert decision.verdict == "keep-default" and "fresh process" in decision.reason


def test_what_is_known_is_not_measured_again():
    _, kept, _ = tuned("ok")
    decision, again, spawned = tuned("ok", known=kept)
    assert not again and not spawned and decision.verdict == "tuned"
    searched = [row for row in kept if row.kind == "search"]
    decision, again, spawned = tuned("ok", known=searched[:3])
    assert spawned == ["search", "kernel", "kernel"]
    assert {row.point.key for row in again if row.kind == "search"} == {row.point.key for row in searched[3:]}


def test_the_evaluations_asked_for_are_not_exceeded_on_resume():
    _, kept, _ = tuned("ok")
    searched = [row for row in kept if row.kind == "search"]
    _, _, spawned = tuned("ok", study=STUDY.model_copy(update={"max_evals": 5}), known=searched)
    assert spawned == ["kernel", "kernel"]
