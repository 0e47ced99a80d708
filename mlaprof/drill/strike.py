"""The worker's side of a drill: watches stages and marks go by, and strikes when a fault's turn has come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

from mlaprof.drill.blows import AFTERMATH, Aftermath, strike
from mlaprof.records import Event, Job, Measurement, Started
from mlaprof.study import DRILL_VARIABLE, FaultSpec
from mlaprof.worker.events import ContextLost
from mlaprof.worker.mark import Mark

# Stages that are begun once for several Points, each of which is marked when its turn comes.
SHARED = (("timing", "measure"), ("memory", "capture"))
LATER = 5  # turns of a Point: it breaks in the midst of its samples, not before the first


class Drill(Mark):
    """A mark that strikes the Point whose turn it is, and the events of a job under the faults of its study.

    lines   descriptor of the worker's pipe, for rubbish
    rank    whose faults these are, in the group of a tensor parallel layer

    Raises ValueError where drills are not allowed.
    """

    def __init__(self, descriptor: int | None, job: Job, lines: int, rank: int = 0) -> None:
        super().__init__(descriptor)
        if os.environ.get(DRILL_VARIABLE) != "1":
            raise ValueError(f"faults: expected none without {DRILL_VARIABLE}=1, got {len(job.faults)}")
        mine = (each for each in job.faults if each.rank == rank and each.process in (None, job.process))
        self._faults = [each for each in mine if each.kind == job.kind]
        self._job = job
        self._lines = lines
        self._stage = ""
        self._turns = 0
        self._blows = ExitStack()
        self._aftermath: Aftermath = ""

    def events(self, events: Iterator[Event]) -> Iterator[Event]:
        """The same events; between one and the next whatever faults the study asks for. Raises ContextLost."""
        for event in events:
            self._blows.close()
            yield event
            # The line is out, and the stage runs when the next event is asked for.
            if isinstance(event, Started):
                self._stage, self._turns = event.stage, 0
                if (self._job.kind, event.stage) not in SHARED:
                    self._strike(event.key)
            elif isinstance(event, Measurement) and self._aftermath == "lost" and event.outcome.status == "failed":
                raise ContextLost

    def __call__(self, key: str) -> None:
        super().__call__(key)
        if (self._job.kind, self._stage) not in SHARED or not any(key == each.key for each in self._due()):
            return
        self._turns += 1
        if self._turns == (LATER if self._stage == "measure" else 1):
            self._strike(key)

    def _due(self) -> list[FaultSpec]:
        return [each for each in self._faults if each.at == self._stage]

    def _strike(self, key: str) -> None:
        for fault in self._due():
            if fault.key == key:
                self._aftermath = AFTERMATH.get((fault.fault, self._job.device), "")
                self._blows.enter_context(strike(fault.fault, self._job.device, self._lines))
