"""The parent of a sweep: one worker process a job, one after another; a fault costs its own Point.

A worker is `python -m mlaprof.worker --fd N`. It reads its Job as JSON from stdin, and writes one line of
JSON to descriptor N for every stage it begins (records.Started) and every Measurement. Its stdout and stderr
are free text; their last 4 KiB go into the reason when it dies.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from mlaprof.machine.child import Child
from mlaprof.records import (
    AnyJob,
    AnyMeasurement,
    Event,
    Job,
    KernelMeasurement,
    KernelPoint,
    Measurement,
    Outcome,
    PlannedJob,
    Point,
    Stage,
    Started,
)
from mlaprof.wire import decode_event

# -P: a file named random.py in the user's folder must not shadow a module of the worker.
WORKER_COMMAND = (sys.executable, "-P", "-m", "mlaprof.worker")

EXIT_GRACE_S = 30.0  # from the end of its last line to the end of the worker; a CUDA context takes about 1 s to go


class Worker(Protocol):
    """A process that measures one Job. What sweep needs of machine.child.Child."""

    @property
    def tail(self) -> str: ...

    def next_line(self, limit_s: float) -> bytes | None: ...

    def wait(self, grace_s: float) -> str: ...

    def kill(self) -> None: ...


Spawn = Callable[[AnyJob], Worker]
Keep = Callable[[AnyMeasurement], None]
Pending = dict[str, Point | KernelPoint]


class Plan(Protocol):
    """What to measure: a plan.Plan or a kernel_plan.KernelPlan."""

    @property
    def jobs(self) -> Sequence[PlannedJob]: ...

    @property
    def skips(self) -> Sequence[AnyMeasurement]: ...


def spawn_worker(job: AnyJob, command: Sequence[str] = WORKER_COMMAND) -> Child:
    """Start a worker on job, which finds this very mlaprof, installed or not. Raises OSError."""
    variables = {"PYTHONFAULTHANDLER": "1"}  # a crash in native code leaves its Python stack in the tail
    root = Path(__file__).resolve().parents[1]
    if str(root) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        variables["PYTHONPATH"] = _import_path(root)
    return Child(command, job.model_dump_json().encode(), variables)


def sweep(plan: Plan, *, spawn: Spawn = spawn_worker, keep: Keep) -> Iterator[Event]:
    """Measure every job of plan in its own process; keep each Measurement before yielding it.

    Every Point of the plan ends as exactly one Measurement. When a worker dies, is silent for longer than
    point_timeout_s or writes what is no record, the Point in flight fails, and the rest of its job goes on in
    a fresh worker. Closing the iterator, or an exception such as KeyboardInterrupt, ends the worker's group.
    """
    for skip in plan.skips:
        keep(skip)
        yield skip
    for job in plan.jobs:
        yield from _run_job(job, spawn, keep)


def _run_job(job: PlannedJob, spawn: Spawn, keep: Keep) -> Iterator[Event]:
    pending: Pending = {point.key: point for point in job.points}
    while pending:
        before = len(pending)
        end = yield from _run_worker(job, pending, spawn, keep)
        if end.started is not None and end.started.key in pending:
            lost, stage = [end.started.key], end.started.stage
        elif len(pending) == before:
            # A worker that did nothing would do so again, so everything left fails, once.
            lost, stage = list(pending), "worker"
        else:
            continue
        for key in lost:
            failure = _failed(job, pending.pop(key), stage, end.reason)
            keep(failure)
            yield failure


@dataclass(frozen=True)
class _End:
    """How one worker ended."""

    started: Started | None  # the last stage it began
    reason: str  # first line the cause, then the tail of its output


def _run_worker(job: PlannedJob, pending: Pending, spawn: Spawn, keep: Keep) -> Generator[Event, None, _End]:
    """Let one worker measure pending, and take out of pending what it has measured."""
    started: Started | None = None
    cause = ""
    try:
        worker = spawn(job.model_copy(update={"points": tuple(pending.values())}))
    except OSError as error:
        return _End(None, f"the worker could not start: {error}")
    try:
        while not cause:
            try:
                line = worker.next_line(job.measure.point_timeout_s)
                event = None if line is None else _read(line, job, pending)
            except TimeoutError:
                cause = f"no sign of life for {job.measure.point_timeout_s:g} s, so the worker was killed"
                break
            except ValueError as error:
                cause = f"the worker wrote what is no record: {_first_line(error)}"
                break
            if event is None:
                cause = f"the worker ended too early: {worker.wait(EXIT_GRACE_S)}"
            elif isinstance(event, Started):
                started = event
                yield event
            else:
                del pending[event.point.key]
                keep(event)
                yield event
    finally:
        worker.kill()
    return _End(started, "\n".join(part for part in (cause, worker.tail) if part))


def _read(line: bytes, job: PlannedJob, pending: Pending) -> Event:
    """The event of one line. Raises ValueError on anything that is not about job."""
    event = decode_event(line)
    if event.kind != job.kind:
        raise ValueError(f"expected kind {job.kind}, got {event.kind}")
    if isinstance(event, Started):
        if not any(point.key == event.key for point in job.points):
            raise ValueError(f"expected a Point of the job, got {event.key}")
    elif event.process != job.process:
        raise ValueError(f"expected process {job.process}, got {event.process}")
    elif pending.get(event.point.key) != event.point:
        raise ValueError(f"expected a Point not measured yet, got {event.point.key}")
    return event


def _failed(job: PlannedJob, point: Point | KernelPoint, stage: Stage, reason: str) -> AnyMeasurement:
    record = Measurement if isinstance(job, Job) else KernelMeasurement
    return record.model_validate(
        {
            "point": point,
            "kind": job.kind,
            "process": job.process,
            "outcome": Outcome(status="failed", stage=stage, reason=reason),
            "emulated": job.device == "cpu",
            "recorded_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _import_path(root: Path) -> str:
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(root), inherited] if inherited else [str(root)])
