"""The parent of a sweep: the only one that keeps what an engine's workers measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Protocol

from mlaprof.blame import Offences
from mlaprof.engine.job import Spawn, spawn_worker
from mlaprof.engine.local import Engine, in_turn
from mlaprof.records import AnyMeasurement, Event, PlannedJob, Started

Keep = Callable[[AnyMeasurement], None]


class Plan(Protocol):
    """What to measure: a plan.Plan or a kernel_plan.KernelPlan."""

    @property
    def jobs(self) -> Sequence[PlannedJob]: ...

    @property
    def skips(self) -> Sequence[AnyMeasurement]: ...


def sweep(plan: Plan, *, engine: Engine = in_turn, spawn: Spawn = spawn_worker, keep: Keep) -> Iterator[Event]:
    """Measure every job of plan; keep each Measurement before yielding it.

    engine   where jobs run: one after another, or on several GPUs at once
    spawn    how a worker is started there

    Every Point of the plan ends as one Measurement; only an engine that has lost a host measures one again, which
    takes the place of the first. A Point that ended two workers, of whatever jobs, is not tried again. Closing the
    iterator, or an exception such as KeyboardInterrupt, ends the workers and all that they started.
    """
    offences = Offences()
    for skip in plan.skips:
        keep(skip)
        yield skip
    with closing(engine(plan.jobs, spawn, offences.among)) as events:
        for event in events:
            if not isinstance(event, Started):
                keep(event)
                offences.note(event)
            yield event
