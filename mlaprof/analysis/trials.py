"""Trials of the verdicts: comparisons at the standard preset, judged by what judges stored runs.

Across runs: some of the processes as the base run, and as many others as the new one; steps in one graph and eager ones
apart, because processes move the eager ones (analysis/spread.py), so that no small change of those is promised to be
found. Within a run: two arms of the same processes and rounds, paired. A comparison is of all steps of its kind
together, and a trial is the verdict on one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlaprof.analysis.cells import Cell, Floor
from mlaprof.analysis.changes import Stepped, adjusted, changes_of
from mlaprof.analysis.keys import of_point
from mlaprof.analysis.limits import limit_of
from mlaprof.analysis.sides import Series
from mlaprof.analysis.stats import Estimate
from mlaprof.analysis.verdicts import Verdict, judge
from mlaprof.facts import NoiseRounds, Timing
from mlaprof.records import Point

THRESHOLD = 0.01  # the default of compare
MOST_FALSE = 0.01  # promised, of A/A trials
LEAST_FOUND = {"0.01": 0.90, "0.02": 0.99}  # promised, of changes by these shares
SEEN_PERCENTILE = 90.0  # a change of the smallest size that is seen is found in so many of 100 trials

Kind = Literal["across", "across_eager", "within"]
Rounds = Callable[[NoiseRounds], Sequence[float]]


@dataclass(frozen=True)
class Rate:
    """How many of n trials."""

    found: int
    n: int

    @property
    def share(self) -> float:
        return self.found / self.n

    @property
    def upper(self) -> float:
        """95 % upper bound of the share after Clopper and Pearson (1934), which takes trials as independent."""
        from scipy.special import betaincinv  # imported late: no other command needs it

        return 1.0 if self.found == self.n else float(betaincinv(self.found + 1, self.n - self.found, 0.95))


@dataclass(frozen=True)
class Injection:
    """A change that was put in: trials of the step against the step behind a spin."""

    share: str  # of the step's device time, as asked: "0.01"
    threshold: float  # half the share and at most the default: a change of just the threshold is on the line
    limit: float  # that the threshold and the floors come to
    slower: Rate  # found

    @property
    def holds(self) -> bool:
        return self.slower.share >= LEAST_FOUND.get(self.share, 0.0)


@dataclass(frozen=True)
class Trials:
    """Comparisons of one kind. They share data: processes and rounds are drawn anew for each, not measured anew."""

    kind: Kind
    processes: int  # a side
    rounds: int  # a process
    limit: float  # of the A/A trials, at the default threshold
    false: Rate  # A/A trials that came out FASTER or SLOWER
    verdicts: Mapping[Verdict, int]  # of the A/A trials
    smallest_change: float  # a ratio - 1: slowed by so much, 90 of 100 A/A trials would have come out SLOWER
    injections: tuple[Injection, ...]

    @property
    def holds(self) -> bool:
        return self.false.share <= MOST_FALSE and (self.kind == "across_eager" or all(x.holds for x in self.injections))


@dataclass(frozen=True)
class Subject:
    """A Point, and its rounds by process."""

    point: Point
    rounds: Mapping[int, NoiseRounds]


@dataclass(frozen=True)
class Draws:
    """Comparisons of one size: so many processes a side, and of each so many rounds in a row, of all subjects. They are
    drawn until there are `count` trials of each change. floor: the limit of a verdict is not below it."""

    subjects: Sequence[Subject]
    floor: Floor
    processes: int
    rounds: int
    count: int
    seed: int

    def trials(self, kind: Kind) -> Trials:
        """Raises ValueError where there are too few processes of all subjects, or one has too few rounds."""
        rng = np.random.default_rng([self.seed, kind != "within"])
        drawn = [self._draw(kind, rng) for _ in range(-(-self.count // len(self.subjects)))]
        unchanged = self._judge(drawn, twin, kind, THRESHOLD)
        verdicts = [found for found, _ in unchanged]
        limit = self._limit(THRESHOLD)
        factors = [(1 + limit) / ratio.ci_low for _, ratio in unchanged]
        return Trials(
            kind=kind,
            processes=self.processes,
            rounds=self.rounds,
            limit=limit,
            false=Rate(sum(each in ("SLOWER", "FASTER") for each in verdicts), len(verdicts)),
            verdicts={each: verdicts.count(each) for each in dict.fromkeys(verdicts)},
            smallest_change=float(np.percentile(factors, SEEN_PERCENTILE)) - 1,
            injections=tuple(self._injection(share, drawn, kind) for share in shares(self.subjects)),
        )

    def _injection(self, share: str, drawn: Sequence[_Drawn], kind: Kind) -> Injection:
        threshold = min(THRESHOLD, float(share) / 2)
        found = [verdict for verdict, _ in self._judge(drawn, slowed(share), kind, threshold)]
        return Injection(share, threshold, self._limit(threshold), Rate(found.count("SLOWER"), len(found)))

    def _draw(self, kind: Kind, rng: np.random.Generator) -> _Drawn:
        """Across runs the sides have no process in common; within one they have the same processes and rounds."""
        known = sorted(set.intersection(*(set(each.rounds) for each in self.subjects)))
        count = self.processes if kind == "within" else 2 * self.processes
        chosen = rng.choice(known, size=count, replace=False).tolist()
        windows = [
            {process: self._window(len(each.rounds[process].device_s), rng) for process in chosen}
            for each in self.subjects
        ]
        sides = chosen[: self.processes], chosen[-self.processes :]
        base, new = ([{process: each[process] for process in side} for each in windows] for side in sides)
        return _Drawn(base, new)

    def _window(self, rounds: int, rng: np.random.Generator) -> slice:
        start = int(rng.integers(rounds - self.rounds + 1))
        return slice(start, start + self.rounds)

    def _judge(
        self, drawn: Sequence[_Drawn], arm: Rounds, kind: Kind, threshold: float
    ) -> list[tuple[Verdict, Estimate]]:
        """The verdict on an arm of the new side against the step of the base side, and the ratio, of every subject."""
        limit, found = self._limit(threshold), []
        steps = {
            each.point.key: Stepped(each.point.way, 0 if each.point.mode == "full" else None) for each in self.subjects
        }
        for each in drawn:
            pairs = {
                subject.point.key: (timings(subject, plain, base), timings(subject, arm, new))
                for subject, base, new in zip(self.subjects, each.base, each.new, strict=True)
            }
            changes = adjusted(changes_of(pairs, steps, one_run=kind == "within"))
            for subject in self.subjects:
                cell, change = _cell(subject.point), changes[subject.point.key]
                ratio, p = change.ratio, change.p_holm
                found.append((judge(ratio, 1.0 if p is None else p, limit, cell, cell).verdict, ratio))
        return found

    def _limit(self, threshold: float) -> float:
        return limit_of(threshold, self.floor, self.floor).value


@dataclass(frozen=True)
class _Drawn:
    """One comparison: of each subject and either side the window of rounds of each process."""

    base: Sequence[Mapping[int, slice]]
    new: Sequence[Mapping[int, slice]]


def plain(rounds: NoiseRounds) -> Sequence[float]:
    """The arm that everything is compared with."""
    return rounds.device_s


def twin(rounds: NoiseRounds) -> Sequence[float]:
    """The arm that is the same once more."""
    return rounds.twin_s


def slowed(share: str) -> Rounds:
    """The arm with a spin of that share behind its step."""
    return lambda rounds: rounds.slowed_s[share]


def shares(subjects: Sequence[Subject]) -> list[str]:
    """What was put in, in the order of the samples."""
    return list(
        dict.fromkeys(share for each in subjects for rounds in each.rounds.values() for share in rounds.slowed_s)
    )


def timings(subject: Subject, arm: Rounds, windows: Mapping[int, slice] | None = None) -> Series:
    """The samples of an arm as a run would store them, by process; of those with a window, where windows are given.

    What surrounds the samples in a Timing decides nothing here.
    """
    found = {process: arm(rounds) for process, rounds in sorted(subject.rounds.items())}
    chosen = found if windows is None else {process: found[process][windows[process]] for process in sorted(windows)}
    return {
        process: Timing(
            device_s=tuple(samples), submit_s=(), cache="cold", clock="cuda_event", warmup_s=0.0, first_call_s=0.0
        )
        for process, samples in chosen.items()
    }


def _cell(point: Point) -> Cell:
    """What a verdict asks of a cell beside its samples: nothing speaks against these."""
    return Cell(key=point.key, **vars(of_point(point)), outcome="ok", emulated=False)
