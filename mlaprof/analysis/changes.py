"""By how much a cell changed: the ratio of two series with its interval, and the p-value of no change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np

from mlaprof.analysis.sides import Series
from mlaprof.analysis.spread import KNOWN_FREEDOM, Levels, Spread, known_spread, spreads
from mlaprof.analysis.stats import (
    Bootstrap,
    Estimate,
    benjamini_hochberg,
    geometric_mean,
    hierarchical,
    holm,
    mann_whitney,
    paired,
    student_interval,
)

Samples = Sequence[Sequence[float]]
"""The rounds of each process."""


@dataclass(frozen=True)
class Stepped:
    """How a step is run, as far as processes may differ in it."""

    way: str
    launches: int | None  # kernels outside graphs; None where they were not counted
    emulated: bool = False

    @property
    def steady(self) -> bool:
        """One graph on a GPU: processes may repeat it as well as they seem to."""
        return self.launches == 0 and not self.emulated


@dataclass(frozen=True)
class Change:
    """The ratio new / base of device times. The p-values are of one test of the two series, by itself and adjusted
    over all cells judged together, None before that: Holm's decides, Benjamini and Hochberg's is for reading."""

    ratio: Estimate
    p: float
    paired: bool  # round by round, as two arms of one process are measured
    processes: tuple[int, int]  # of base and new
    levels: Levels | None = None  # of an unpaired change
    shared: float = 0.0  # variance of what one process is known to move all steps of the way by
    by_processes: bool = False  # what processes differ by makes most of the interval: more rounds would not narrow it
    p_holm: float | None = None
    p_bh: float | None = None


def changes_of(
    pairs: Mapping[str, tuple[Series, Series]], steps: Mapping[str, Stepped], *, one_run: bool
) -> dict[str, Change]:
    """The Change of each pair of series, base and new, by key.

    steps  how the step of each key is run: cells of one way tell of each other how far processes lie apart

    Two arms of one run whose processes hold equal numbers of rounds are paired, and so is a series with itself: the
    ratio is of each round, and p of Wilcoxon's signed ranks. Otherwise the ratio is of the medians over all rounds, its
    interval of what the rounds and the processes (analysis/spread.py) both leave open, and p of Mann and Whitney's U
    over all rounds: processes that differ make that too small, so it may only veto what the interval found.
    """
    apart = {
        key: (_levels(base), _levels(new)) for key, (base, new) in pairs.items() if not _together(base, new, one_run)
    }
    by_way: dict[str, dict[str, Levels]] = {}
    for key, levels in apart.items():
        by_way.setdefault(steps[key].way, {})[key] = levels
    found = {key: spread for members in by_way.values() for key, spread in spreads(members).items()}
    return {
        key: _unpaired(key, *pair, apart[key], found.get(key), steps[key]) if key in apart else _paired(key, *pair)
        for key, pair in pairs.items()
    }


def mean_of(changes: Sequence[Change]) -> Estimate:
    """The geometric mean of their ratios; n is the number of ratios. A process may move all cells together, so the
    interval of unpaired ones is no narrower than the means of each process lie apart. Raises ValueError on none."""
    mean = geometric_mean([change.ratio for change in changes])
    levels = [change.levels for change in changes if change.levels]
    if len(levels) < len(changes) or len({change.processes for change in changes}) > 1:
        return mean
    sides = [np.mean([each[place] for each in levels], axis=0) for place in (0, 1)]
    freedom = sum(changes[0].processes) - 2
    squares = sum(float(np.sum((side - side.mean()) ** 2)) for side in sides)
    seen = Spread(squares / freedom, freedom) if freedom else Spread(0.0, KNOWN_FREEDOM)
    known = Spread(float(np.mean([change.shared**0.5 for change in changes])) ** 2, KNOWN_FREEDOM)
    spread = max(seen, known, key=lambda each: each.variance)
    error = spread.variance * sum(1 / side.size for side in sides)
    together = student_interval(mean.median, error, spread.freedom, mean.n)
    return max(mean, together, key=lambda each: each.ci_high)


def _together(base: Series, new: Series, one_run: bool) -> bool:
    return base == new or (one_run and _rounds(base) == _rounds(new))


def _paired(key: str, base: Series, new: Series) -> Change:
    befores, afters = _samples(base), _samples(new)
    seed = _seed(key, befores) ^ _seed(key, afters)  # of both: exchanging the sides inverts the interval
    ratio = paired(befores, afters, seed=seed).estimate
    return Change(ratio, _signed_ranks(befores, afters), True, (len(base), len(new)))


def _unpaired(key: str, base: Series, new: Series, levels: Levels, found: Spread | None, step: Stepped) -> Change:
    sides = _samples(base), _samples(new)
    seeds = [_seed(key, side) for side in sides]
    within = [_within(side, seed) for side, seed in zip(sides, seeds, strict=True)]
    known = known_spread(min(each.value for each in within), step.launches, emulated=step.emulated)
    spread = _believed(found, known, step)
    by_rounds = [each.draws.log_variance for each in within]
    # Processes that agree by chance tell no more than their rounds do.
    errors = [max(spread.variance / len(side), least) for side, least in zip(sides, by_rounds, strict=True)]
    value = within[1].value / within[0].value
    p = mann_whitney(*(np.concatenate(side).tolist() for side in sides))
    return Change(
        student_interval(value, sum(errors), spread.freedom, min(each.n for each in within)),
        p,
        paired=False,
        processes=(len(base), len(new)),
        levels=levels,
        shared=0.0 if step.steady else known.variance,
        by_processes=sum(errors) > 2 * sum(by_rounds),
    )


def _believed(found: Spread | None, known: Spread, step: Stepped) -> Spread:
    """What the processes showed; where that is less than is known of steps that are not steady, what is known."""
    if found is None or (not step.steady and found.variance < known.variance):
        return Spread(known.variance, max(known.freedom, found.freedom if found else 0))
    return found


def _within(processes: Samples, seed: int) -> Bootstrap:
    """The median over all rounds, and draws of what these leave open in the very processes that ran."""
    value = float(np.median(np.concatenate(processes)))
    levelled = [(np.asarray(each) * (value / np.median(each))).tolist() for each in processes]
    return replace(hierarchical(levelled, seed=seed), value=value)


def adjusted(changes: Mapping[str, Change]) -> dict[str, Change]:
    """The changes with p-values adjusted over all of them."""
    p_values = [change.p for change in changes.values()]
    rows = zip(changes.items(), holm(p_values), benjamini_hochberg(p_values), strict=True)
    return {key: replace(change, p_holm=p_holm, p_bh=p_bh) for (key, change), p_holm, p_bh in rows}


def _samples(series: Series) -> Samples:
    return [timing.device_s for timing in series.values()]


def _rounds(series: Series) -> dict[int, int]:
    return {process: len(timing.device_s) for process, timing in series.items()}


def _levels(series: Series) -> list[float]:
    return [float(np.log(np.median(samples))) for samples in _samples(series)]


def _seed(key: str, processes: Samples) -> int:
    """Of the samples, not of the side they are on: exchanging the runs inverts the interval."""
    return crc32(np.concatenate(processes).tobytes(), crc32(key.encode()))


def _signed_ranks(base: Samples, new: Samples) -> float:
    """The two-sided p-value of Wilcoxon's signed ranks over the log ratios of all rounds, as if independent."""
    from scipy.stats import wilcoxon  # costs a second to import, and many a command needs none

    logs = np.log(np.concatenate(new)) - np.log(np.concatenate(base))
    return float(wilcoxon(logs, alternative="two-sided").pvalue) if logs.any() else 1.0
