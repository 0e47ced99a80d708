"""A trace job: the timeline of one warm step of each arm. Profiled, so no time of a run comes from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from mlaprof.measure.timeline import Named, Span, record_step
from mlaprof.records import Outcome, Point
from mlaprof.traces import TraceMeasurement, TraceSpan
from mlaprof.worker.arms import Arm
from mlaprof.worker.events import Event, failure, measurement, recover, started
from mlaprof.worker.prepare import graph_facts, prepare
from mlaprof.worker.rig import Rig

WARM_STEPS = 3  # before the profiler watches


def trace_job(rig: Rig) -> Iterator[Event]:
    job = rig.job
    for point in job.points:
        yield started(job, point, "capture")
        try:
            prepared = prepare(rig, point)
        except Exception as error:
            yield failure(job, point, "capture", error)
            recover(job, error)
            continue
        yield started(job, point, "measure")
        try:
            rig.load(point.num_tokens)
            rig.load_hidden(0, prepared.arm.runner.facts(point.num_tokens).num_tokens)
            spans = _spans(prepared.arm, point, cuda=job.device == "cuda")
            found = measurement(job, point, Outcome(status="ok"), graph=graph_facts(prepared))
            event = TraceMeasurement(**dict(found), spans=tuple(TraceSpan(**asdict(span)) for span in spans))
        except Exception as error:
            yield failure(job, point, "measure", error)
            recover(job, error)
            continue
        yield event


def _spans(arm: Arm, point: Point, *, cuda: bool) -> tuple[Span, ...]:
    def step(named: Named) -> object:
        with arm.context:
            return arm.runner.named_run(point.num_tokens, named)

    with arm.context:
        for _ in range(WARM_STEPS):
            arm.runner.run(point.num_tokens)
    return record_step(step, cuda=cuda)
