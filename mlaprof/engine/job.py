"""One job to its end, wherever it runs: a worker process at a time, and a fault costs its own Point.

A worker is `python -m mlaprof.worker --fd N --mark M`. It reads its Job as JSON from stdin, and writes one line of
JSON to descriptor N for every stage it begins (records.Started) and every Measurement. In a stage that several Points
share it leaves in the file of descriptor M whose turn it is. Its stdout and stderr are free text; their last 4 KiB go
into the reason when it dies.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Generator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from mlaprof.blame import End, Pending, blamed
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

LeftAlone = Mapping[str, Outcome]
"""Keys of a job that are not tried, with the outcome that this gives them."""


class Worker(Protocol):
    """A process that measures one Job. What a job needs of machine.child.Child."""

    @property
    def tail(self) -> str: ...

    @property
    def mark(self) -> str: ...

    def next_line(self, limit_s: float) -> bytes | None: ...

    def wait(self, grace_s: float) -> str: ...

    def kill(self) -> None: ...


class Spawn(Protocol):
    """Starts a worker on a job; variables are of its environment beside the parent's own."""

    def __call__(self, job: AnyJob, /, *, variables: Mapping[str, str] = ...) -> Worker: ...


def spawn_worker(
    job: AnyJob, command: Sequence[str] = WORKER_COMMAND, *, variables: Mapping[str, str] | None = None
) -> Child:
    """Start a worker on job, which finds this very mlaprof, installed or not. Raises OSError."""
    own = {"PYTHONFAULTHANDLER": "1"}  # a crash in native code leaves its Python stack in the tail
    root = Path(__file__).resolve().parents[2]
    if str(root) not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        own["PYTHONPATH"] = _import_path(root)
    return Child(command, job.model_dump_json().encode(), {**own, **(variables or {})})


def run_job(
    job: PlannedJob, spawn: Spawn, left_alone: LeftAlone, *, elsewhere: bool = False
) -> Generator[Event, None, PlannedJob | None]:
    """Measure every Point of job; of one that gives up because its GPU is lost, what is left is returned.

    When a worker dies, is silent for longer than the limit of its stage or writes what is no record, the Point at work
    fails, and the rest goes on in a fresh worker. Closing the generator, or an exception such as KeyboardInterrupt,
    ends the worker and all that it started.

    elsewhere   another GPU can take what is left when this one is lost; without it everything is answered here, and a
                second loss fails the rest at once
    """
    pending: Pending = {point.key: point for point in job.points}
    for key in [key for key in pending if key in left_alone]:
        yield failed(job, pending.pop(key), left_alone[key])
    built = True
    idle = losses = 0  # idle: workers in a row that measured nothing
    while pending:
        before = len(pending)
        end, lost = yield from _run_worker(job, pending, spawn)
        idle = idle + 1 if len(pending) == before else 0
        losses += lost
        blame = blamed(job, pending, end, idle=idle > 1 or losses > 1, built=built)
        built = built and blame.stage != "build"
        for key in blame.keys:
            yield failed(
                job, pending.pop(key), Outcome(status="failed", stage=blame.stage, reason=end.reason, fault=end.fault)
            )
        if lost and elsewhere:
            return rest_of(job, pending.values())
    return None


def _run_worker(job: PlannedJob, pending: Pending, spawn: Spawn) -> Generator[Event, None, tuple[End, bool]]:
    """Let one worker measure pending, and take out of pending what it has measured; whether it lost its GPU."""
    started: Started | None = None
    fault: Fault = ""
    cause = ""
    lost = False
    try:
        worker = spawn(rest_of(job, pending.values()))
    except OSError as error:
        return End(None, "", "not_started", f"the worker could not start: {error}"), False
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
                lost = lost or event.outcome.fault == "gpu_lost"
                yield event
    finally:
        worker.kill()
    lost = lost or fault == "gpu_lost"
    return End(started, worker.mark, fault, "\n".join(part for part in (cause, worker.tail) if part)), lost


def rest_of(job: PlannedJob, points: Iterable[Point | KernelPoint]) -> PlannedJob:
    """The job with these of its Points alone."""
    return job.model_copy(update={"points": tuple(points)})


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


def failed(job: PlannedJob, point: Point | KernelPoint, outcome: Outcome) -> AnyMeasurement:
    """The Measurement of a Point that no worker answered for."""
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
