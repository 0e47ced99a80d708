"""Jobs on a Dask cluster: each Dask worker that offers a GPU measures one job after another, and this client keeps.

A job is one task, on a worker that the client names, so that Dask itself never starts it anywhere else. When the
worker is gone, what the client has no answer for goes to another one, and what the lost task may still tell is dropped.
The client hears each event through a topic, which the scheduler passes on in order.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from mlaprof.engine import remote
from mlaprof.engine.job import Spawn, failed, rest_of
from mlaprof.engine.local import Ask, Events
from mlaprof.engine.members import Member, Members, Message
from mlaprof.plan import unfinished
from mlaprof.records import AnyMeasurement, Event, Outcome, PlannedJob, Started
from mlaprof.wire import decode_event

if TYPE_CHECKING:
    from distributed import Future

LOSSES = 3  # hosts that a job may lose in a row without a new answer; then the cell at work is given up
END_S = 10.0  # for workers to end what they measure


@dataclass
class _Work:
    """A job on its way through the cluster."""

    job: PlannedJob
    answered: dict[str, str] = field(default_factory=dict)  # key -> status
    losses: int = 0  # hosts in a row, without a new answer

    def rest(self) -> PlannedJob:
        """What is not answered, with what belongs to it: arms of one cell are timed side by side, on one GPU."""
        done = {(self.job.kind, key, self.job.process) for key in self.answered}
        left = unfinished(self.job, done)
        return rest_of(self.job, (point for point in left if self.answered.get(point.key) != "failed"))


@dataclass
class _Task:
    """One attempt at the rest of a job."""

    number: int
    member: Member
    work: _Work
    future: Future
    known: int  # answers that there were before
    begun: bool = False
    started: Started | None = None  # the last stage told of


class Cluster:
    """An engine on the members of a cluster, who have been admitted to the run."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._client = members.client
        self._numbers = count()
        self._waiting: deque[_Work] = deque()
        self._tasks: dict[int, _Task] = {}  # those under way, by number

    def __call__(self, jobs: Sequence[PlannedJob], spawn: Spawn, ask: Ask) -> Events:
        self._waiting.extend(map(_Work, jobs))
        try:
            while self._waiting or self._tasks:
                self._hand_out(spawn, ask)
                for message in self._members.hear():
                    yield from self._heard(message)
                for lost in self._members.look():
                    yield from self._lost(lost)
                for task in list(self._tasks.values()):
                    yield from self._checked(task)
        finally:
            self._end()

    def _hand_out(self, spawn: Spawn, ask: Ask) -> None:
        usable = self._members.usable()
        busy = {task.member.address for task in self._tasks.values()}
        for member in usable:
            if self._waiting and member.address not in busy:
                self._begin(member, self._waiting.popleft(), spawn, ask, elsewhere=len(usable) > 1)
        if not self._tasks:
            self._members.require_one()

    def _begin(self, member: Member, work: _Work, spawn: Spawn, ask: Ask, *, elsewhere: bool) -> None:
        number, job = next(self._numbers), work.rest()
        left_alone = ask(point.key for point in job.points)
        future = self._client.submit(
            remote.measure,
            number,
            job.model_dump_json(),
            spawn,
            {key: outcome.model_dump_json() for key, outcome in left_alone.items()},
            elsewhere=elsewhere,
            topic=self._members.topic,
            process=member.process,
            resources=self._members.needs,
            **self._members.placed(member, f"measure-{number}"),
        )
        self._tasks[number] = _Task(number, member, work, future, known=len(work.answered))

    def _heard(self, message: Message) -> Iterator[Event]:
        task = self._tasks.get(message["task"])
        if task is None:  # of an attempt that was given up
            return
        task.begun = True
        if "event" in message:
            event = decode_event(message["event"])
            if isinstance(event, Started):
                task.started = event
            else:
                task.work.answered[event.point.key] = event.outcome.status
            yield event
        elif "end" in message:
            how, why = message["end"], message["why"]
            if how == "gpu_lost":
                self._members.leave_out(task.member, "its GPU is lost")
            elif how == "broken":
                self._members.leave_out(task.member, why)
            elif how == "stranger":
                self._members.forget(task.member)
            # A lost GPU has cost the cell at work its answer already.
            yield from self._ended(task, "" if how in ("done", "gpu_lost") else why or f"its task ended: {how}")

    def _lost(self, member: Member) -> Iterator[Event]:
        for task in [each for each in self._tasks.values() if each.member is member]:
            yield from self._ended(task, f"{member.address} is gone")

    def _checked(self, task: _Task) -> Iterator[Event]:
        """Look after a task that may have come to nothing without a word. Raises ClusterError."""
        if task.future.status == "error":
            why = f"cannot measure: {task.future.exception()!r}"
            self._members.leave_out(task.member, why)
            yield from self._ended(task, why)
        elif task.future.status in ("cancelled", "lost"):
            raise self._members.gone()  # or there is one again, which knows nothing of this sweep

    def _ended(self, task: _Task, why: str) -> Iterator[AnyMeasurement]:
        """Let what is left of its job wait at the front; why: how a host was lost, empty where none was."""
        del self._tasks[task.number]
        work = task.work
        if why and work.rest().points:
            work.losses = 1 if len(work.answered) > task.known else work.losses + 1
            if work.losses == LOSSES:
                work.losses = 0
                yield from self._given_up(task, why)
        if work.rest().points:
            self._waiting.appendleft(work)

    def _given_up(self, task: _Task, why: str) -> Iterator[AnyMeasurement]:
        """The cell at work takes one host after another with it, so it fails; all of the job where none had begun."""
        work, started = task.work, task.started
        reason = f"its host was lost {LOSSES} times, at last: {why}"
        stage = started.stage if started else "worker"
        outcome = Outcome(status="failed", stage=stage, reason=reason, fault="host_lost")
        points = work.rest().points
        cell = next((each.cell for each in points if started and each.key == started.key), None)
        unanswered = [each for each in points if each.key not in work.answered]
        for point in [each for each in unanswered if each.cell == cell] or unanswered:
            work.answered[point.key] = "failed"
            yield failed(work.job, point, outcome)

    def _end(self) -> None:
        """Cancel what is under way, and wait until the workers have ended it."""
        tasks = list(self._tasks.values())
        self._waiting.clear()
        self._tasks.clear()
        if not tasks or self._client.status != "running":
            return
        with contextlib.suppress(OSError):
            self._client.cancel([task.future for task in tasks])
        begun = {task.number for task in tasks if task.begun}
        end_s = time.monotonic() + END_S
        while begun and time.monotonic() < end_s and self._client.status == "running":
            begun -= {message["task"] for message in self._members.hear() if "end" in message}
