"""What `doctor --noise` runs: one small layer, in two modes, in many fresh processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlaprof.plan import Plan
from mlaprof.records import Device, Job, Point
from mlaprof.shapes import PRESETS
from mlaprof.study import BatchSpec, LayerSpec, MeasureSpec, Mode

MODES: tuple[Mode, ...] = ("monolithic_eager", "full")  # the most and the least work for the host
LEAST_ROUNDS, MOST_ROUNDS = 6, 5000  # of fewer a median has no 95 % interval
CELL_TIME_S = 120.0  # no interval ends these rounds, only their number


@dataclass(frozen=True)
class Subject:
    """What is timed on a device, and how often by default: minutes, most of them the start of the processes."""

    preset: str
    num_tokens: int
    processes: int
    rounds: int
    cache: Literal["cold", "warm"] = "cold"  # the default of a study


SUBJECTS: dict[Device, Subject] = {
    # A step of 0.7 ms: long enough that 1 % of it is several times the cost of a kernel.
    "cuda": Subject("v3.2-tp8", num_tokens=64, processes=12, rounds=60),
    "cpu": Subject("tiny", num_tokens=8, processes=6, rounds=60, cache="warm"),
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
    points = tuple(
        Point(preset=subject.preset, phase="prefill", num_tokens=subject.num_tokens, context_len=0, mode=mode)
        for mode in MODES
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
