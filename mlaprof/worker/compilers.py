"""Compiling in processes beside the one that measures: none sees the GPU, and none takes another with it when it dies.

Triton is imported by the children alone: one that interprets kernels would not compile any.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from mlaprof.machine.parent import PARENT_PID_VARIABLE, die_with_parent

LIMIT_S = 30.0  # of one configuration; Helion #1384: 30 s, even 15 s, lose nothing
START_S = 120.0  # of a process: importing torch and Triton from a cold disk


@dataclass(frozen=True)
class Compiled:
    """The end of one compilation. built: a kernels.launches.Built, None with the reason where there is none."""

    key: Any
    built: Any
    reason: str
    seconds: float


@dataclass
class _Slot:
    process: BaseProcess
    pipe: Connection
    key: Any = None
    began_s: float = field(default_factory=perf_counter)
    ready: bool = False  # has said that it can compile
    busy: bool = False


class Compilers:
    """So many processes that compile what is submitted, in any order. A context manager that ends them."""

    def __init__(self, count: int, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._queue: deque[tuple[Any, Sequence[Any]]] = deque()
        self._slots = [_started() for _ in range(max(1, count))]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """How many are submitted and not done."""
        return len(self._queue) + sum(slot.busy for slot in self._slots)

    def submit(self, key: Any, launches: Sequence[Any]) -> None:
        """Compile these kernels.launches; they pickle."""
        self._queue.append((key, launches))
        self._hand_out()

    def done(self, timeout_s: float) -> list[Compiled]:
        """What ended since, after at most so many seconds; waits only where nothing has."""
        found: list[Compiled] = []
        pipes = {slot.pipe: place for place, slot in enumerate(self._slots)}
        for pipe in wait(list(pipes), timeout_s):
            place = pipes[pipe]  # type: ignore[index]  # wait() returns what it was given
            slot = self._slots[place]
            try:
                message = slot.pipe.recv()
            except (EOFError, OSError):
                found += self._replaced(place, "the compiler died")
                continue
            if slot.busy:
                found.append(Compiled(slot.key, *message))
            slot.ready, slot.busy, slot.key = True, False, None
        for place, slot in enumerate(self._slots):
            limit_s = self._limit_s if slot.ready else START_S
            if (slot.busy or not slot.ready) and perf_counter() - slot.began_s > limit_s:
                found += self._replaced(place, f"compiling took longer than {limit_s:g} s")
        self._hand_out()
        return found

    def close(self) -> None:
        """End every process at once, whatever it does."""
        for slot in self._slots:
            _ended(slot)
        self._slots, self._queue = [], deque()

    def _hand_out(self) -> None:
        for slot in self._slots:
            if slot.ready and not slot.busy and self._queue:
                slot.key, launches = self._queue.popleft()
                slot.busy, slot.began_s = True, perf_counter()
                with suppress(OSError):  # it died: done() finds the end of its pipe
                    slot.pipe.send(list(launches))

    def _replaced(self, place: int, cause: str) -> list[Compiled]:
        slot = self._slots[place]
        _ended(slot)
        code = slot.process.exitcode
        ended = f" by signal {-code}" if cause.endswith("died") and code is not None and code < 0 else ""
        self._slots[place] = _started()
        return [Compiled(slot.key, None, cause + ended, perf_counter() - slot.began_s)] if slot.busy else []


def _started() -> _Slot:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    with _compiling():
        process.start()
    theirs.close()
    return _Slot(process, ours)


@contextmanager
def _compiling() -> Iterator[None]:
    """The environment of a process that compiles, for one that is started inside; Triton reads it when imported."""
    changed = {"TRITON_INTERPRET": None, "CUDA_VISIBLE_DEVICES": "", PARENT_PID_VARIABLE: str(os.getpid())}
    before = {name: os.environ.get(name) for name in changed}
    _set(changed)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _ended(slot: _Slot) -> None:
    slot.process.kill()
    slot.process.join(5.0)
    slot.pipe.close()


def _serve(pipe: Connection) -> None:
    """The child: answer each list of launches with (Built or None, reason, seconds)."""
    die_with_parent()
    from mlaprof.kernels.launches import build
    from mlaprof.kernels.stable_keys import make_keys_stable

    make_keys_stable()
    pipe.send(None)  # ready
    while True:
        try:
            launches = pipe.recv()
        except EOFError:
            return
        begin_s = perf_counter()
        built, reason = None, ""
        try:
            built = build(launches)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        pipe.send((built, reason, perf_counter() - begin_s))
