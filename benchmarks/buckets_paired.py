"""Lists of capture sizes beside one another: each captured in a graph pool of its own, all in one process, their steps
in random order.

A process a list would tell lists apart by what the machine did meanwhile: one list's host-bound steps differed by 40 %
between two processes where the lists differ by 1 %. Here what slows a round slows all lists of it.
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
from mlaprof.worker.arms import Arm
from mlaprof.worker.health import valid_at
from mlaprof.worker.prepare import Prepared, graph_facts, prepare
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
    rigs = {name: Rig(job) for name, job in jobs.items()}
    arms: dict[str, dict[int, Arm]] = {}
    captured: dict[str, Captured] = {}
    for name, rig in rigs.items():
        arms[name] = {point.num_tokens: prepare(rig, point).arm for point in rig.job.points}
        captured[name] = _captured(rig, next(iter(arms[name].values())))
    first = next(iter(jobs.values()))
    clock, steps = clock_of(first), []
    with Nvml() as nvml:
        watch = watch_of(first, nvml)
        for point in first.points:
            ready = {name: arms[name][point.num_tokens] for name in jobs}
            facts = {name: _proven(rigs[name], arm) for name, arm in ready.items()}
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


def _captured(rig: Rig, arm: Arm) -> Captured:
    if arm.graphs is None:
        return Captured(0, 0.0)
    facts = [arm.runner.facts(size) for size in rig.capture_sizes(arm.point)]
    seconds = sum(each.capture_s + each.instantiate_s + each.first_replay_s for each in facts)
    return Captured(arm.graphs.pool_bytes(), seconds)


def _proven(rig: Rig, arm: Arm) -> GraphFacts:
    """How the step runs, once it has given every bit of the eager step; the batch of the step stays in place.

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
        rig.load(num_tokens)
        rig.load_hidden(0, rows)  # an engine's padding rows hold numbers
    return graph_facts(Prepared(arm, prepare_s=None))
