"""Clocks: what one call of a step costs the device and the host, alone and in a row.

Measured facts (H100 80GB HBM3, torch 2.11, driver 580.159, 2026-11-23)

- The queue must be full before the start event. A 30-kernel eager step that needs 802 us to submit reads
  1016 us with no delay before it, 525 us behind 0.5 ms, 153.8 us behind 2.5 ms and 153.6 us behind 10 ms: the
  delay has to exceed the submit time about threefold. The same step as a graph reads 133 us at every delay.
- 1e7 cycles of `torch.cuda._sleep` last 5.09 ms.
- Cold L2: 124.2 us with no flush, 128.4 behind 25 MiB, 131.6 behind 50 MiB and unchanged up to 400 MiB: one
  L2 (50 MiB) saturates. Twice the L2 is written, for room on parts where nobody has looked.
- The host is slow: `torch.add` costs 12.9 us a call, replaying the 30-kernel graph 20.5 us.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns, thread_time_ns
from typing import Literal, Protocol

import torch

from mlaprof.measure.company import ALONE, Company

Step = Callable[[], object]
ClockName = Literal["cuda_event", "perf_counter"]

ROOM = 3.0  # delay over submit time; from the first measured fact
MAX_DELAY_S = 1.0  # bounds the wait for a step that needs a third of a second to submit
BURST_STEPS, BURST_S = 50, 0.05  # at least, each: what is submitted before the device is busy must not count
CPU_BURST_STEPS, CPU_BURST_S = 3, 0.005  # nothing overlaps in the emulation
FALLBACK_CACHE_BYTES = 64 * 2**20  # last-level cache of a CPU that does not tell


@dataclass(frozen=True)
class Sample:
    """Seconds of one step: alone on the device, and what its submission took the host."""

    device_s: float
    submit_s: float
    submit_cpu_s: float  # what of submit_s the calling thread was on a CPU
    latency_s: float
    filled: bool = True  # the whole step was queued before the device reached it


@dataclass(frozen=True)
class Burst:
    """Seconds a step of many back to back, and seconds of one on the device behind them, its data as warm."""

    sustained_s: float
    warm_device_s: float


class Clock(Protocol):
    """Times one call at a time. The device is idle when a method returns."""

    @property
    def name(self) -> ClockName: ...

    def sample(self, step: Step) -> Sample:
        """One step by every clock that takes a step alone."""
        ...

    def burst(self, step: Step, steps: int) -> Burst:
        """`steps` steps back to back, no wait between them."""
        ...

    def burst_steps(self, step_s: float) -> int:
        """How many steps of about step_s make a burst."""
        ...

    def settle(self) -> None:
        """Wait until the device has done everything that was submitted."""
        ...


class CudaClock:
    """Device time by CUDA events behind a pre-filled queue; host times around submission and around the whole step.

    A sample is two calls on the current stream, each behind a flush of the L2 when cold. The first is alone: wait for
    the flush, host clock, step, synchronise, host clock; that is latency_s. The second finds the device busy: spin it
    for a bounded time, start event, step, stop event, synchronise. The spin lasts delay_s or three times the submit
    time of the same step's last sample, whichever is longer, so that the device finds the whole step queued and no
    launch gap is counted. When the start event has already fired at the end of the submission the spin was too short,
    and the second call is made again behind a longer one. A step that outlasts the longer spin too is waiting for the
    device itself (it synchronises, or has more launches than the device queues): it is then timed without a spin, as
    it runs in service, gaps and waits included, and the sample is not `filled`.

    A burst is host clock, steps, synchronise, host clock, and then one more step timed as the second call above, with
    nothing flushed.

    cold      write twice l2_bytes before each call of a sample, so that nothing of the step's data is in the L2
    l2_bytes  the device's L2 size; unused when not cold
    delay_s   shortest spin
    company   who takes the same steps. They meet before the host's clock begins, and the devices line up behind the
              spin, before the start event: who comes late is not timed as communication. A spin too short for one is
              taken again by all

    Raises ValueError on l2_bytes < 1 with cold, or delay_s outside (0, 1].
    """

    name: ClockName = "cuda_event"

    def __init__(self, *, cold: bool, l2_bytes: int, delay_s: float = 0.005, company: Company = ALONE) -> None:
        if cold and l2_bytes < 1:
            raise ValueError(f"l2_bytes: expected a positive size for a cold clock, got {l2_bytes}")
        if not 0.0 < delay_s <= MAX_DELAY_S:
            raise ValueError(f"delay_s: expected 0 < delay_s <= {MAX_DELAY_S}, got {delay_s}")
        self._scratch = torch.empty(2 * l2_bytes, dtype=torch.uint8, device="cuda") if cold else None
        self._delay_s = delay_s
        self._company = company
        # By identity of the step, without holding it: a reused number costs one retake, a held step memory.
        self._last_submit_s: dict[int, float] = {}
        self._start = torch.cuda.Event(enable_timing=True)
        self._stop = torch.cuda.Event(enable_timing=True)
        self._cycles_per_s = self._calibrate()

    def sample(self, step: Step) -> Sample:
        latency_s = self._latency_s(step)
        queued = self._queued(step, flush=True)
        return Sample(queued.device_s, queued.submit_s, queued.submit_cpu_s, latency_s, queued.filled)

    def burst(self, step: Step, steps: int) -> Burst:
        torch.cuda.synchronize()
        self._company.meet()
        begin_ns = perf_counter_ns()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        sustained_s = (perf_counter_ns() - begin_ns) * 1e-9 / steps
        return Burst(sustained_s, self._queued(step, flush=False).device_s)

    def burst_steps(self, step_s: float) -> int:
        return max(BURST_STEPS, math.ceil(BURST_S / step_s)) if step_s > 0 else BURST_STEPS

    def settle(self) -> None:
        torch.cuda.synchronize()

    def _latency_s(self, step: Step) -> float:
        self._flush()
        torch.cuda.synchronize()  # or the flush would hide the first launch
        self._company.meet()
        begin_ns = perf_counter_ns()
        step()
        torch.cuda.synchronize()
        return (perf_counter_ns() - begin_ns) * 1e-9

    def _queued(self, step: Step, *, flush: bool) -> _Queued:
        delay_s = max(self._delay_s, ROOM * self._last_submit_s.get(id(step), 0.0))
        found = self._attempt(step, delay_s, flush)
        if not found.filled:
            # Four times as long also covers a spin that ran short because the SM clock rose.
            found = self._attempt(step, max(4.0 * delay_s, ROOM * found.submit_s), flush)
        if not found.filled:
            found = self._attempt(step, 0.0, flush)
        if found.device_s < 0.0:
            raise RuntimeError(f"CUDA events ran backwards ({found.device_s} s); seen under Confidential Computing")
        self._last_submit_s[id(step)] = found.submit_s
        return found

    def _attempt(self, step: Step, delay_s: float, flush: bool) -> _Queued:
        self._company.meet()
        if flush:
            self._flush()
        if delay_s > 0.0:
            torch.cuda._sleep(int(min(delay_s, MAX_DELAY_S) * self._cycles_per_s))
        else:
            torch.cuda.synchronize()  # or the flush would hide the first launch
        self._company.line_up()
        self._start.record()
        begin_cpu_ns = thread_time_ns()
        begin_ns = perf_counter_ns()
        step()
        end_ns = perf_counter_ns()
        end_cpu_ns = thread_time_ns()
        self._stop.record()
        filled = delay_s > 0.0 and not self._start.query()
        torch.cuda.synchronize()
        return _Queued(
            self._start.elapsed_time(self._stop) * 1e-3,
            (end_ns - begin_ns) * 1e-9,
            (end_cpu_ns - begin_cpu_ns) * 1e-9,
            not self._company.any(not filled),
        )

    def _flush(self) -> None:
        if self._scratch is not None:
            self._scratch.zero_()

    def _calibrate(self) -> float:
        """Spin cycles a second, after two spins that wake the clocks of an idle device."""
        cycles = 10_000_000
        for _ in range(3):
            self._start.record()
            torch.cuda._sleep(cycles)
            self._stop.record()
            torch.cuda.synchronize()
        return cycles / (float(self._start.elapsed_time(self._stop)) * 1e-3)


@dataclass(frozen=True)
class _Queued:
    """One call behind a spin; filled: the device was still spinning when all of it was queued."""

    device_s: float
    submit_s: float
    submit_cpu_s: float
    filled: bool


class CpuClock:
    """Wall time of the call. No device apart from the host: device, submit and latency are one, an emulated figure.

    cold     write a buffer larger than the last-level cache before each sample
    company  who takes the same steps; they meet before each sample and burst
    """

    name: ClockName = "perf_counter"

    def __init__(self, *, cold: bool, company: Company = ALONE) -> None:
        self._company = company
        size = last_level_cache_bytes() * 5 // 4
        self._scratch = torch.empty(size, dtype=torch.uint8) if cold else None

    def sample(self, step: Step) -> Sample:
        if self._scratch is not None:
            self._scratch.fill_(1)
        self._company.meet()
        begin_cpu_ns = thread_time_ns()
        begin_ns = perf_counter_ns()
        step()
        elapsed_s = (perf_counter_ns() - begin_ns) * 1e-9
        return Sample(elapsed_s, elapsed_s, (thread_time_ns() - begin_cpu_ns) * 1e-9, elapsed_s)

    def burst(self, step: Step, steps: int) -> Burst:
        self._company.meet()
        begin_ns = perf_counter_ns()
        for _ in range(steps):
            step()
        middle_ns = perf_counter_ns()
        step()
        return Burst((middle_ns - begin_ns) * 1e-9 / steps, (perf_counter_ns() - middle_ns) * 1e-9)

    def burst_steps(self, step_s: float) -> int:
        return max(CPU_BURST_STEPS, math.ceil(CPU_BURST_S / step_s)) if step_s > 0 else CPU_BURST_STEPS

    def settle(self) -> None:
        """Nothing to wait for: a CPU step has ended when it returns."""


def last_level_cache_bytes(cpu: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Size of the largest cache that cpu0 sees, by Linux's account; 64 MiB where there is none."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = [path.read_text().strip() for path in cpu.glob("index*/size")]
    found = [int(size[:-1]) * units[size[-1]] for size in sizes if size[:-1].isdigit() and size[-1] in units]
    return max(found, default=FALLBACK_CACHE_BYTES)
