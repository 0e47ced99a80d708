"""Compilers beside the worker: answers, crashes and hangs of one cost nothing else."""

from __future__ import annotations

import time

import pytest

from mlaprof.worker import compilers as module
from mlaprof.worker.compilers import Compilers


def _fake(pipe) -> None:
    """A compiler that does as it is told: a number is the answer, other words are deeds."""
    import os
    import signal

    pipe.send(None)
    while True:
        for word in pipe.recv():
            if word == "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            if word == "hang":
                time.sleep(600)
            pipe.send((word, "", 0.1) if isinstance(word, int) else (None, f"error: {word}", 0.1))


@pytest.fixture(autouse=True)
def fake_compilers(monkeypatch):
    monkeypatch.setattr(module, "_serve", _fake)
    monkeypatch.setattr(module.multiprocessing, "get_context", lambda name: _fork())


def _fork():
    import multiprocessing.context

    return multiprocessing.context.ForkContext()


def collected(compilers: Compilers, count: int, limit_s: float = 20.0):
    found, end_s = [], time.monotonic() + limit_s
    while len(found) < count and time.monotonic() < end_s:
        found += compilers.done(0.1)
    return {each.key: each for each in found}


def test_every_submission_is_answered_once():
    with Compilers(3) as compilers:
        for number in range(20):
            compilers.submit(number, [number])
        found = collected(compilers, 20)
        assert {key: each.built for key, each in found.items()} == {number: number for number in range(20)}
        assert len(compilers) == 0


def test_a_crash_is_the_reason_of_its_own_and_the_rest_goes_on():
    with Compilers(1) as compilers:
        for key in ("crash", "wrong", 7):
            compilers.submit(key, [key])
        found = collected(compilers, 3)
    assert found["crash"].built is None and found["crash"].reason == "the compiler died by signal 9"
    assert found["wrong"].reason == "error: wrong"
    assert found[7].built == 7


def test_what_hangs_is_ended_after_its_limit():
    with Compilers(1, limit_s=0.5) as compilers:
        compilers.submit("hang", ["hang"])
        compilers.submit(1, [1])
        found = collected(compilers, 2)
    assert found["hang"].reason == "compiling took longer than 0.5 s"
    assert found[1].built == 1


def test_closing_ends_every_process_whatever_it_does():
    compilers = Compilers(2)
    processes = [slot.process for slot in compilers._slots]
    for key in ("hang", "hang too"):
        compilers.submit(key, ["hang"])
    collected(compilers, 1, limit_s=0.5)
    compilers.close()
    assert not any(process.is_alive() for process in processes)
