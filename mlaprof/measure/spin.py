"""A spin behind a step: device time of a known length, to learn whether a change of that size is found."""

from __future__ import annotations

from statistics import median
from time import perf_counter_ns
from typing import Protocol

import torch

from mlaprof.measure.clock import Step

SPINS = 64  # in one bracket: the events' own resolution is spread over them
BRACKETS = 5  # the median of so many counts
SHORT_CYCLES, LONG_CYCLES = 20_000, 200_000  # about 10 and 100 us: what is asked for lies around them
DELAY_CYCLES = 10_000_000  # before a bracket, about 5 ms: its spins are queued meanwhile


class Spin(Protocol):
    """Adds a known time to a step."""

    def behind(self, step: Step, added_s: float) -> Step:
        """step, and then the device busy for added_s. Raises ValueError where it cannot be that short."""
        ...

    def measured_s(self, added_s: float) -> float:
        """How long the spin of `behind` takes by itself, measured anew."""
        ...


class CudaSpin:
    """A kernel that counts clock cycles, on the current stream.

    Calibrated by many spins between two events behind a pre-filled queue: time = fixed_s + cycles * s_per_cycle. A
    kernel has a cost of its own, about a microsecond, so least_s is the shortest spin. Cycles are of the SM clock, as
    the step's are: where the clock falls, spin and step grow alike.

    Construct it with the device awake. Raises RuntimeError where the host cannot queue a bracket in time.
    """

    def __init__(self) -> None:
        self._start = torch.cuda.Event(enable_timing=True)
        self._stop = torch.cuda.Event(enable_timing=True)
        short_s, long_s = self._spin_s(SHORT_CYCLES), self._spin_s(LONG_CYCLES)
        self.s_per_cycle = (long_s - short_s) / (LONG_CYCLES - SHORT_CYCLES)
        self.fixed_s = short_s - SHORT_CYCLES * self.s_per_cycle
        # Launches have a pace of their own, which the shortest spins cannot beat.
        self.least_s = self._spin_s(0)

    def behind(self, step: Step, added_s: float) -> Step:
        cycles = self._cycles(added_s)

        def slowed() -> object:
            result = step()
            torch.cuda._sleep(cycles)
            return result

        return slowed

    def measured_s(self, added_s: float) -> float:
        return self._spin_s(self._cycles(added_s))

    def _cycles(self, added_s: float) -> int:
        if added_s < self.least_s:
            raise ValueError(f"added_s: expected at least {self.least_s:.3g}, the cost of a kernel, got {added_s:.3g}")
        return round(max(0.0, added_s - self.fixed_s) / self.s_per_cycle)

    def _spin_s(self, cycles: int) -> float:
        """Seconds of one spin, by brackets of many; the first bracket wakes the clocks and does not count."""
        return median([self._bracket_s(cycles) for _ in range(BRACKETS + 1)][1:]) / SPINS

    def _bracket_s(self, cycles: int) -> float:
        for room in (1, 4, 16):
            torch.cuda._sleep(room * DELAY_CYCLES)
            self._start.record()
            for _ in range(SPINS):
                torch.cuda._sleep(cycles)
            self._stop.record()
            filled = not self._start.query()
            torch.cuda.synchronize()
            if filled:
                return float(self._start.elapsed_time(self._stop)) * 1e-3
        raise RuntimeError(f"{SPINS} spins could not be queued within {16 * DELAY_CYCLES} cycles")


class CpuSpin:
    """A loop that watches the clock: on a CPU the host is the device."""

    def behind(self, step: Step, added_s: float) -> Step:
        spin = _busy(added_s)

        def slowed() -> object:
            result = step()
            spin()
            return result

        return slowed

    def measured_s(self, added_s: float) -> float:
        spin, spent_ns = _busy(added_s), []
        for _ in range(SPINS):
            begin_ns = perf_counter_ns()
            spin()
            spent_ns.append(perf_counter_ns() - begin_ns)
        return median(spent_ns) * 1e-9


def _busy(added_s: float) -> Step:
    if added_s <= 0:
        raise ValueError(f"added_s: expected a positive time, got {added_s}")
    added_ns = round(added_s * 1e9)

    def spin() -> None:
        end_ns = perf_counter_ns() + added_ns
        while perf_counter_ns() < end_ns:
            pass

    return spin
