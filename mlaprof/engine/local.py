"""Engines of this machine: one worker after another, or one for each of several seats at once.

An engine is called with jobs, a spawn and a question, and yields what the workers tell. It asks which keys of a job are
left alone when the job begins, so that whoever keeps the events has seen all that the engine yielded before.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Protocol

from mlaprof.engine.attended import Ended, attended
from mlaprof.engine.job import LeftAlone, Spawn, run_job
from mlaprof.machine.seats import Seat
from mlaprof.records import Event, PlannedJob


class Ask(Protocol):
    """Which of these keys are not to be tried, with the outcome that this gives them."""

    def __call__(self, keys: Iterable[str], /) -> LeftAlone: ...


Events = Generator[Event, None, None]
Engine = Callable[[Sequence[PlannedJob], Spawn, Ask], Events]


def in_turn(jobs: Sequence[PlannedJob], spawn: Spawn, ask: Ask) -> Events:
    """One job after another, in the plan's order: nothing disturbs the worker."""
    for job in jobs:
        yield from run_job(job, spawn, ask(point.key for point in job.points))


class Lanes:
    """A lane for each seat, a thread that runs one job after another on the seat's CPUs, which its workers inherit.

    Jobs are handed out in the plan's order. A lane that has lost its GPU gets no more of them, and what is left of its
    job goes to the next free one; the last lane stays.
    """

    def __init__(self, seats: Sequence[Seat]) -> None:
        self._seats = tuple(seats)

    def __call__(self, jobs: Sequence[PlannedJob], spawn: Spawn, ask: Ask) -> Events:
        waiting = deque(jobs)
        told: SimpleQueue[_Told] = SimpleQueue()
        free = deque(_Lane(seat, spawn, told) for seat in self._seats)
        lanes = list(free)  # those that have their GPU
        try:
            while waiting or len(free) < len(lanes):
                while waiting and free:
                    job = waiting.popleft()
                    left_alone = ask(point.key for point in job.points)
                    free.popleft().begin(_Given(job, left_alone, elsewhere=len(lanes) > 1))
                event = told.get()
                if isinstance(event, BaseException):
                    raise event
                if not isinstance(event, _Done):
                    yield event
                    continue
                if event.rest is not None and event.rest.points:
                    waiting.appendleft(event.rest)
                if event.rest is None or len(lanes) == 1:
                    free.append(event.lane)
                else:
                    lanes.remove(event.lane)
                    event.lane.end()
        finally:
            for lane in lanes:
                lane.end()


@dataclass(frozen=True)
class _Given:
    """A job, and how it is to be run: see run_job."""

    job: PlannedJob
    left_alone: LeftAlone
    elsewhere: bool


@dataclass(frozen=True)
class _Done:
    """A lane is done with a job; rest: what its lost GPU left over."""

    lane: _Lane
    rest: PlannedJob | None


_Told = Event | _Done | BaseException


class _Lane:
    """A thread that tells the events of one job after another. A worker is its child, and would die with it."""

    def __init__(self, seat: Seat, spawn: Spawn, told: SimpleQueue[_Told]) -> None:
        self._seat = seat
        self._told = told
        self._given: SimpleQueue[_Given | None] = SimpleQueue()
        self._ending = threading.Event()
        self._spawn: Spawn = attended(partial(spawn, variables=seat.variables), self._ending.is_set)
        self._thread = threading.Thread(target=self._work, name=seat.name, daemon=True)
        self._thread.start()

    def begin(self, given: _Given) -> None:
        self._given.put(given)

    def end(self) -> None:
        """Return when the worker, if there is one, is gone with all that it started."""
        self._ending.set()
        self._given.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            if self._seat.cpus:
                os.sched_setaffinity(0, self._seat.cpus)  # of this thread alone, and of what it starts
            while (given := self._given.get()) is not None:
                self._told.put(_Done(self, self._run(given)))
        except Ended:
            pass
        except BaseException as error:  # for the sweep's own thread to raise
            self._told.put(error)

    def _run(self, given: _Given) -> PlannedJob | None:
        events = run_job(given.job, self._spawn, given.left_alone, elsewhere=given.elsewhere)
        while True:
            try:
                self._told.put(next(events))
            except StopIteration as stop:
                rest: PlannedJob | None = stop.value
                return rest
