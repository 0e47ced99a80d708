"""The parent of a sweep: one worker process a job, one after another; a fault costs its own Point.

A worker is `python -m mlaprof.worker --fd N --mark M`. It reads its Job as JSON from stdin, and writes one line of
JSON to descriptor N for every stage it begins (records.Started) and every Measurement. In a stage that several Points
share it leaves in the file of descriptor M whose turn it is. Its stdout and stderr are free text; their last 4 KiB go
into the reason when it dies.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from mlaprof.blame import End, Offences, Pending, blamed
from mlaprof.faults import Fault, fault_of_end
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

    @property
    def mark(self) -> str: ...

    def next_line(self, limit_s: float) -> bytes | None: ...

    def wait(self, grace_s: float) -> str: ...

    def kill(self) -> None: ...


Spawn = Callable[[AnyJob], Worker]
Keep = Callable[[AnyMeasurement], None]


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

    Every Point of the plan ends as exactly one Measurement. When a worker dies, is silent for longer than the limit
    of its stage or writes what is no record, the Point at work fails, and the rest of its job goes on in a fresh
    worker. A Point that ended two workers, of whatever jobs, is not tried again. Closing the iterator, or an exception
    such as KeyboardInterrupt, ends the worker and all that it started.
    """
    offences = Offences()
    for skip in plan.skips:
        keep(skip)
        yield skip
    for job in plan.jobs:
        yield from _run_job(job, spawn, keep, offences)


def _run_job(job: PlannedJob, spawn: Spawn, keep: Keep, offences: Offences) -> Iterator[Event]:
    pending: Pending = {point.key: point for point in job.points}
    for key, outcome in offences.among(pending).items():
        yield _kept(_failed(job, pending.pop(key), outcome), keep, offences)
    built = True
    idle = 0  # workers in a row that measured nothing
    while pending:
        before = len(pending)
        end = yield from _run_worker(job, pending, spawn, keep, offences)
        idle = idle + 1 if len(pending) == before else 0
        blame = blamed(job, pending, end, idle=idle > 1, built=built)
        built = built and blame.stage != "build"
        for key in blame.keys:
            outcome = Outcome(status="failed", stage=blame.stage, reason=end.reason, fault=end.fault)
            yield _kept(_failed(job, pending.pop(key), outcome), keep, offences)


def _kept(measurement: AnyMeasurement, keep: Keep, offences: Offences) -> AnyMeasurement:
    keep(measurement)
    offences.note(measurement)
    return measurement


def _run_worker(
    job: PlannedJob, pending: Pending, spawn: Spawn, keep: Keep, offences: Offences
) -> Generator[Event, None, End]:
    """Let one worker measure pending, and take out of pending what it has measured."""
    started: Started | None = None
    fault: Fault = ""
    cause = ""
    try:
        worker = spawn(job.model_copy(update={"points": tuple(pending.values())}))
    except OSError as error:
        return End(None, "", "not_started", f"the worker could not start: {error}")
    try:
        while not cause:
            limit_s = job.measure.limit_s(started.stage if started else "worker")
            try:
                line = worker.next_line(limit_s)
                event = None if line is None else _read(line, job, pending)
            except TimeoutError:
                fault, cause = "timeout", f"no sign of life for {limit_s:g} s, so the worker was killed"
                break
            except ValueError as error:
                fault, cause = "rubbish", f"the worker wrote what is no record: {_first_line(error)}"
                break
            if event is None:
                how = worker.wait(EXIT_GRACE_S)
                fault, cause = fault_of_end(how, worker.tail), f"the worker ended too early: {how}"
            elif isinstance(event, Started):
                started = event
                yield event
            else:
                del pending[event.point.key]
                started = None  # what follows an answer is of no stage: a worker that goes now harms nobody
                yield _kept(event, keep, offences)
    finally:
        worker.kill()
    return End(started, worker.mark, fault, "\n".join(part for part in (cause, worker.tail) if part))


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


def _failed(job: PlannedJob, point: Point | KernelPoint, outcome: Outcome) -> AnyMeasurement:
    record = Measurement if isinstance(job, Job) else KernelMeasurement
    return record.model_validate(
        {
            "point": point,
            "kind": job.kind,
            "process": job.process,
            "outcome": outcome,
            "emulated": job.device == "cpu",
            "recorded_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _import_path(root: Path) -> str:
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(root), inherited] if inherited else [str(root)])
