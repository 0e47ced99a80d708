"""A sweep as lines of JSON for other programs: one object an event, as it happens. docs/events.md is the contract.

Written to a file of its own, so stdout and stderr stay what they are. A reader that leaves, or a disk that is full,
costs the events and never the measurement.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Literal, Self, TextIO

from mlaprof.analysis.running import RunningCell
from mlaprof.analysis.stats import Estimate
from mlaprof.analysis.verdicts import Verdict
from mlaprof.errors import ConfigError
from mlaprof.facts import Record
from mlaprof.records import AnyMeasurement, Device, Event, Kind, Manifest, Stage, Started, Status, work

EVENTS_VERSION = 1  # raised when a field goes, or changes its meaning; a new field or event does not raise it


class Line(Record):
    """What every line begins with."""

    v: int = EVENTS_VERSION
    at: str  # UTC, ISO 8601


class Began(Line):
    event: Literal["began"] = "began"
    run_id: str
    path: str  # the run file
    mlaprof_version: str
    device: Device
    emulated: bool
    total: int  # measurements to come


class StageBegan(Line):
    event: Literal["stage"] = "stage"
    kind: Kind
    key: str
    stage: Stage


class Interval(Record):
    """A median with its 95 % interval."""

    median: float
    ci_low: float
    ci_high: float
    n: int


class Measured(Line):
    event: Literal["measured"] = "measured"
    kind: Kind
    key: str
    process: int
    status: Status
    stage: Stage
    reason: str
    emulated: bool
    process_device_s: float | None  # the median of this process alone
    done: int  # measurements of `total`, this one included
    total: int
    processes: int | None  # that timed the key so far, of processes_planned
    processes_planned: int | None
    device_s: Interval | None  # over these processes, as submit_s and speedup
    submit_s: Interval | None
    speedup: Interval | None
    verdict: Verdict | None
    left_s: float | None  # until the key is done


class Ended(Line):
    event: Literal["ended"] = "ended"
    how: Literal["finished", "interrupted", "broken"]
    run_id: str
    done: int
    total: int
    statuses: dict[str, int]  # status -> measurements


class EventLog:
    """An open file of events, and a context manager that ends it. Without a path nothing is written.

    Raises ConfigError where the path cannot be opened, or holds something else.
    """

    def __init__(self, path: Path | None) -> None:
        self.trouble = ""  # why writing stopped, if it did
        self._file: TextIO | None = _opened(path) if path else None
        self._statuses: dict[str, Status] = {}  # by work: after a lost host one may be told of again
        self._run_id, self._total = "", 0

    def begin(self, manifest: Manifest, path: Path, total: int) -> None:
        self._run_id, self._total = manifest.run_id, total
        self._write(
            Began(
                at=_now(),
                run_id=manifest.run_id,
                path=str(path),
                mlaprof_version=manifest.mlaprof_version,
                device=manifest.device,
                emulated=manifest.device == "cpu",
                total=total,
            )
        )

    def tell(self, event: Event, cell: RunningCell | None = None) -> None:
        """An event of the sweep; cell: what is known of its key now."""
        if isinstance(event, Started):
            self._write(StageBegan(at=_now(), kind=event.kind, key=event.key, stage=event.stage))
            return
        self._statuses[work(event.kind, event.point.key, event.process)] = event.outcome.status
        self._write(_measured(event, cell, len(self._statuses), self._total))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        how: Literal["finished", "interrupted", "broken"] = "finished"
        if error is not None:
            how = "interrupted" if isinstance(error, KeyboardInterrupt) else "broken"
        done = len(self._statuses)
        statuses: dict[str, int] = dict(Counter(self._statuses.values()))
        self._write(Ended(at=_now(), how=how, run_id=self._run_id, done=done, total=self._total, statuses=statuses))
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _write(self, line: Line) -> None:
        if self._file is None or self.trouble:
            return
        try:
            self._file.write(line.model_dump_json() + "\n")
        except OSError as error:
            self.trouble = f"events are not written any more: {error.strerror}"


def _measured(event: AnyMeasurement, cell: RunningCell | None, done: int, total: int) -> Measured:
    timing = event.timing
    return Measured(
        at=_now(),
        kind=event.kind,
        key=event.point.key,
        process=event.process,
        status=event.outcome.status,
        stage=event.outcome.stage,
        reason=event.outcome.reason,
        emulated=event.emulated,
        process_device_s=median(timing.device_s) if timing and timing.device_s and event.outcome.usable else None,
        done=done,
        total=total,
        processes=cell.processes if cell else None,
        processes_planned=cell.planned if cell else None,
        device_s=_interval(cell.device_s) if cell else None,
        submit_s=_interval(cell.submit_s) if cell else None,
        speedup=_interval(cell.speedup) if cell else None,
        verdict=cell.verdict if cell else None,
        left_s=cell.left_s if cell else None,
    )


def _interval(estimate: Estimate | None) -> Interval | None:
    if estimate is None:
        return None
    return Interval(median=estimate.median, ci_low=estimate.ci_low, ci_high=estimate.ci_high, n=estimate.n)


def _opened(path: Path) -> TextIO:
    """Append to path, a line at a time."""
    try:
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as there:
                if there.read(1) != b"{":
                    raise ConfigError("holds something else", where=str(path), hint="name another with --json-events")
        return path.open("a", buffering=1, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror}", where=str(path), hint="name another with --json-events"
        ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
