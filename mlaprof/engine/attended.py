"""Workers that are given up soon after the sweep that they work for is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from mlaprof.engine.job import Spawn, Worker
from mlaprof.records import AnyJob

POLL_S = 0.25  # how soon it is seen that the sweep is over


class Ended(Exception):
    """The sweep is over while a worker was waited for."""


def attended(spawn: Spawn, over: Callable[[], bool]) -> Spawn:
    """A spawn whose workers raise Ended in the place of a line once `over` says so."""
    return partial(_attended, spawn, over)


def _attended(spawn: Spawn, over: Callable[[], bool], job: AnyJob, /) -> Worker:
    return _Attended(spawn(job), over)


class _Attended:
    def __init__(self, worker: Worker, over: Callable[[], bool]) -> None:
        self._worker = worker
        self._over = over

    @property
    def tail(self) -> str:
        return self._worker.tail

    @property
    def mark(self) -> str:
        return self._worker.mark

    def next_line(self, limit_s: float) -> bytes | None:
        deadline_s = time.monotonic() + limit_s
        while not self._over():
            left_s = deadline_s - time.monotonic()
            try:
                return self._worker.next_line(min(max(left_s, 0.0), POLL_S))
            except TimeoutError:
                if left_s <= POLL_S:
                    raise
        raise Ended

    def wait(self, grace_s: float) -> str:
        return self._worker.wait(grace_s)

    def kill(self) -> None:
        self._worker.kill()
