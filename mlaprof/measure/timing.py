"""Clocks and the order of samples: what one call of a step costs the device and the host.

Measured facts (H100 80GB HBM3, torch 2.11, driver 580.159, 2026-11-23)

- The queue must be full before the start event. A 30-kernel eager step that needs 802 us to submit reads
  1016 us with no delay before it, 525 us behind 0.5 ms, 153.8 us behind 2.5 ms and 153.6 us behind 10 ms: the
  delay has to exceed the submit time about threefold. The same step as a graph reads 133 us at every delay.
- 1e7 cycles of `torch.cuda._sleep` last 5.09 ms.
- Cold L2: 124.2 us with no flush, 128.4 behind 25 MiB, 131.6 behind 50 MiB and unchanged up to 400 MiB: one
  L2 (50 MiB) saturates. Twice the L2 is written, for room on parts where nobody has looked.
- Order: sequential windows of one and the same graph drift from 130.1 to 131.9 us (1.4 %). Interleaved in
  random order the ratio of medians is 0.99988, and the paired log-ratio has a standard deviation of 0.38 %.
- The host is slow: `torch.add` costs 12.9 us a call, replaying the 30-kernel graph 20.5 us.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Generic, Literal, Protocol, TypeVar

import torch

Step = Callable[[], object]
ClockName = Literal["cuda_event", "perf_counter"]
R = TypeVar("R")

WARMUP_CALLS = 3  # at least, an arm: lazy set-up inside torch and Triton ends with the first or second
ROOM = 3.0  # delay over submit time; from the first measured fact
MAX_DELAY_S = 1.0  # bounds the wait for a step that needs a third of a second to submit
FALLBACK_CACHE_BYTES = 64 * 2**20  # last-level cache of a CPU that does not tell


class Clock(Protocol):
    """Times one call at a time."""

    @property
    def name(self) -> ClockName: ...

    unfilled: int
    """Samples so far whose step the device reached before all of it was queued."""

    def sample(self, step: Step) -> tuple[float, float]:
        """(device_s, submit_s) of one call of step; the device is idle when this returns."""
        ...

    def settle(self) -> None:
        """Wait until the device has done everything that was submitted."""
        ...


class CudaClock:
    """Device time by CUDA events behind a pre-filled queue; host time of the submission alone.

    A sample, on the current stream: flush the L2 when cold, spin the device for a bounded time, start event,
    step, stop event, synchronise. The spin lasts delay_s or three times the submit time of the same step's
    last sample, whichever is longer, so that the device finds the whole step queued and no launch gap is
    counted. When the start event has already fired at the end of the submission the spin was too short, and
    the sample is taken again behind a longer one. A step that outlasts the longer spin too is waiting for the
    device itself (it synchronises, or has more launches than the device queues): it is then timed without a
    spin, as it runs in service, gaps and waits included, and `unfilled` grows by one.

    cold      write twice l2_bytes before each sample, so that nothing of the step's data is in the L2
    l2_bytes  the device's L2 size; unused when not cold
    delay_s   shortest spin

    Raises ValueError on l2_bytes < 1 with cold, or delay_s outside (0, 1].
    """

    name: ClockName = "cuda_event"

    def __init__(self, *, cold: bool, l2_bytes: int, delay_s: float = 0.005) -> None:
        if cold and l2_bytes < 1:
            raise ValueError(f"l2_bytes: expected a positive size for a cold clock, got {l2_bytes}")
        if not 0.0 < delay_s <= MAX_DELAY_S:
            raise ValueError(f"delay_s: expected 0 < delay_s <= {MAX_DELAY_S}, got {delay_s}")
        self.unfilled = 0  # samples that could not be pre-filled; compare before and after one to learn of which arm
        self._scratch = torch.empty(2 * l2_bytes, dtype=torch.uint8, device="cuda") if cold else None
        self._delay_s = delay_s
        # By identity of the step, without holding it: a reused number costs one retake, a held step memory.
        self._last_submit_s: dict[int, float] = {}
        self._start = torch.cuda.Event(enable_timing=True)
        self._stop = torch.cuda.Event(enable_timing=True)
        self._cycles_per_s = self._calibrate()

    def sample(self, step: Step) -> tuple[float, float]:
        delay_s = max(self._delay_s, ROOM * self._last_submit_s.get(id(step), 0.0))
        device_s, submit_s, filled = self._attempt(step, delay_s)
        if not filled:
            # Four times as long also covers a spin that ran short because the SM clock rose.
            device_s, submit_s, filled = self._attempt(step, max(4.0 * delay_s, ROOM * submit_s))
        if not filled:
            self.unfilled += 1
            device_s, submit_s, _ = self._attempt(step, 0.0)
        if device_s < 0.0:
            raise RuntimeError(f"CUDA events ran backwards ({device_s} s); seen under Confidential Computing")
        self._last_submit_s[id(step)] = submit_s
        return device_s, submit_s

    def settle(self) -> None:
        torch.cuda.synchronize()

    def _attempt(self, step: Step, delay_s: float) -> tuple[float, float, bool]:
        """(device_s, submit_s, whether the whole step was queued before the device reached it)."""
        if self._scratch is not None:
            self._scratch.zero_()
        if delay_s > 0.0:
            torch.cuda._sleep(int(min(delay_s, MAX_DELAY_S) * self._cycles_per_s))
        else:
            torch.cuda.synchronize()  # or the flush would hide the first launch
        self._start.record()
        begin_ns = perf_counter_ns()
        step()
        end_ns = perf_counter_ns()
        self._stop.record()
        filled = not self._start.query()
        torch.cuda.synchronize()
        return self._start.elapsed_time(self._stop) * 1e-3, (end_ns - begin_ns) * 1e-9, filled

    def _calibrate(self) -> float:
        """Spin cycles a second, after two spins that wake the clocks of an idle device."""
        cycles = 10_000_000
        for _ in range(3):
            self._start.record()
            torch.cuda._sleep(cycles)
            self._stop.record()
            torch.cuda.synchronize()
        return cycles / (float(self._start.elapsed_time(self._stop)) * 1e-3)


class CpuClock:
    """Wall time of the call. No device apart from the host: device_s == submit_s, an emulated figure.

    cold  write a buffer larger than the last-level cache before each sample
    """

    name: ClockName = "perf_counter"

    def __init__(self, *, cold: bool) -> None:
        size = last_level_cache_bytes() * 5 // 4
        self.unfilled = 0  # there is no queue to fill
        self._scratch = torch.empty(size, dtype=torch.uint8) if cold else None

    def sample(self, step: Step) -> tuple[float, float]:
        if self._scratch is not None:
            self._scratch.fill_(1)
        begin_ns = perf_counter_ns()
        step()
        elapsed_s = (perf_counter_ns() - begin_ns) * 1e-9
        return elapsed_s, elapsed_s

    def settle(self) -> None:
        """Nothing to wait for: a CPU step has ended when it returns."""


def last_level_cache_bytes(cpu: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Size of the largest cache that cpu0 sees, by Linux's account; 64 MiB where there is none."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    sizes = [path.read_text().strip() for path in cpu.glob("index*/size")]
    found = [int(size[:-1]) * units[size[-1]] for size in sizes if size[:-1].isdigit() and size[-1] in units]
    return max(found, default=FALLBACK_CACHE_BYTES)


@dataclass(frozen=True)
class ArmSamples(Generic[R]):
    """Raw samples of one arm, one entry a round in each series; entry i of every arm is of the same round."""

    device_s: tuple[float, ...]
    submit_s: tuple[float, ...]
    readings: tuple[R | None, ...]


@dataclass
class _Series(Generic[R]):
    device_s: list[float] = field(default_factory=list)
    submit_s: list[float] = field(default_factory=list)
    readings: list[R | None] = field(default_factory=list)

    def frozen(self) -> ArmSamples[R]:
        return ArmSamples(tuple(self.device_s), tuple(self.submit_s), tuple(self.readings))


def _never() -> bool:
    return False


def sample_rounds(
    arms: Mapping[str, Step],
    clock: Clock,
    *,
    min_samples: int,
    max_samples: int,
    min_time_s: float,
    warmup_s: float,
    reading: Callable[[], R | None],
    seed: int,
    exhausted: Callable[[], bool] = _never,
) -> dict[str, ArmSamples[R]]:
    """Sample all arms interleaved: in each round every arm once, in a fresh random order.

    arms         name -> step; the steps to compare, all ready to run
    min_samples  rounds at least; max_samples rounds at most
    min_time_s   device time that every arm must have accumulated before the rounds end
    warmup_s     wall time of the warm-up at least: all arms in rotation, three rotations or more
    reading      asked after each sample, with the device idle, for what belongs beside it (clocks, power)
    seed         of the orders
    exhausted    asked after each rotation and round; True ends the warm-up, or the rounds, at once. There is
                 always one round, so it may leave fewer samples than min_samples, never none

    Raises ValueError on no arms or bounds that contradict each other, and whatever a step raises. The garbage
    collector is off meanwhile and back in its former state afterwards.
    """
    if not arms:
        raise ValueError("arms: expected at least one, got none")
    if not 1 <= min_samples <= max_samples:
        raise ValueError(f"samples: expected 1 <= min_samples <= max_samples, got {min_samples} and {max_samples}")
    order = list(arms)
    shuffle = random.Random(seed).shuffle
    series: dict[str, _Series[R]] = {name: _Series() for name in arms}
    with quiet_collector():
        _warm_up(arms, clock, warmup_s, exhausted)
        for done in range(1, max_samples + 1):
            shuffle(order)
            for name in order:
                device_s, submit_s = clock.sample(arms[name])
                series[name].device_s.append(device_s)
                series[name].submit_s.append(submit_s)
                series[name].readings.append(reading())
            if exhausted():
                break
            if done >= min_samples and all(sum(each.device_s) >= min_time_s for each in series.values()):
                break
    return {name: each.frozen() for name, each in series.items()}


def _warm_up(arms: Mapping[str, Step], clock: Clock, warmup_s: float, exhausted: Callable[[], bool]) -> None:
    """All arms in rotation, so that none enjoys the cool chip."""
    begin_s = perf_counter()
    rotations = 0
    while rotations < WARMUP_CALLS or perf_counter() - begin_s < warmup_s:
        for step in arms.values():
            step()
        clock.settle()  # each rotation, or the queue would outrun the wall clock
        rotations += 1
        if exhausted():
            return


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Collect garbage once, then keep the collector off until the block ends, by an exception too."""
    was_enabled = gc.isenabled()
    had_frozen = gc.get_freeze_count() > 0
    gc.collect()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        if not had_frozen:  # unfreeze knows no difference between our objects and those frozen before
            gc.unfreeze()
        if was_enabled:
            gc.enable()
