"""A timing job: all arms of a cell in one process, proven, then sampled interleaved."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from time import perf_counter

import torch

from mlaprof.facts import GraphFacts, Timing
from mlaprof.machine.nvml import Nvml, Reading
from mlaprof.measure.clock import Clock, CpuClock, CudaClock, Step
from mlaprof.measure.company import ALONE, Company
from mlaprof.measure.rounds import Limits, Rounds, sample_rounds
from mlaprof.records import AnyJob, Job, Outcome, Point
from mlaprof.worker.arms import Arm
from mlaprof.worker.events import Event, failure, measurement, recover, started, wrong
from mlaprof.worker.gate import Gate, Verdict
from mlaprof.worker.health import Beside, Watch, undisturbed, valid_at
from mlaprof.worker.mark import Mark
from mlaprof.worker.prepare import Prepared, graph_facts, prepare
from mlaprof.worker.rig import Rig, cells
from mlaprof.worker.slowest import gathered

TIME_SHARE = 0.4  # of the limit of its stage may go to the samples of one cell, once more to those of a disturbed one
ORDERS_APART = 1_000_003  # between the seeds of two processes, so that their orders have nothing in common


Sampled = tuple[Rounds[Reading], Beside]


@dataclass(frozen=True)
class Proven:
    """An arm whose time may be taken."""

    arm: Arm
    graph: GraphFacts
    verdict: Verdict
    first_call_s: float


def timing_job(rig: Rig, mark: Mark | None = None) -> Iterator[Event]:
    """Capture every arm at every size first, so that all see the same allocator; then prove and sample cell by cell."""
    job = rig.job
    mark = mark or Mark()
    clock = clock_of(job, rig.group)
    prepared = yield from capture(rig)
    with Nvml() as nvml:
        watch = watch_of(job, nvml)
        for points in cells(job.points):
            ready = [prepared[point.key] for point in points if point.key in prepared]
            if ready:
                yield from _cell(rig, ready, clock, watch, mark)


def capture(rig: Rig) -> Generator[Event, None, dict[str, Prepared]]:
    """Every Point of the job made ready, those of a cell together, by key; the others have their Measurement."""
    job = rig.job
    prepared: dict[str, Prepared] = {}
    for points in cells(job.points):
        for point in points:
            yield started(job, point, "capture")
            try:
                prepared[point.key] = prepare(rig, point)
            except Exception as error:
                yield failure(job, point, "capture", error)
                recover(job, error)
    return prepared


def _cell(rig: Rig, prepared: list[Prepared], clock: Clock, watch: Watch, mark: Mark) -> Iterator[Event]:
    gate = Gate(rig, prepared[0].arm.point.num_tokens)
    ready = yield from prove(rig, gate, prepared, clock)
    while ready:
        ready = yield from _sampled(rig, gate, ready, clock, watch, mark)


def _sampled(
    rig: Rig, gate: Gate, ready: list[Proven], clock: Clock, watch: Watch, mark: Mark
) -> Generator[Event, None, list[Proven]]:
    """Sample these arms; when one breaks it has its Measurement, and the others are answered with, to be sampled."""
    job = rig.job
    yield started(job, ready[0].arm.point, "measure")
    try:
        with rig.group.together():
            rounds, beside = _sample(rig, ready, clock, watch, mark)
            rounds, ranks = gathered(rig.group, rounds, [each.arm for each in ready])
            verdicts = []
            for each in ready:
                mark(each.arm.point.key)
                verdicts.append(gate.recheck(each.arm, each.verdict))
    except Exception as error:
        lost = mark.among([each.arm.point for each in ready])
        for point in lost:
            yield failure(job, point, "measure", error)
        recover(job, error)
        return [each for each in ready if each.arm.point not in lost]
    for done, verdict in zip(ready, verdicts, strict=True):
        point = done.arm.point
        if verdict.wrong:
            yield incorrect(job, point, verdict, done.graph)
            continue
        yield measurement(
            job,
            point,
            Outcome(status="ok"),
            timing=timing_of(job, clock, rounds, point.key, first_call_s=done.first_call_s, beside=beside),
            ranks=ranks.get(point.key),
            checks=verdict.checks,
            gate=verdict.facts,
            graph=done.graph,
        )
    return []


def prove(rig: Rig, gate: Gate, prepared: list[Prepared], clock: Clock) -> Generator[Event, None, list[Proven]]:
    """The arms of one cell that the gate lets through; the others have their Measurement."""
    job = rig.job
    ready: list[Proven] = []
    for each in prepared:
        arm, point = each.arm, each.arm.point
        yield started(job, point, "verify")
        try:
            with rig.group.together():
                first_call_s = _first_call_s(rig, each, clock)
                verdict = gate.check(arm)
        except Exception as error:
            yield failure(job, point, "verify", error)
            recover(job, error)
            continue
        facts = graph_facts(each)
        if verdict.wrong:
            yield incorrect(job, point, verdict, facts)
            continue
        ready.append(Proven(arm, facts, verdict, first_call_s))
    return ready


def incorrect(job: Job, point: Point, verdict: Verdict, facts: GraphFacts) -> Event:
    return measurement(job, point, wrong(verdict.wrong), checks=verdict.checks, gate=verdict.facts, graph=facts)


def _first_call_s(rig: Rig, prepared: Prepared, clock: Clock) -> float:
    """Seconds until the first result: preparation and one run."""
    rig.load(prepared.arm.point.num_tokens)
    begin_s = perf_counter()
    with prepared.arm.context:
        prepared.arm.runner.run(prepared.arm.point.num_tokens)
        clock.settle()
    return (prepared.prepare_s or 0.0) + perf_counter() - begin_s


def _sample(rig: Rig, ready: list[Proven], clock: Clock, watch: Watch, mark: Mark) -> Sampled:
    rest(rig, ready)
    steps = {each.arm.point.key: step_of(each.arm) for each in ready}
    return sample_arms(rig.job, steps, clock, watch, seed=rig.job.batch.seed, mark=mark, company=rig.group)


def sample_arms(
    job: AnyJob,
    steps: Mapping[str, Step],
    clock: Clock,
    watch: Watch,
    *,
    seed: int,
    mark: Mark | None = None,
    company: Company = ALONE,
) -> Sampled:
    """Rounds of these steps as the job's measure has it; seed of the orders, which only ranks of one job share.

    Where the CPUs of a GPU's worker were contended they are taken once more. Emulated ones are kept as they are.

    Raises NvmlGone where NVML answered at the beginning and no more at the end, and whatever a step raises.
    """
    spec, mark = job.measure, mark or Mark()
    limits = Limits(
        min_samples=spec.min_samples,
        max_samples=max(spec.min_samples, spec.max_samples),
        ci_half_width=spec.ci_half_width,
        time_s=min(spec.cell_time_s, TIME_SHARE * spec.limit_s("measure")),
        warmup_s=spec.warmup_s,
    )

    def rounds() -> Rounds[Reading]:
        return sample_rounds(
            steps,
            clock,
            limits,
            seed=seed + ORDERS_APART * job.process,
            reading=watch.reading,
            valid=valid_at(spec.min_clock_ratio),
            begin=mark,
            company=company,
        )

    sampled = undisturbed(lambda: watch.over(rounds), company) if job.device == "cuda" else watch.over(rounds)
    mark("")
    watch.require_present()
    return sampled


def rest(rig: Rig, ready: list[Proven]) -> None:
    """Put the cell's own batch in place as an engine's buffers hold it: an arm that failed in the gate leaves another
    behind, and the gate NaN in the padding rows."""
    rig.load(ready[0].arm.point.num_tokens)
    rig.load_hidden(0, max(each.graph.padded_tokens for each in ready))


def step_of(arm: Arm) -> Callable[[], object]:
    """The arm's step as a call without arguments."""
    context, run, num_tokens = arm.context, arm.runner.run, arm.point.num_tokens

    def step() -> object:
        with context:
            return run(num_tokens)

    return step


def timing_of(
    job: AnyJob, clock: Clock, rounds: Rounds[Reading], key: str, *, first_call_s: float, beside: Beside
) -> Timing:
    """The Timing of the arm `key`."""
    found = rounds.arms[key]
    readings = [each for each in found.readings if each is not None]
    complete = readings if len(readings) == len(found.samples) else []
    return Timing(
        device_s=found.device_s,
        submit_s=tuple(each.submit_s for each in found.samples),
        submit_cpu_s=tuple(each.submit_cpu_s for each in found.samples),
        latency_s=tuple(each.latency_s for each in found.samples),
        sustained_s=tuple(each.sustained_s for each in found.bursts),
        warm_device_s=tuple(each.warm_device_s for each in found.bursts),
        burst_steps=found.burst_steps,
        sm_clock_hz=_series([each.sm_clock_hz for each in complete]),
        power_w=_series([each.power_w for each in complete]),
        temperature_c=_series([each.temperature_c for each in complete]),
        clock_event_reasons=tuple(each.event_reasons or 0 for each in complete),
        unfilled=sum(not each.filled for each in found.samples),
        dropped_rounds=rounds.dropped,
        cooling_s=rounds.cooling_s,
        throttled=rounds.throttled,
        **asdict(beside),
        stop=rounds.stop,
        cache=job.measure.cache,
        clock=clock.name,
        warmup_s=job.measure.warmup_s,
        first_call_s=first_call_s,
    )


def _series(values: list[float | None]) -> tuple[float, ...]:
    """All values, or nothing where the card refuses one of them: a series has one entry a round."""
    known = tuple(value for value in values if value is not None)
    return known if len(known) == len(values) else ()


def clock_of(job: AnyJob, company: Company = ALONE) -> Clock:
    """The clock of the job's device and cache state; company takes the same steps."""
    cold = job.measure.cache == "cold"
    if job.device == "cuda":
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        return CudaClock(cold=cold, l2_bytes=l2_bytes, company=company)
    return CpuClock(cold=cold, company=company)


def watch_of(job: AnyJob, nvml: Nvml) -> Watch:
    """Of the GPU that the job runs on; of none on a CPU."""
    return Watch(nvml, nvml.cuda_index() if job.device == "cuda" else None)
