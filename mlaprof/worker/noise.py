"""A noise job: one step as several arms, twice as it is and behind spins, to learn what the clock makes of no change
and of a small one."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from mlaprof.facts import NoiseRounds
from mlaprof.machine.nvml import Nvml, Reading
from mlaprof.measure.clock import Clock, Step
from mlaprof.measure.rounds import Limits, Rounds, sample_rounds
from mlaprof.measure.spin import CpuSpin, CudaSpin, Spin
from mlaprof.records import Outcome
from mlaprof.worker.events import Event, failure, measurement, recover, started
from mlaprof.worker.gate import Gate
from mlaprof.worker.health import Watch, valid_at
from mlaprof.worker.rig import Rig, cells
from mlaprof.worker.timing import (
    ORDERS_APART,
    TIME_SHARE,
    Proven,
    capture,
    clock_of,
    incorrect,
    prove,
    rest,
    step_of,
    watch_of,
)

SLOWED = ("0.01", "0.02")  # shares of the step's device time that are added to it
PILOT_ROUNDS = 20  # of the step alone: how long it is


def noise_job(rig: Rig) -> Iterator[Event]:
    """Capture and prove every Point as a timing job does, then sample each by itself: its arms are the step, the step
    again, and the step behind a spin of each share of SLOWED."""
    job = rig.job
    clock = clock_of(job)
    prepared = yield from capture(rig)
    with Nvml() as nvml:
        watch = watch_of(job, nvml)
        for points in cells(job.points):
            gate = Gate(rig, points[0].num_tokens)
            ready = yield from prove(rig, gate, [prepared[each.key] for each in points if each.key in prepared], clock)
            for each in ready:
                yield started(job, each.arm.point, "measure")
                try:
                    event = _measured(rig, gate, each, clock, watch)
                except Exception as error:
                    yield failure(job, each.arm.point, "measure", error)
                    recover(job)
                    continue
                yield event


def _measured(rig: Rig, gate: Gate, proven: Proven, clock: Clock, watch: Watch) -> Event:
    job, point, step = rig.job, proven.arm.point, step_of(proven.arm)
    rest(rig, [proven])
    pilot = _sample(rig, {"step": step}, clock, watch, PILOT_ROUNDS)
    step_s = median(pilot.arms["step"].device_s)
    spin: Spin = CudaSpin() if job.device == "cuda" else CpuSpin()  # the device is awake by now
    added_s = {share: float(share) * step_s for share in SLOWED}
    slowed = {share: spin.behind(step, each_s) for share, each_s in added_s.items()}
    # The twin has a closure of its own, as the twin of a sweep has.
    arms = {"step": step, "twin": step_of(proven.arm), **slowed}
    rounds = _sample(rig, arms, clock, watch, job.measure.max_samples)
    verdict = gate.recheck(proven.arm, proven.verdict)
    if verdict.wrong:
        return incorrect(job, point, verdict, proven.graph)
    proof = {"checks": verdict.checks, "gate": verdict.facts, "graph": proven.graph}
    if pilot.throttled or rounds.throttled:
        reason = "throttled: the clocks stayed down, and no verdict rests on such rounds"
        return measurement(job, point, Outcome(status="failed", stage="measure", reason=reason), **proof)
    noise = NoiseRounds(
        device_s=rounds.arms["step"].device_s,
        twin_s=rounds.arms["twin"].device_s,
        slowed_s={share: rounds.arms[share].device_s for share in SLOWED},
        added_s={share: spin.measured_s(each_s) for share, each_s in added_s.items()},
    )
    return measurement(job, point, Outcome(status="ok"), noise=noise, **proof)


def _sample(rig: Rig, arms: dict[str, Step], clock: Clock, watch: Watch, rounds: int) -> Rounds[Reading]:
    """So many rounds whatever their spread, fewer only when time runs out."""
    job, spec = rig.job, rig.job.measure
    return sample_rounds(
        arms,
        clock,
        Limits(
            min_samples=rounds,
            max_samples=rounds,
            ci_half_width=spec.ci_half_width,
            time_s=min(spec.cell_time_s, TIME_SHARE * spec.limit_s("measure")),
            warmup_s=spec.warmup_s,
        ),
        seed=job.batch.seed + ORDERS_APART * job.process,
        reading=watch.reading,
        valid=valid_at(spec.min_clock_ratio),
        bursts=False,
    )
