"""What `doctor --noise` runs: a few steps of one layer, in many fresh processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlaprof.plan import Plan
from mlaprof.records import Device, Job, Point
from mlaprof.shapes import PRESETS
from mlaprof.study import BatchSpec, LayerSpec, MeasureSpec, Mode

LEAST_ROUNDS, MOST_ROUNDS = 6, 5000  # of fewer a median has no 95 % interval
CELL_TIME_S = 120.0  # no interval ends these rounds, only their number


@dataclass(frozen=True)
class Subject:
    """What is timed on a device, and how often by default: minutes, many of them the start of the processes."""

    preset: str
    eager: tuple[int, ...]  # token counts of monolithic_eager, the most work for the host, and of full, the least
    full: tuple[int, ...]
    processes: int
    rounds: int
    cache: Literal["cold", "warm"] = "cold"  # the default of a study


SUBJECTS: dict[Device, Subject] = {
    # Steps of 0.6 to 0.9 ms: long enough that 1 % of them is several times the cost of a kernel. The host needs 6 ms
    # for an eager one, and its samples three times that; a grid of several cells tells how processes differ.
    "cuda": Subject("v3.2-tp8", eager=(64,), full=(256, 128, 64, 16), processes=12, rounds=40),
    "cpu": Subject("tiny", eager=(8,), full=(16, 8), processes=6, rounds=60, cache="warm"),
}


def noise_plan(device: Device, *, processes: int | None = None, rounds: int | None = None) -> Plan:
    """One noise job a process, all of the same Points; by default as SUBJECTS has it.

    Raises ValueError on processes < 1 or rounds outside LEAST_ROUNDS to MOST_ROUNDS.
    """
    subject = SUBJECTS[device]
    processes = subject.processes if processes is None else processes
    rounds = subject.rounds if rounds is None else rounds
    if processes < 1:
        raise ValueError(f"processes: expected at least 1, got {processes}")
    if not LEAST_ROUNDS <= rounds <= MOST_ROUNDS:
        raise ValueError(f"rounds: expected {LEAST_ROUNDS} to {MOST_ROUNDS}, got {rounds}")
    sizes: dict[Mode, tuple[int, ...]] = {"monolithic_eager": subject.eager, "full": subject.full}
    points = tuple(
        Point(preset=subject.preset, phase="prefill", num_tokens=num_tokens, context_len=0, mode=mode)
        for mode, every in sizes.items()
        for num_tokens in every
    )
    measure = MeasureSpec(
        cache=subject.cache, processes=processes, min_samples=rounds, max_samples=rounds, cell_time_s=CELL_TIME_S
    )
    jobs = (
        Job(
            kind="noise",
            process=process,
            device=device,
            layer=LayerSpec(preset=subject.preset, shape=PRESETS[subject.preset]),
            batch=BatchSpec(),
            measure=measure,
            points=points,
        )
        for process in range(processes)
    )
    return Plan(jobs=tuple(jobs), skips=())
