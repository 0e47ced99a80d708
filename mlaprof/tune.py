"""The parent of a tuning: a search a target in a worker that may die, then its finalists in two fresh processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mlaprof.engine.job import EXIT_GRACE_S, Spawn, spawn_worker
from mlaprof.facts import SearchFacts
from mlaprof.faults import Fault, fault_of_end
from mlaprof.machine.child import ending
from mlaprof.records import (
    Device,
    Event,
    KernelJob,
    KernelMeasurement,
    Outcome,
    SearchJob,
    Started,
)
from mlaprof.study import TuneStudy
from mlaprof.sweep import Keep, sweep
from mlaprof.tuning.finals import PROCESSES, Decision, decide, final_jobs, final_points
from mlaprof.tuning.plan import Search, elapsed_s, evaluated, final_measure, rows_of, search_job
from mlaprof.wire import decode_event

MOST_DEATHS = 3  # of workers in a row without a row between them, after which a search is left as it is
SPARE_CORES = 2  # for the parent and the worker that measures
MOST_COMPILERS = 14


@dataclass(frozen=True)
class Begun:
    """A search begins; known: rows of an earlier, interrupted one."""

    search: Search
    number: int
    known: int


@dataclass(frozen=True)
class Decided:
    """A target is done with."""

    search: Search
    decision: Decision


TuneEvent = Event | Begun | Decided


@dataclass(frozen=True)
class _Finals:
    jobs: Sequence[KernelJob]
    skips: Sequence[KernelMeasurement] = ()


def tune(
    searches: Iterable[Search],
    study: TuneStudy,
    device: Device,
    *,
    known: Sequence[KernelMeasurement] = (),
    keep: Keep,
    spawn: Spawn = spawn_worker,
    now: Callable[[], float] = time.time,
) -> Iterator[TuneEvent]:
    """Search every target, measure its finalists, decide; each row is kept before it is yielded.

    known   rows of an earlier tuning of the same study: what they say is not measured again

    Closing the iterator, or an exception such as KeyboardInterrupt, ends the workers; the rows stay.
    """
    for number, search in enumerate(searches):
        rows = {each.point.key: each for each in rows_of(search.target, known, "search")}
        finals = rows_of(search.target, known, "kernel")
        yield Begun(search, number, len(rows))
        if not _complete(finals):
            yield from _search(search, study, device, rows, keep=keep, spawn=spawn, now=now)
            points = final_points(search.target, rows.values(), search.default, search.deployed)
            jobs = final_jobs(points, device, final_measure(study), study.seed) if points else ()
            finals = []
            for event in sweep(_Finals(jobs), spawn=spawn, keep=keep):
                if isinstance(event, KernelMeasurement):
                    finals.append(event)
                yield event
        yield Decided(search, decide(search.target, list(rows.values()), finals, search.default, search.deployed))


def compilers_here() -> int:
    """Processes that may compile beside the one that measures."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_COMPILERS, cores - SPARE_CORES))


def _complete(finals: Sequence[KernelMeasurement]) -> bool:
    """Whether every process has measured the same finalists."""
    keys = [{each.point.key for each in finals if each.process == process} for process in range(PROCESSES)]
    return bool(keys[0]) and all(each == keys[0] for each in keys)


def _search(
    search: Search,
    study: TuneStudy,
    device: Device,
    rows: dict[str, KernelMeasurement],
    *,
    keep: Keep,
    spawn: Spawn,
    now: Callable[[], float],
) -> Iterator[Event]:
    """Let workers search until one ends well; what the last one did is in rows. A fault costs its own configuration."""
    began_at, deaths = now() - elapsed_s(rows.values()), 0
    while deaths < MOST_DEATHS:
        job = search_job(search, study, device, list(rows.values()), began_at=began_at, compilers=compilers_here())
        if now() - began_at >= job.search_s or (study.max_evals or 1 << 30) <= evaluated(rows.values()):
            return
        before = len(rows)
        end = yield from _run_worker(job, rows, keep, spawn)
        if end.finished:
            return
        deaths = 0 if len(rows) > before else deaths + 1
        if end.started is not None and end.started.key not in rows:
            lost = _lost(job, search, end, number=len(rows), at_s=now() - began_at)
            if lost is not None:
                rows[lost.point.key] = lost
                keep(lost)
                yield lost


@dataclass(frozen=True)
class _End:
    """How a worker ended."""

    finished: bool
    started: Started | None
    reason: str
    fault: Fault = ""


def _run_worker(
    job: SearchJob, rows: dict[str, KernelMeasurement], keep: Keep, spawn: Spawn
) -> Generator[Event, None, _End]:
    started: Started | None = None
    try:
        worker = spawn(job)
    except OSError as error:
        return _End(False, None, f"the worker could not start: {error}", "not_started")
    fault: Fault
    try:
        while True:
            limit_s = job.measure.limit_s(started.stage if started else "worker")
            try:
                line = worker.next_line(limit_s)
                event = None if line is None else decode_event(line)
            except TimeoutError:
                fault, cause = "timeout", f"no sign of life for {limit_s:g} s, so the worker was killed"
                break
            except ValueError as error:
                fault, cause = "rubbish", f"the worker wrote what is no record: {' '.join(str(error).split())[:200]}"
                break
            if event is None:
                ended = worker.wait(EXIT_GRACE_S)
                if ended == ending(0):
                    return _End(True, started, "")
                fault, cause = fault_of_end(ended, worker.tail), f"the worker ended too early: {ended}"
                break
            if isinstance(event, Started):
                started = event
            elif isinstance(event, KernelMeasurement):
                rows[event.point.key] = event
                keep(event)
            yield event
    finally:
        worker.kill()
    return _End(False, started, "\n".join(part for part in (cause, worker.tail) if part), fault)


def _lost(job: SearchJob, search: Search, end: _End, *, number: int, at_s: float) -> KernelMeasurement | None:
    """The configuration that took its worker with it, as a failed row; the search never proposes it again."""
    assert end.started is not None
    key = end.started.key
    for values in search.space.space.configurations:
        point = search.space.point(search.space.choice(values))
        if point.key == key:
            return KernelMeasurement(
                point=point,
                kind="search",
                outcome=Outcome(status="failed", stage=end.started.stage, reason=end.reason, fault=end.fault),
                emulated=job.device == "cpu",
                recorded_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                search=SearchFacts(number=number, origin="unknown", at_s=at_s),
            )
    return None
