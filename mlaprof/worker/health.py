"""What stood beside the samples: whether a round counts, and who else was on the GPU and on the worker's CPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TypeVar

from mlaprof.facts import CONTENDED
from mlaprof.machine.cpus import allowed, listed, run_queue_s
from mlaprof.machine.nvml import THROTTLE_REASONS, Nvml, Reading
from mlaprof.measure.company import ALONE, Company
from mlaprof.worker.events import NvmlGone

NOTHING = Reading(sm_clock_hz=None, mem_clock_hz=None, power_w=None, temperature_c=None, event_reasons=None)


S = TypeVar("S")


@dataclass(frozen=True)
class Beside:
    """Where the rounds of a cell were taken, and what else was there meanwhile: the fields of Timing."""

    other_processes: int = 0
    gpu: str = ""
    cpus: str = ""
    cpu_wait: float | None = None

    @property
    def contended(self) -> bool:
        return self.cpu_wait is not None and self.cpu_wait > CONTENDED


class Watch:
    """Reads the GPU that the worker uses; on a machine without NVML, and on a CPU, every reading is None.

    index  NVML's of that GPU, or None
    """

    def __init__(self, nvml: Nvml, index: int | None) -> None:
        self._nvml = nvml
        self._index = index
        self._told = self._silent = False  # whether any reading told something, and the last one nothing

    def reading(self) -> Reading | None:
        if self._index is None:
            return None
        found = self._nvml.reading(self._index)
        self._silent = found == NOTHING
        self._told = self._told or not self._silent
        return found

    def require_present(self) -> None:
        """Raises NvmlGone where NVML told something of this GPU, and nothing any more."""
        if self._told and self._silent:
            raise NvmlGone("NVML does not answer any more: the clocks and the heat beside the last samples are unknown")

    def over(self, sample: Callable[[], S]) -> tuple[S, Beside]:
        """What sample answers, and what stood beside it."""
        others, waited_s, begin_s = self.other_processes(), run_queue_s(), perf_counter()
        sampled = sample()
        took_s, waiting_s = perf_counter() - begin_s, run_queue_s()
        return sampled, Beside(
            other_processes=max(others, self.other_processes()),
            gpu="" if self._index is None else self._nvml.uuid(self._index),
            cpus=listed(allowed()),
            cpu_wait=None if waited_s is None or waiting_s is None else (waiting_s - waited_s) / took_s,
        )

    def other_processes(self) -> int:
        """Processes with a context on the GPU beside this one, which NVML may list under another namespace's number."""
        return 0 if self._index is None else max(0, len(self._nvml.compute_pids(self._index)) - 1)


def valid_at(min_clock_ratio: float) -> Callable[[Sequence[Reading | None], Sequence[Reading | None]], bool]:
    """The rule for `sample_rounds`: a round is void where the GPU held its clock down against heat or a fault in any
    arm, or where an arm's SM clock is below this share of the warm chip's. A power cap voids nothing: it is a regime.
    """

    def valid(warm: Sequence[Reading | None], found: Sequence[Reading | None]) -> bool:
        readings = [each for each in found if each is not None]
        if any((each.event_reasons or 0) & THROTTLE_REASONS for each in readings):
            return False
        usual = [each.sm_clock_hz for each in warm if each is not None and each.sm_clock_hz]
        clocks = [each.sm_clock_hz for each in readings if each.sm_clock_hz]
        return not usual or not clocks or min(clocks) >= min_clock_ratio * median(usual)

    return valid


def undisturbed(sample: Callable[[], tuple[S, Beside]], company: Company = ALONE) -> tuple[S, Beside]:
    """What sample answers; where the CPUs of any of company were contended it is asked once more, and the quieter
    answer counts: of all of them the same one."""
    first = sample()
    if not company.any(first[1].contended):
        return first
    again = sample()
    calmer = company.most(again[1].cpu_wait or 0.0) < company.most(first[1].cpu_wait or 0.0)
    return again if calmer else first
