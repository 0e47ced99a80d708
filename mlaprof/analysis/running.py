"""What a sweep knows of its cells while it runs: medians over the processes so far, a verdict, and the time left.

A cell's rounds are not looked into while they are taken, since that would disturb them: a cell is told of anew when one
of its processes is done. Verdicts are over the cell's baseline and as they stand, not adjusted over all cells;
`compare` and `show` have the last word.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from mlaprof.analysis.arms import Arm, arm_of, speedup
from mlaprof.analysis.floor import LEAST_FLOOR, TWIN
from mlaprof.analysis.stats import Estimate
from mlaprof.analysis.verdicts import MIN_SAMPLES, Verdict, verdict
from mlaprof.records import Kind, Measurement
from mlaprof.study import BASELINE

THRESHOLD = 0.01  # smallest change that counts, or the difference of the cell's A/A twin where that is larger
KINDS: tuple[Kind, ...] = get_args(Kind)
Work = tuple[Kind, str, int]  # kind, key and process of a Measurement


@dataclass(frozen=True)
class RunningCell:
    """One key as it stands. Seconds.

    speedup   of device time over the baseline of its cell: above 1 is faster; None of the baseline itself, and until
              that is timed
    left_s    until everything planned of this key is measured; None until a first measurement tells how long one takes
    """

    key: str
    emulated: bool
    processes: int  # whose timings are in
    planned: int  # processes that time it
    device_s: Estimate | None = None
    submit_s: Estimate | None = None
    speedup: Estimate | None = None
    verdict: Verdict | None = None
    left_s: float | None = None


class Running:
    """Takes the measurements of a plan as they come.

    planned   every (kind, key, process) to come, in run order
    known     what a resumed run holds already
    begin_s   the clock's reading at the start, by which `take` is told the time, too
    """

    def __init__(self, planned: Sequence[Work], *, known: Iterable[Measurement] = (), begin_s: float) -> None:
        self._left = {work: place for place, work in enumerate(dict.fromkeys(planned))}
        self._is_left = np.ones(len(self._left), dtype=bool)  # by place
        self._kinds = np.array([KINDS.index(kind) for kind, _, _ in self._left], dtype=np.int8)
        self._places: dict[str, list[int]] = {}
        for (_, key, _), place in self._left.items():
            self._places.setdefault(key, []).append(place)
        self._last_s = begin_s
        self._spent_s: dict[Kind, float] = {}
        self._done: dict[Kind, int] = {}
        self._timings: dict[str, dict[int, Measurement]] = {}
        self._processes: dict[str, set[int]] = {}
        for kind, key, process in planned:
            if kind == "timing":
                self._processes.setdefault(key, set()).add(process)
        for each in known:
            self._keep(each)

    @property
    def left_s(self) -> float | None:
        """Until the last measurement; None until a first one tells how long one takes."""
        return self._seconds(len(self._kinds))

    def take(self, measurement: Measurement, now_s: float) -> RunningCell:
        """Count the measurement in; what is known of its key now."""
        planned_skip = measurement.outcome.status == "skipped" and measurement.outcome.stage == "plan"
        if not planned_skip:  # which took no time
            kind = measurement.kind
            self._spent_s[kind] = self._spent_s.get(kind, 0.0) + now_s - self._last_s
            self._done[kind] = self._done.get(kind, 0) + 1
            self._last_s = now_s
        place = self._left.pop((measurement.kind, measurement.point.key, measurement.process), None)
        if place is not None:
            self._is_left[place] = False
        self._keep(measurement)
        return self._cell(measurement)

    def _keep(self, measurement: Measurement) -> None:
        if measurement.kind == "timing":
            key, process = measurement.point.key, measurement.process
            self._timings.setdefault(key, {})[process] = measurement
            self._processes.setdefault(key, set()).add(process)

    def _cell(self, measurement: Measurement) -> RunningCell:
        point = measurement.point
        key, timings = point.key, self._timings.get(point.key, {})
        arm, base = self._arm(key), f"{point.cell}/{BASELINE}"
        faster = speedup(self._arm(base), arm) if arm and key != base else None
        return RunningCell(
            key=key,
            emulated=measurement.emulated,
            processes=len(timings),
            planned=len(self._processes.get(key, ())),
            device_s=arm.device_s if arm else None,
            submit_s=arm.submit_s if arm else None,
            speedup=faster,
            verdict=_verdict(list(timings.values()), faster, self._limit(base)),
            left_s=self._seconds(self._up_to_the_last_of(key)),
        )

    def _arm(self, key: str) -> Arm | None:
        timings = self._timings.get(key)
        return arm_of(key, timings) if timings else None

    def _limit(self, base: str) -> float:
        twin = speedup(self._arm(base), self._arm(f"{base}{TWIN}"))
        return max(THRESHOLD, LEAST_FLOOR, math.expm1(abs(math.log(twin.median))) if twin else 0.0)

    def _up_to_the_last_of(self, key: str) -> int:
        return max((place + 1 for place in self._places.get(key, ()) if self._is_left[place]), default=0)

    def _seconds(self, end: int) -> float | None:
        """How long the work left before place `end` takes if each kind goes on as it did; of a kind not seen
        yet, as all did together."""
        if not self._done:
            return None
        mean_s = sum(self._spent_s.values()) / sum(self._done.values())
        left = np.bincount(self._kinds[:end][self._is_left[:end]], minlength=len(KINDS)).tolist()
        done = {kind: self._spent_s[kind] / count for kind, count in self._done.items()}
        return float(sum(count * done.get(kind, mean_s) for kind, count in zip(KINDS, left, strict=True)))


def _verdict(timings: Sequence[Measurement], faster: Estimate | None, limit: float) -> Verdict | None:
    """How the key stands: wrong and failed beat every time, a throttled one tells nothing."""
    statuses = {each.outcome.status for each in timings}
    if "incorrect" in statuses:
        return "INCORRECT"
    if "failed" in statuses:
        return "FAILED"
    if faster is None:
        return None
    if any(each.timing and each.timing.throttled for each in timings):
        return "THROTTLED"
    if faster.n < MIN_SAMPLES:
        return "AMBIGUOUS"
    return verdict(Estimate(1 / faster.median, 1 / faster.ci_high, 1 / faster.ci_low, faster.n), limit)
