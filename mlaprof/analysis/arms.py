"""The timings of an arm that may be shown, and by how much one is faster than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal
from zlib import crc32

from mlaprof.analysis.stats import BLOCK, Estimate, hierarchical, paired, quotient
from mlaprof.facts import Timing
from mlaprof.records import AnyMeasurement

Clock = Literal["device_s", "submit_s", "sustained_s"]


@dataclass(frozen=True, eq=False)
class Arm:
    """The timings of one key that may be shown, by process, and the estimates of its times, made once for every use.

    Of one process the rounds count as independent; of several, blocks of them are resampled.
    """

    key: str
    timings: Mapping[int, Timing]

    @cached_property
    def device_s(self) -> Estimate:
        found = self._estimate("device_s", self.key)
        assert found is not None  # arm_of sees to it
        return found

    @cached_property
    def submit_s(self) -> Estimate | None:
        return self._estimate("submit_s", f"submit {self.key}")

    @cached_property
    def sustained_s(self) -> Estimate | None:
        return self._estimate("sustained_s", f"sustained_s {self.key}")

    def rounds(self, clock: Clock) -> dict[int, tuple[float, ...]]:
        """The samples of a clock by process."""
        return {process: getattr(timing, clock) for process, timing in self.timings.items()}

    def estimate(self, series: Literal["latency_s", "warm_device_s"]) -> Estimate | None:
        """The median of a series that enters no ratio, over the processes that have it; None where none does."""
        return self._estimate(series, f"{series} {self.key}")

    def _estimate(self, series: str, name: str) -> Estimate | None:
        every: list[Sequence[float]] = [getattr(timing, series) for timing in self.timings.values()]
        processes = [samples for samples in every if samples]
        if not processes:
            return None
        return hierarchical(processes, seed=crc32(name.encode()), block=BLOCK if len(processes) > 1 else 1).estimate


def arm_of(key: str, timings: Mapping[int, AnyMeasurement]) -> Arm | None:
    """The Arm of the timings of a key by process; None where one of them may not be shown, or none has a sample.

    A process without samples adds nothing.
    """
    if not all(each.outcome.usable for each in timings.values()):
        return None
    found = {process: each.timing for process, each in timings.items() if each.timing and each.timing.device_s}
    return Arm(key, found) if found else None


def speedup(slower: Arm | None, arm: Arm | None, clock: Clock = "device_s") -> Estimate | None:
    """slower / arm by one of the clocks: above 1 where `arm` is faster. None where the two cannot be compared.

    Where both have the same rounds in the same processes, exp of the median over the rounds of log(slower / arm);
    elsewhere the quotient of their medians.
    """
    if slower is None or arm is None or not _comparable(slower, arm):
        return None
    before, after = slower.rounds(clock), arm.rounds(clock)
    every = [*before.values(), *after.values()]
    if not all(every) or min(map(min, every)) <= 0:
        return None
    if slower is arm:
        return Estimate(1.0, 1.0, 1.0, sum(map(len, before.values())))
    if {process: len(each) for process, each in before.items()} == {
        process: len(each) for process, each in after.items()
    }:
        seed = crc32(f"{clock} {slower.key} {arm.key}".encode())
        return paired(list(after.values()), list(before.values()), seed=seed).estimate
    return _quotient(getattr(arm, clock), getattr(slower, clock))


def service_speedup(slower: Arm | None, arm: Arm | None) -> Estimate | None:
    """slower / arm by what a step takes in service: sustained times where both have them, elsewhere the longer of
    submit and device time of each, as `speedup` where that is one clock. None where the two cannot be compared."""
    if slower is None or arm is None or not _comparable(slower, arm):
        return None
    if slower.sustained_s and arm.sustained_s:
        return speedup(slower, arm, "sustained_s")
    before, after = _longer(slower), _longer(arm)
    if before == after:
        return speedup(slower, arm, before)
    return _quotient(getattr(arm, after), getattr(slower, before))


def _quotient(base: Estimate, new: Estimate) -> Estimate | None:
    """None of times that the clock cannot tell from none."""
    return quotient(base, new) if min(base.ci_low, new.ci_low) > 0 else None


def _longer(arm: Arm) -> Literal["device_s", "submit_s"]:
    return "submit_s" if arm.submit_s and arm.submit_s.median > arm.device_s.median else "device_s"


def _comparable(one: Arm, other: Arm) -> bool:
    (clocks, caches) = (
        {getattr(timing, name) for arm in (one, other) for timing in arm.timings.values()}
        for name in ("clock", "cache")
    )
    return len(clocks) == len(caches) == 1
