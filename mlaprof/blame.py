"""When a worker is gone: which Points its fault is laid on, and which are not tried again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlaprof.faults import ENDS_THE_WORKER, Fault
from mlaprof.records import AnyMeasurement, Job, KernelPoint, Outcome, PlannedJob, Point, Stage, Started

OFFENCES = 2  # after so many faults that ended a worker, whatever the job, a key is left alone
# Nobody can tell the kernel's out-of-memory killer from another sender of SIGKILL.
_MAY_BE_MEMORY: tuple[Fault, ...] = ("device_oom", "host_oom", "killed")

Pending = dict[str, Point | KernelPoint]


@dataclass(frozen=True)
class End:
    """How one worker ended."""

    started: Started | None  # the last stage it began
    mark: str  # key of the Point at work inside a stage that Points share; "" where that is started's
    fault: Fault
    reason: str  # first line the cause, then the tail of its output


@dataclass(frozen=True)
class Blame:
    """Keys of the Points that a fault costs, and the stage it struck in; no keys: it cost nobody anything."""

    keys: tuple[str, ...]
    stage: Stage = "worker"


def blamed(job: PlannedJob, pending: Pending, end: End, *, idle: bool, built: bool) -> Blame:
    """Whom of pending the end of a worker is laid on; the others are for a fresh worker.

    idle    this worker and the one before it came to nothing: the next would do as little
    built   no worker of this job has died while it built the layer, which all Points of a Job share
    """
    started = end.started
    if started is None or started.key not in pending:
        # Before the first Point and between two nobody is to blame, unless no worker ever comes to one.
        return Blame(tuple(pending) if idle else ())
    if started.stage != "build":
        key = end.mark if end.mark in pending else started.key
        return Blame((key,), started.stage)
    # The layer is as large as its first cell: without that one the others may fit. What breaks it twice for another
    # reason will do so again.
    cell = tuple(key for key, point in pending.items() if point.cell == pending[started.key].cell)
    hopeless = isinstance(job, Job) and not built and end.fault not in _MAY_BE_MEMORY
    return Blame(tuple(pending) if hopeless else cell, "build")


class Offences:
    """How often each key ended a worker, in one sweep: by its Measurements, whoever made them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._last: dict[str, Outcome] = {}

    def note(self, measurement: AnyMeasurement) -> None:
        outcome, key = measurement.outcome, measurement.point.key
        if outcome.status == "failed" and outcome.fault in ENDS_THE_WORKER and outcome.stage != "worker":
            self._counts[key] += 1
            self._last[key] = outcome

    def among(self, keys: Iterable[str]) -> Mapping[str, Outcome]:
        """Those that are left alone, with the outcome that this gives them."""
        return {key: self._quarantined(key) for key in keys if self._counts[key] >= OFFENCES}

    def _quarantined(self, key: str) -> Outcome:
        last = self._last[key]
        reason = f"not tried: it ended a worker {self._counts[key]} times, at last by {last.fault} at {last.stage}"
        return Outcome(status="failed", stage="plan", reason=f"{reason}; --resume tries it again", fault="quarantined")
