"""Lists of capture sizes beside one another: each captured in a graph pool of its own, all in one process, their steps
in random order.

A process a list would tell lists apart by what the machine did meanwhile: one list's host-bound steps differed by 40 %
between two processes where the lists differ by 1 %. Here what slows a round slows all lists of it. They share weights,
caches and inputs, too: with copies of those at other addresses, one list captured twice differed by 0.8 % on the
device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter

import torch

from mlaprof.facts import GraphFacts
from mlaprof.machine.nvml import Nvml
from mlaprof.measure.rounds import Limits, sample_rounds
from mlaprof.records import Job
from mlaprof.worker.arms import Arm, build_arm
from mlaprof.worker.health import valid_at
from mlaprof.worker.prepare import Prepared, graph_facts
from mlaprof.worker.rig import Rig
from mlaprof.worker.timing import clock_of, step_of, watch_of


@dataclass(frozen=True)
class Step:
    """One token count under every list: entry i of a list's seconds is of the same round in all."""

    num_tokens: int
    padded: dict[str, int | None]  # tokens that the list's graph runs at; None: eager
    device_s: dict[str, tuple[float, ...]]
    submit_s: dict[str, tuple[float, ...]]
    sustained_s: dict[str, tuple[float, ...]]  # of bursts, fewer than rounds; empty without


@dataclass(frozen=True)
class Captured:
    """What a list took to capture."""

    pool_bytes: int
    capture_s: float  # capture, instantiation and first replay of all sizes


@dataclass(frozen=True)
class Beside:
    """Everything that was measured of lists beside one another."""

    steps: tuple[Step, ...]
    captured: dict[str, Captured]
    seconds: float  # wall time


def measure_beside(jobs: Mapping[str, Job], *, bursts: bool, rounds: int) -> Beside:
    """Capture and time the jobs of several lists, which differ in capture.sizes or mode alone.

    Raises AssertionError where a list's step is not, bit for bit, what the layer computes eagerly from as many rows.
    """
    begin_s = perf_counter()
    first = next(iter(jobs.values()))
    every = sorted({size for job in jobs.values() for size in job.capture.sizes or ()})
    rig = Rig(first.model_copy(update={"capture": first.capture.model_copy(update={"sizes": tuple(every)})}))
    arms = {name: _arm(rig, job) for name, job in jobs.items()}
    captured = {name: _captured(rig, arm, jobs[name]) for name, arm in arms.items()}
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
            found = sample_rounds(
                {name: step_of(arm) for name, arm in ready.items()},
                clock,
                Limits(min_samples=rounds, max_samples=rounds, ci_half_width=1.0, warmup_s=first.measure.warmup_s),
                seed=point.num_tokens,
                reading=watch.reading,
                valid=valid_at(first.measure.min_clock_ratio),
                bursts=bursts,
            ).arms
            steps.append(
                Step(
                    point.num_tokens,
                    {name: each.padded_tokens if each.graph_launches else None for name, each in facts.items()},
                    {name: found[name].device_s for name in jobs},
                    {name: tuple(each.submit_s for each in found[name].samples) for name in jobs},
                    {name: tuple(each.sustained_s for each in found[name].bursts) for name in jobs},
                )
            )
            print(f"  {point.num_tokens} tokens, {perf_counter() - begin_s:.0f} s", flush=True)
    return Beside(tuple(steps), captured, perf_counter() - begin_s)


def _arm(rig: Rig, job: Job) -> Arm:
    return build_arm(job, job.points[0], rig.stack, rig.buffers, rig.metadata, rig.group)


def _captured(rig: Rig, arm: Arm, job: Job) -> Captured:
    """Capture the job's list, largest first."""
    if arm.graphs is None:
        return Captured(0, 0.0)
    seconds = 0.0
    for size in sorted(job.capture.sizes or (), reverse=True):
        rig.load(size)
        with arm.context:
            (facts,) = arm.runner.prepare([size])
        seconds += facts.capture_s + facts.instantiate_s + facts.first_replay_s
    rig.settle()
    return Captured(arm.graphs.pool_bytes(), seconds)


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
