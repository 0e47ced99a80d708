"""Processes that step together, as threads: they take the same steps in the same order and stop together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from mlaprof.measure.clock import CpuClock
from mlaprof.measure.company import Company
from mlaprof.measure.rounds import Limits, Rounds, sample_rounds


class Pair(Company):
    """One of two threads."""

    def __init__(self, barrier: threading.Barrier, said: dict[int, float], place: int) -> None:
        self._barrier, self._said, self._place = barrier, said, place

    def meet(self) -> None:
        self.most(0.0)

    def any(self, answer: bool) -> bool:
        return self.most(float(answer)) > 0

    def most(self, value: float) -> float:
        self._said[self._place] = value
        self._barrier.wait(10)
        found = max(self._said.values())
        self._barrier.wait(10)
        return found


def sampled(
    place: int, barrier: threading.Barrier, said: dict[int, float], *, void: int
) -> tuple[list[str], Rounds[None]]:
    """Of one thread; its clock says that time is up after another number of calls than its partner's, and `void` of its
    rounds do not count."""
    company, taken = Pair(barrier, said, place), list[str]()
    calls = iter(range(10_000))
    bad = iter([True] * void)
    found: Rounds[None] = sample_rounds(
        {name: (lambda name=name: taken.append(name)) for name in ("a", "b", "c")},
        CpuClock(cold=False, company=company),
        Limits(min_samples=50, max_samples=50, ci_half_width=0.01, time_s=30 + 20 * place),
        seed=5,
        reading=lambda: None,
        valid=lambda warm, readings: not next(bad, False),
        company=company,
        now=lambda: float(next(calls)),
        pause=lambda pause_s: None,
    )
    return taken, found


def test_partners_take_the_same_steps_whatever_their_own_clocks_say() -> None:
    """One would stop earlier, and a round of the other does not count: a step more on one side would wait for ever."""
    barrier, said = threading.Barrier(2), dict[int, float]()
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(sampled, place, barrier, said, void=place) for place in range(2)]
        (steps, rounds), (others, theirs) = (each.result(30) for each in both)

    assert steps == others and len(steps) > 12
    assert rounds.stop == theirs.stop == "time"
    assert rounds.dropped == theirs.dropped == 1
    assert len(rounds.arms["a"].samples) == len(theirs.arms["b"].samples)
