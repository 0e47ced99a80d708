"""The order of samples: rounds of all arms, how many are enough, and which do not count.

Measured facts (H100 80GB HBM3, torch 2.11, driver 580.159, 2026-11-23)

- One step timed twice in one process, 20 rounds, 3 modes, 8 sizes, 5 processes: medians differ by 0.24 % in 95 of 100
  pairs when interleaved in random order, by 0.45 % (1.2 % at most) when one window follows the other.
- Warm-up: behind 0.2 s or 1 s of steps back to back the first samples are 0.9 % slower than those 40 rounds later.
  Behind 0.2 s of samples, flush and spin included, they are not (0.3 % at most): it is the load that must be the same.
- Rounds are alike with their neighbours alone: signs about the median correlate by 0.1 one round apart, by 0 further.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter, sleep
from typing import Generic, Literal, TypeVar

from mlaprof.measure.clock import Burst, Clock, Sample, Step
from mlaprof.measure.company import ALONE, Company

R = TypeVar("R")
Stop = Literal["interval", "samples", "time"]

WARMUP_CALLS = 3  # at least, an arm: lazy set-up inside torch and Triton ends with the first or second
BURST_EVERY = 10  # rounds; a burst is as long as dozens of samples
LEAST_HALF_WIDTH_S = 0.25e-6  # half the resolution of a CUDA event: nothing narrower is asked of a median
FIRST_PAUSE_S, PAUSE_GROWTH, LONGEST_PAUSE_S = 0.05, 1.5, 0.5  # before a void round is measured again
MAX_COOLING_S = 10.0  # of all pauses of one cell
MAX_VOID = 0.25  # of its rounds


@dataclass(frozen=True)
class Limits:
    """When the rounds of a cell end.

    min_samples    rounds at least; max_samples rounds at most
    ci_half_width  relative; once the 95 % interval of every arm's median device time is this narrow, they end
    time_s         wall time of warm-up and rounds; may leave fewer rounds than min_samples, never none
    warmup_s       wall time of the warm-up at least: samples of all arms in rotation, three rotations or more

    Raises ValueError on bounds that contradict each other.
    """

    min_samples: int
    max_samples: int
    ci_half_width: float
    time_s: float = math.inf
    warmup_s: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_samples <= self.max_samples:
            got = f"{self.min_samples} and {self.max_samples}"
            raise ValueError(f"samples: expected 1 <= min_samples <= max_samples, got {got}")


@dataclass(frozen=True)
class ArmSamples(Generic[R]):
    """What one arm gave: entry i of samples and readings is of the same round in every arm, of bursts likewise."""

    samples: tuple[Sample, ...]
    readings: tuple[R | None, ...]
    bursts: tuple[Burst, ...]
    burst_steps: int  # 0 without a burst

    @property
    def device_s(self) -> tuple[float, ...]:
        return tuple(each.device_s for each in self.samples)


@dataclass(frozen=True)
class Rounds(Generic[R]):
    """All rounds of a cell."""

    arms: dict[str, ArmSamples[R]]
    stop: Stop  # the intervals are narrow enough, or samples or time ran out
    dropped: int  # void rounds that were measured again
    cooling_s: float  # pauses before those
    throttled: bool  # pausing did not help: rounds are void and kept since


@dataclass
class _Series(Generic[R]):
    samples: list[Sample] = field(default_factory=list)
    readings: list[R | None] = field(default_factory=list)
    bursts: list[Burst] = field(default_factory=list)
    burst_steps: int = 0

    def frozen(self) -> ArmSamples[R]:
        return ArmSamples(tuple(self.samples), tuple(self.readings), tuple(self.bursts), self.burst_steps)


def _unmarked(name: str) -> None:
    pass


def _always(warm: Sequence[object], found: Sequence[object]) -> bool:
    return True


def sample_rounds(
    arms: Mapping[str, Step],
    clock: Clock,
    limits: Limits,
    *,
    seed: int,
    reading: Callable[[], R | None],
    valid: Callable[[Sequence[R | None], Sequence[R | None]], bool] = _always,
    bursts: bool = True,
    begin: Callable[[str], None] = _unmarked,
    company: Company = ALONE,
    now: Callable[[], float] = perf_counter,
    pause: Callable[[float], None] = sleep,
) -> Rounds[R]:
    """Sample all arms interleaved: in each round every arm once, in a fresh random order.

    arms     name -> step; the steps to compare, all ready to run
    seed     of the orders
    reading  asked after each rotation of the warm-up and after each sample, with the device idle, for what belongs
             beside it (clocks, power)
    valid    told the readings of the warm-up's second half and of one round; where it says no, the round is dropped
             and measured again behind a pause that grows. Once a quarter of the rounds was void, or the pauses sum to
             10 s, rounds are kept as they are
    bursts   every tenth round, the first among them, each arm also runs a burst, in a random order
    begin    told the name of each arm before its step runs, outside of what is timed
    company  who takes the same steps in the same order, with the same seed and limits: they also end together

    Raises ValueError on no arms, and whatever a step raises. The garbage collector is off meanwhile and back in its
    former state afterwards.
    """
    if not arms:
        raise ValueError("arms: expected at least one, got none")
    order = list(arms)
    shuffle = random.Random(seed).shuffle
    series: dict[str, _Series[R]] = {name: _Series() for name in arms}
    end_s = now() + limits.time_s
    done = dropped = 0
    cooling_s, pause_s = 0.0, FIRST_PAUSE_S
    throttled = False
    stop: Stop | None = None
    with quiet_collector():
        warm = _warm_up(arms, clock, limits.warmup_s, reading, begin, company, now, end_s)
        while stop is None:
            shuffle(order)
            found: dict[str, tuple[Sample, R | None]] = {}
            for name in order:
                begin(name)
                found[name] = clock.sample(arms[name]), reading()
            if not throttled and company.any(not valid(warm, [beside for _, beside in found.values()])):
                dropped += 1
                most = MAX_VOID * max(limits.min_samples, done + dropped)
                throttled = dropped > most or cooling_s >= MAX_COOLING_S or company.any(now() > end_s)
                if not throttled:
                    pause(pause_s)
                    cooling_s, pause_s = cooling_s + pause_s, min(PAUSE_GROWTH * pause_s, LONGEST_PAUSE_S)
                    continue
                dropped -= 1  # this one is kept
            pause_s = FIRST_PAUSE_S
            for name, (sample, beside) in found.items():
                series[name].samples.append(sample)
                series[name].readings.append(beside)
            if bursts and done % BURST_EVERY == 0:
                shuffle(order)
                for name in order:
                    begin(name)
                    _add_burst(series[name], arms[name], clock, company)
            done += 1
            stop = _stop(series.values(), limits, done, company, late=company.any(now() > end_s))
    return Rounds({name: each.frozen() for name, each in series.items()}, stop, dropped, cooling_s, throttled)


def half_width_s(samples: Sequence[float]) -> float:
    """Half the 95 % interval of the median of `samples`, between order statistics; all of their range below nine."""
    ordered = sorted(samples)
    rank = max(0, math.floor(len(ordered) / 2 - 0.98 * math.sqrt(len(ordered))) - 1)
    return (ordered[-1 - rank] - ordered[rank]) / 2


def _add_burst(series: _Series[R], step: Step, clock: Clock, company: Company) -> None:
    if not series.burst_steps:
        step_s = company.most(max(series.samples[0].device_s, series.samples[0].submit_s))
        series.burst_steps = clock.burst_steps(step_s)
    series.bursts.append(clock.burst(step, series.burst_steps))


def _stop(every: Collection[_Series[R]], limits: Limits, done: int, company: Company, *, late: bool) -> Stop | None:
    """Why the rounds end here, or None."""
    if late:
        return "time"
    if done < limits.min_samples:
        return None
    if not company.any(not all(_narrow(series.samples, limits.ci_half_width) for series in every)):
        return "interval"
    return "samples" if done >= limits.max_samples else None


def _narrow(samples: Sequence[Sample], ci_half_width: float) -> bool:
    times_s = [each.device_s for each in samples]
    return half_width_s(times_s) <= max(ci_half_width * median(times_s), LEAST_HALF_WIDTH_S)


def _warm_up(
    arms: Mapping[str, Step],
    clock: Clock,
    warmup_s: float,
    reading: Callable[[], R | None],
    begin: Callable[[str], None],
    company: Company,
    now: Callable[[], float],
    end_s: float,
) -> list[R | None]:
    """All arms in rotation at the load of the rounds, none on a cool chip; the readings of the second half."""
    begin_s = now()
    readings: list[R | None] = []
    while len(readings) < WARMUP_CALLS or company.any(now() - begin_s < warmup_s):
        for name, step in arms.items():
            begin(name)
            clock.sample(step)
        readings.append(reading())
        if company.any(now() > end_s):
            break
    return readings[len(readings) // 2 :]


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
