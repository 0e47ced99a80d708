"""A timing job: all arms of a cell in one process, proven, then sampled interleaved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

import torch

from mlaprof.facts import GraphFacts, Timing
from mlaprof.machine.nvml import Nvml, Reading
from mlaprof.measure.timing import ArmSamples, Clock, CpuClock, CudaClock, sample_rounds
from mlaprof.records import Job, Outcome, Point
from mlaprof.worker.arms import Arm
from mlaprof.worker.events import Event, failure, measurement, recover, started
from mlaprof.worker.gate import Gate, Verdict
from mlaprof.worker.prepare import Prepared, graph_facts, prepare
from mlaprof.worker.rig import Rig, cells

Read = Callable[[], "_Beside"]
TIME_SHARE = 0.5  # of point_timeout_s may go to the samples of one cell; the parent kills at all of it


@dataclass(frozen=True)
class _Ready:
    arm: Arm
    graph: GraphFacts
    verdict: Verdict
    first_call_s: float


@dataclass(frozen=True)
class _Beside:
    """What belongs beside one sample."""

    reading: Reading | None  # None without NVML
    filled: bool  # the whole step was queued before the device reached it


def timing_job(rig: Rig) -> Iterator[Event]:
    """Capture every arm at every size first, so that all see the same allocator; then prove and sample cell by cell."""
    job = rig.job
    clock = _clock(job)
    prepared: dict[str, Prepared] = {}
    for points in cells(job.points):
        for point in points:
            yield started(job, point, "capture")
            try:
                prepared[point.key] = prepare(rig, point)
            except Exception as error:
                yield failure(job, point, "capture", error)
                recover(job)
    with Nvml() as nvml:
        for points in cells(job.points):
            ready = [prepared[point.key] for point in points if point.key in prepared]
            yield from _cell(rig, ready, clock, _reader(job, nvml, clock))


def _cell(rig: Rig, prepared: list[Prepared], clock: Clock, reading: Read) -> Iterator[Event]:
    if not prepared:
        return
    job = rig.job
    gate = Gate(rig, prepared[0].arm.point.num_tokens)
    ready: list[_Ready] = []
    for each in prepared:
        arm, point = each.arm, each.arm.point
        yield started(job, point, "verify")
        try:
            first_call_s = _first_call_s(rig, each, clock)
            verdict = gate.check(arm)
        except Exception as error:
            yield failure(job, point, "verify", error)
            recover(job)
            continue
        facts = graph_facts(each)
        if verdict.wrong:
            yield _incorrect(job, point, verdict, facts)
            continue
        ready.append(_Ready(arm, facts, verdict, first_call_s))
    if not ready:
        return
    yield started(job, ready[0].arm.point, "measure")
    try:
        samples = _sample(rig, ready, clock, reading)
        verdicts = [gate.recheck(each.arm, each.verdict) for each in ready]
    except Exception as error:
        for lost in ready:
            yield failure(job, lost.arm.point, "measure", error)
        recover(job)
        return
    for done, verdict in zip(ready, verdicts, strict=True):
        point = done.arm.point
        if verdict.wrong:
            yield _incorrect(job, point, verdict, done.graph)
            continue
        timing = _timing(job, clock, samples[point.key], done.first_call_s)
        yield measurement(
            job,
            point,
            Outcome(status="ok"),
            timing=timing,
            checks=verdict.checks,
            gate=verdict.facts,
            graph=done.graph,
        )


def _incorrect(job: Job, point: Point, verdict: Verdict, facts: GraphFacts) -> Event:
    reason = "; ".join(f"{check.name} {check.value:.3g}, limit {check.limit:g}" for check in verdict.wrong)
    outcome = Outcome(status="incorrect", stage="verify", reason=reason)
    return measurement(job, point, outcome, checks=verdict.checks, gate=verdict.facts, graph=facts)


def _first_call_s(rig: Rig, prepared: Prepared, clock: Clock) -> float:
    """Seconds until the first result: preparation and one run."""
    rig.load(prepared.arm.point.num_tokens)
    begin_s = perf_counter()
    with prepared.arm.context:
        prepared.arm.runner.run(prepared.arm.point.num_tokens)
        clock.settle()
    return (prepared.prepare_s or 0.0) + perf_counter() - begin_s


def _sample(rig: Rig, ready: list[_Ready], clock: Clock, reading: Read) -> dict[str, ArmSamples[_Beside]]:
    spec = rig.job.measure
    rig.load(ready[0].arm.point.num_tokens)  # an arm that failed in the gate leaves another batch behind
    # Padding rows as an engine's buffers hold them, not the gate's NaN.
    rig.load_hidden(0, max(each.graph.padded_tokens for each in ready))
    deadline_s = perf_counter() + TIME_SHARE * spec.point_timeout_s
    return sample_rounds(
        {each.arm.point.key: _step(each.arm) for each in ready},
        clock,
        min_samples=spec.min_samples,
        max_samples=max(spec.min_samples, spec.max_samples),
        min_time_s=0.0,
        warmup_s=spec.warmup_s,
        reading=reading,
        seed=rig.job.batch.seed,
        exhausted=lambda: perf_counter() > deadline_s,
    )


def _step(arm: Arm) -> Callable[[], object]:
    context, run, num_tokens = arm.context, arm.runner.run, arm.point.num_tokens

    def step() -> object:
        with context:
            return run(num_tokens)

    return step


def _timing(job: Job, clock: Clock, samples: ArmSamples[_Beside], first_call_s: float) -> Timing:
    beside = [each for each in samples.readings if each is not None]
    readings = [each.reading for each in beside if each.reading is not None]
    complete = readings if len(readings) == len(samples.device_s) else []
    return Timing(
        device_s=samples.device_s,
        submit_s=samples.submit_s,
        sm_clock_hz=_series([each.sm_clock_hz for each in complete]),
        power_w=_series([each.power_w for each in complete]),
        temperature_c=_series([each.temperature_c for each in complete]),
        clock_event_reasons=tuple(each.event_reasons or 0 for each in complete),
        unfilled=sum(not each.filled for each in beside),
        cache=job.measure.cache,
        clock=clock.name,
        warmup_s=job.measure.warmup_s,
        first_call_s=first_call_s,
    )


def _series(values: list[float | None]) -> tuple[float, ...]:
    """All values, or nothing where the card refuses one of them: a series has one entry a round."""
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else ()


def _clock(job: Job) -> Clock:
    cold = job.measure.cache == "cold"
    if job.device == "cuda":
        return CudaClock(cold=cold, l2_bytes=torch.cuda.get_device_properties(0).L2_cache_size)
    return CpuClock(cold=cold)


def _reader(job: Job, nvml: Nvml, clock: Clock) -> Read:
    index = nvml.cuda_index() if job.device == "cuda" else None
    unfilled = clock.unfilled

    def read() -> _Beside:
        nonlocal unfilled
        filled, unfilled = clock.unfilled == unfilled, clock.unfilled
        return _Beside(None if index is None else nvml.reading(index), filled)

    return read
