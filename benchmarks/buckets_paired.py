"""Lists of capture sizes beside one another: each captured in a graph pool of its own, all in one process, their steps
in random order.

A process a list would tell lists apart by what the machine did meanwhile: one list's host-bound steps differed by 40 %
between two processes where the lists differ by 1 %. Here what slows a round slows all lists of it. They share weights,
caches and inputs, too: with copies of those at other addresses, one list captured twice differed by 0.8 % on the
device. A list that took too much memory stays captured, too: the driver would give the executables of a graph that is
gone to the next list, which would seem to take none. For the same reason a process measures one trace.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from mlaprof.facts import GraphFacts
from mlaprof.machine.nvml import Nvml
from mlaprof.measure.clock import Clock
from mlaprof.measure.clock import Step as Call
from mlaprof.measure.memory import CpuMeter, CudaMeter, weigh_capture
from mlaprof.measure.rounds import Limits, quiet_collector, sample_rounds
from mlaprof.records import Job
from mlaprof.worker.arms import Arm, build_arm
from mlaprof.worker.health import valid_at
from mlaprof.worker.prepare import Prepared, graph_facts
from mlaprof.worker.rig import Rig
from mlaprof.worker.timing import clock_of, step_of, watch_of

BURST_STEPS = 20


@dataclass(frozen=True)
class Step:
    """One token count under every list: entry i of a list's seconds is of the same round in all."""

    num_tokens: int
    padded: dict[str, int | None]  # tokens that the list's graph runs at; None: eager
    device_s: dict[str, tuple[float, ...]]  # empty where bursts were timed, as is submit_s
    submit_s: dict[str, tuple[float, ...]]
    sustained_s: dict[str, tuple[float, ...]]  # mean of a burst; empty where single steps were timed


@dataclass(frozen=True)
class Captured:
    """What a list took to capture."""

    sizes: tuple[int, ...]  # ascending; empty: eager
    pool_bytes: int
    driver_bytes: int  # graph executables, beyond the pool; 0 where the machine cannot tell
    capture_s: float  # capture, instantiation and first replay of all sizes

    @property
    def memory_bytes(self) -> int:
        return self.pool_bytes + self.driver_bytes


@dataclass(frozen=True)
class Beside:
    """Everything that was measured of lists beside one another."""

    steps: tuple[Step, ...]
    captured: dict[str, Captured]
    seconds: float  # wall time


def measure_beside(
    lists: Mapping[str, Sequence[Job]], within: Mapping[str, str], *, bursts: bool, rounds: int
) -> Beside:
    """Capture and time the jobs of several lists, which differ in capture.sizes or mode alone.

    lists    name -> jobs; the first is taken, and each further one where those before took too much memory
    within   name -> name of an earlier list, whose memory is the most that this one may take; where none of its jobs
             keeps to that, the last is taken
    bursts   time steps that follow one another, as a host feeds them, and not single ones by the device's clock

    Raises AssertionError where a list's step is not, bit for bit, what the layer computes eagerly from as many rows.
    """
    begin_s = perf_counter()
    first = next(iter(lists.values()))[0]
    every = sorted({size for jobs in lists.values() for job in jobs for size in job.capture.sizes or ()})
    rig = Rig(first.model_copy(update={"capture": first.capture.model_copy(update={"sizes": tuple(every)})}))
    _run_eagerly(rig, _arm(rig, first), every)
    print(f"  kernels loaded, {perf_counter() - begin_s:.0f} s", flush=True)
    arms: dict[str, Arm] = {}
    captured: dict[str, Captured] = {}
    too_large: list[Arm] = []
    for name, jobs in lists.items():
        most_bytes = captured[within[name]].memory_bytes if name in within else None
        arms[name], captured[name] = _first_within(rig, jobs, most_bytes, too_large)
    print(f"  {len(captured)} lists captured, {perf_counter() - begin_s:.0f} s", flush=True)
    clock, steps = clock_of(first), []
    with Nvml() as nvml:
        watch = watch_of(first, nvml)
        for point in first.points:
            ready = {
                name: arm.at(arm.point.model_copy(update={"num_tokens": point.num_tokens}))
                for name, arm in arms.items()
            }
            facts = {name: _proven(rig, arm) for name, arm in ready.items()}
            rig.load(point.num_tokens)
            rig.load_hidden(0, max(each.padded_tokens for each in facts.values()))  # an engine's padding holds numbers
            calls = {name: step_of(arm) for name, arm in ready.items()}
            padded = {name: each.padded_tokens if each.graph_launches else None for name, each in facts.items()}
            if bursts:
                sustained_s = _sustained(calls, clock, rounds, seed=point.num_tokens)
                steps.append(Step(point.num_tokens, padded, {}, {}, sustained_s))
            else:
                found = sample_rounds(
                    calls,
                    clock,
                    Limits(min_samples=rounds, max_samples=rounds, ci_half_width=1.0, warmup_s=first.measure.warmup_s),
                    seed=point.num_tokens,
                    reading=watch.reading,
                    valid=valid_at(first.measure.min_clock_ratio),
                    bursts=False,
                ).arms
                device_s = {name: found[name].device_s for name in lists}
                submit_s = {name: tuple(each.submit_s for each in found[name].samples) for name in lists}
                steps.append(Step(point.num_tokens, padded, device_s, submit_s, {}))
            print(f"  {point.num_tokens} tokens, {perf_counter() - begin_s:.0f} s", flush=True)
    return Beside(tuple(steps), captured, perf_counter() - begin_s)


def _arm(rig: Rig, job: Job) -> Arm:
    return build_arm(job, job.points[0], rig.stack, rig.buffers, rig.metadata, rig.group)


def _first_within(rig: Rig, jobs: Sequence[Job], most_bytes: int | None, too_large: list[Arm]) -> tuple[Arm, Captured]:
    """The first job whose list takes at most so much, or the last; those before it join too_large."""
    for job in jobs:
        arm = _arm(rig, job)
        captured = _captured(rig, arm, job)
        if most_bytes is None or captured.memory_bytes <= most_bytes or job is jobs[-1]:
            break
        print(f"  {len(captured.sizes)} sizes take {captured.memory_bytes} bytes, above {most_bytes}", flush=True)
        too_large.append(arm)
    return arm, captured


def _sustained(calls: Mapping[str, Call], clock: Clock, rounds: int, *, seed: int) -> dict[str, tuple[float, ...]]:
    """Seconds a step of a burst, a round an entry, in a fresh random order each round; one round warms up.

    A sweep's bursts are longer, and few: what the host does meanwhile hits one list and not the next.
    """
    order, shuffle = list(calls), random.Random(seed).shuffle
    found: dict[str, list[float]] = {name: [] for name in calls}
    with quiet_collector():
        for _ in range(1 + rounds):
            shuffle(order)
            for name in order:
                found[name].append(clock.burst(calls[name], BURST_STEPS).sustained_s)
    return {name: tuple(seconds[1:]) for name, seconds in found.items()}


def _run_eagerly(rig: Rig, arm: Arm, sizes: Sequence[int]) -> None:
    """Load every kernel: the first list captured would count them as its own."""
    for size in sizes:
        rig.load(size)
        with arm.context, rig.kept_caches():
            arm.stack(*rig.buffers.slice(size))


def _captured(rig: Rig, arm: Arm, job: Job) -> Captured:
    """Capture the job's list, largest first."""
    if arm.graphs is None:
        return Captured((), 0, 0, 0.0)
    sizes, seconds = tuple(sorted(job.capture.sizes or ())), 0.0
    with weigh_capture(CudaMeter() if rig.device.type == "cuda" else CpuMeter()) as weight:
        for size in reversed(sizes):
            rig.load(size)
            with arm.context:
                (facts,) = arm.runner.prepare([size])
            seconds += facts.capture_s + facts.instantiate_s + facts.first_replay_s
    return Captured(sizes, arm.graphs.pool_bytes(), weight.driver_bytes or 0, seconds)


def _proven(rig: Rig, arm: Arm) -> GraphFacts:
    """How the step runs, once it has given every bit of the eager step.

    The rows of padding are NaN meanwhile. Both are of as many rows: Op 1 of padded rows may round in another order.
    """
    num_tokens = arm.point.num_tokens
    rig.load(num_tokens)
    with arm.context, rig.kept_caches():
        rows = arm.runner.facts(num_tokens).num_tokens
        rig.spoil_padding(num_tokens, rows)
        output = arm.runner.run(num_tokens)[:num_tokens].clone()
        expected = arm.stack(*rig.buffers.slice(rows))[:num_tokens]
        assert torch.isfinite(expected).all() and torch.equal(output, expected), f"{arm.point.key}: not eager's bits"
    return graph_facts(Prepared(arm, prepare_s=None))
