"""A kernel job: at each shape every provider's kernel, proven against the oracle, then sampled interleaved."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter

import torch

from mlaprof.cases import CASES, Case, Unavailable, poisoned, version
from mlaprof.facts import Check, KernelResources, SearchFacts, Timing
from mlaprof.machine.nvml import Nvml, Reading
from mlaprof.measure.clock import Clock
from mlaprof.measure.rounds import Rounds
from mlaprof.records import Event, KernelJob, KernelMeasurement, KernelPoint, Outcome, SearchJob, Stage, Started
from mlaprof.worker.events import failed, recover, wrong
from mlaprof.worker.health import Beside, Watch
from mlaprof.worker.mark import Mark
from mlaprof.worker.timing import clock_of, sample_arms, timing_of, watch_of

Step = Callable[[], object]
SLOW = 5.0  # times the fastest of the cell


@dataclass(frozen=True)
class Proven:
    """A Point's call and what the oracle says of it."""

    point: KernelPoint
    step: Step
    checks: tuple[Check, ...]
    first_call_s: float

    @property
    def wrong(self) -> tuple[Check, ...]:
        """What the oracle holds against it; empty where it is right."""
        return tuple(check for check in self.checks if not check.passed)


def kernel_job(job: KernelJob, mark: Mark | None = None) -> Iterator[Event]:
    """Every cell of the job, one after another. Raises ContextLost as events.recover does."""
    clock, mark = clock_of(job), mark or Mark()
    with torch.inference_mode(), Nvml() as nvml:
        watch = watch_of(job, nvml)
        for _, points in itertools.groupby(job.points, key=lambda point: point.cell):
            yield from _cell(job, list(points), clock, watch, mark)


def _cell(job: KernelJob, points: list[KernelPoint], clock: Clock, watch: Watch, mark: Mark) -> Iterator[Event]:
    yield Started(kind=job.kind, key=points[0].key, stage="build")
    try:
        case = CASES[points[0].kernel](points[0].shape, seed=job.seed, device=torch.device(job.device))
    except Exception as error:
        yield from _lost(job, points, "build", error)
        return
    ready: list[Proven] = []
    for point in points:
        yield Started(kind=job.kind, key=point.key, stage="verify")
        try:
            proven = prove(job, case, point, clock)
        except Unavailable as error:
            yield kernel_measurement(job, case, point, Outcome(status="skipped", stage="verify", reason=str(error)))
            continue
        except Exception as error:
            yield from _lost(job, [point], "verify", error)
            continue
        if proven.wrong:
            yield kernel_measurement(job, case, point, wrong(proven.wrong), checks=proven.checks)
            continue
        ready.append(proven)
    groups: list[list[Proven]] = []
    while ready and not groups:
        try:
            groups = _by_pace(ready, clock, mark)
        except Exception as error:
            lost = mark.among([each.point for each in ready])
            ready = [each for each in ready if each.point not in lost]
            yield from _lost(job, lost, "measure", error)
    while groups:
        together = groups.pop(0)
        yield Started(kind=job.kind, key=together[0].point.key, stage="measure")
        steps = {each.point.key: each.step for each in together}
        try:
            rounds, beside = sample_arms(job, steps, clock, watch, seed=job.seed, mark=mark)
        except Exception as error:
            lost = mark.among([each.point for each in together])
            yield from _lost(job, lost, "measure", error)
            if sound := [each for each in together if each.point not in lost]:
                groups.insert(0, sound)
            continue
        for each in together:
            timing = _timing(job, clock, rounds, each, beside)
            yield kernel_measurement(job, case, each.point, Outcome(status="ok"), checks=each.checks, timing=timing)


def _by_pace(ready: list[Proven], clock: Clock, mark: Mark) -> list[list[Proven]]:
    """Those to be sampled in the same rounds: a chain of plain operations, a hundred times slower than a kernel, would
    take the time that the other rounds of the cell need."""
    paces = []
    for each in ready:
        mark(each.point.key)
        paces.append(clock.sample(each.step).device_s)
    limit = SLOW * min(paces)
    fast = [each for each, pace in zip(ready, paces, strict=True) if pace <= limit]
    slow = [each for each, pace in zip(ready, paces, strict=True) if pace > limit]
    return [fast, slow] if slow else [fast]


def prove(job: KernelJob | SearchJob, case: Case, point: KernelPoint, clock: Clock) -> Proven:
    """The Point's call, run once and compared with the oracle; a graph is what is run and compared."""
    begin_s = perf_counter()
    with poisoned():
        call = case.call(point.provider, point.tiles)
        result = call()
    clock.settle()
    first_call_s = perf_counter() - begin_s
    step: Step = call
    if point.launch == "graph":
        if job.device != "cuda":
            raise Unavailable("a CPU has no graphs", "use launch: [eager], or a GPU")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()
        graph.replay()
        step = graph.replay
    return Proven(point, step, tuple(case.check(result)), first_call_s)


def _timing(job: KernelJob, clock: Clock, rounds: Rounds[Reading], done: Proven, beside: Beside) -> Timing:
    return timing_of(job, clock, rounds, done.point.key, first_call_s=done.first_call_s, beside=beside)


def _lost(job: KernelJob, points: list[KernelPoint], stage: Stage, error: Exception) -> Iterator[KernelMeasurement]:
    """The failure of every Point that error took; then what is left is freed. Raises ContextLost as events.recover."""
    for point in points:
        yield kernel_measurement(job, None, point, failed(stage, error))
    recover(job, error)


def kernel_measurement(
    job: KernelJob | SearchJob,
    case: Case | None,
    point: KernelPoint,
    outcome: Outcome,
    *,
    checks: tuple[Check, ...] = (),
    timing: Timing | None = None,
    resources: KernelResources | None = None,
    search: SearchFacts | None = None,
) -> KernelMeasurement:
    return KernelMeasurement(
        point=point,
        kind=job.kind,
        process=job.process,
        outcome=outcome,
        emulated=job.device == "cpu",
        recorded_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        flops=case.work.flops if case else 0,
        bytes=case.work.bytes if case else 0,
        precision=case.precision if case else "",
        version=version(point.provider),
        timing=timing,
        checks=checks,
        resources=resources,
        search=search,
    )
