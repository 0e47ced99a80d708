"""What a machine's noise comes to, from samples of steps that did not change and of steps that changed by so much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from mlaprof.analysis.arms import Arm
from mlaprof.analysis.cells import Floor
from mlaprof.analysis.floor import TWIN, noise_floor
from mlaprof.analysis.stats import Estimate, paired
from mlaprof.analysis.trials import Draws, Kind, Rounds, Subject, Trials, plain, shares, slowed, timings, twin
from mlaprof.facts import NoiseRounds
from mlaprof.records import Measurement, Point
from mlaprof.study import MeasureSpec

TRIALS = 1_000
STANDARD = MeasureSpec()  # how a run at the standard preset is measured: so many processes, at least so many rounds


@dataclass(frozen=True)
class Added:
    """A change that was put in, as it was measured over all rounds."""

    spin_s: float  # the spin by itself; the median over processes
    ratio: Estimate  # of the slowed step over the step, paired


@dataclass(frozen=True)
class Step:
    """One Point in all its processes."""

    point: Point
    device_s: float  # median over all rounds
    processes: int
    rounds: int  # a process, the fewest
    twin: Estimate  # of the twin over the step, paired over all rounds: 1 where nothing is biased
    added: Mapping[str, Added]  # by share


@dataclass(frozen=True)
class Noise:
    """What an A/A self-test comes to."""

    steps: tuple[Step, ...]
    floor: Floor
    within: Trials
    across: Trials | None  # of steps in one graph; None of fewer than twice the processes of a run, or without such
    across_eager: Trials | None = None  # of the other steps, likewise

    @property
    def gating(self) -> Trials:
        """The trials of the kind that gates, or that there are."""
        return self.across or self.within

    @property
    def holds(self) -> bool:
        return all(each.holds for each in self.trials)

    @property
    def trials(self) -> tuple[Trials, ...]:
        """All kinds that there are."""
        return tuple(each for each in (self.across, self.across_eager, self.within) if each)


def noise_of(measurements: Sequence[Measurement], *, trials: int = TRIALS, seed: int = 0) -> Noise | None:
    """The Noise of the usable noise measurements; None where no process measured every Point of them.

    trials  of each kind without a change, and as many of each injected change
    seed    of the draws

    A process with fewer rounds than others counts with those it has.
    """
    points: dict[str, tuple[Point, dict[int, NoiseRounds]]] = {}
    for each in measurements:
        if each.outcome.usable and each.noise is not None:
            points.setdefault(each.point.key, (each.point, {}))[1][each.process] = each.noise
    if not points:
        return None
    subjects = [Subject(*each) for each in points.values()]
    processes = len(set.intersection(*(set(each.rounds) for each in subjects)))
    if not processes:
        return None
    rounds = min(len(each.device_s) for subject in subjects for each in subject.rounds.values())
    floor = _floor(subjects)

    def trials_of(chosen: Sequence[Subject], kind: Kind) -> Trials | None:
        if not chosen or (kind != "within" and processes < 2 * STANDARD.processes):
            return None
        draws = Draws(
            chosen,
            floor,
            processes=min(STANDARD.processes, processes),
            rounds=min(STANDARD.min_samples, rounds),
            count=trials,
            seed=seed,
        )
        return draws.trials(kind)

    within = trials_of(subjects, "within")
    assert within is not None  # there is a subject
    return Noise(
        steps=tuple(_step(each) for each in subjects),
        floor=floor,
        within=within,
        across=trials_of([each for each in subjects if each.point.mode == "full"], "across"),
        across_eager=trials_of([each for each in subjects if each.point.mode != "full"], "across_eager"),
    )


def _floor(subjects: Sequence[Subject]) -> Floor:
    """As of a run of all these processes that timed each step twice."""
    arms = {each.point.key: Arm(each.point.key, timings(each, plain)) for each in subjects}
    twins = {f"{each.point.key}{TWIN}": Arm(f"{each.point.key}{TWIN}", timings(each, twin)) for each in subjects}
    floor = noise_floor(twins, arms)
    assert floor is not None  # there is a subject, and each has both arms
    return floor


def _step(subject: Subject) -> Step:
    rounds = subject.rounds.values()
    return Step(
        point=subject.point,
        device_s=median([sample for each in rounds for sample in each.device_s]),
        processes=len(rounds),
        rounds=min(len(each.device_s) for each in rounds),
        twin=_over_plain(subject, twin),
        added={
            share: Added(median(each.added_s[share] for each in rounds), _over_plain(subject, slowed(share)))
            for share in shares([subject])
        },
    )


def _over_plain(subject: Subject, arm: Rounds) -> Estimate:
    """An arm over the step, paired over all rounds."""
    rounds = subject.rounds.values()
    return paired([plain(each) for each in rounds], [arm(each) for each in rounds], seed=0).estimate
