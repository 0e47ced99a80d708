"""How far apart fresh processes of one run lie, cell by cell, from the few processes that two runs have of each cell.

Two runs of three processes tell the spread of one cell with 4 degrees of freedom, so little that an interval built on
that alone hides a change of 2 %. But the cells of a way tell of each other: each cell's variance is drawn towards that
of all, by as much as the cells agree among themselves (Smyth 2004, "Linear models and empirical Bayes methods").

And few processes may agree by chance. Measured (H100 80GB HBM3, torch 2.11, driver 580.159, 2026-11-23, 5 to 12 fresh
processes, 8 sizes, 3 modes; order, cpus, pinned and streams of benchmarks/protocol.py): a process draws, for its life,
how far apart the device starts the kernels of a stream. Medians of one layer's 72 launches fall into groups 12 us
apart, by as much at 0.4 ms as at 2 ms, by half of it with the 29 launches of split_piecewise, and by less than 0.2 % in
one graph. The CPU that submits changes nothing; another stream draws anew. With three processes on either side, all of
one run are of one group and all of the other of the other in 3 of 100 comparisons: a change of 3 % that is none. So no
step is taken to spread less than its launches do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from mlaprof.analysis.draws import Floats

Levels = tuple[Sequence[float], Sequence[float]]
"""The log medians of each process of base and of new."""

LAUNCH_SPREAD_S = 0.09e-6  # standard deviation over processes, of the device time of a kernel outside graphs
GRAPH_SPREAD = 0.002  # of a step in one graph, relative: the most that 12 processes showed
EAGER_SPREAD = 0.016  # of a step whose launches were not counted, relative: that of a short one
EMULATED_SPREAD = 0.18  # of a step on a CPU that others share: the most of 11 steps in 6 processes within 8 minutes
KNOWN_FREEDOM = 11  # the 12 processes behind those

MANY = 1_000  # degrees of freedom; more are no different
_LEAST = 1e-5  # of the median variance: cells whose processes agree by chance have no logarithm


@dataclass(frozen=True)
class Spread:
    """The variance of the log median of one process, what its own rounds leave open included."""

    variance: float
    freedom: float  # degrees of freedom behind it


def known_spread(device_s: float, launches: int | None, *, emulated: bool = False) -> Spread:
    """What is known beforehand of a step that takes the device so long, by the kernels that it launches outside graphs;
    None where they were not counted."""
    if emulated:
        return Spread(EMULATED_SPREAD**2, KNOWN_FREEDOM)
    launched = EAGER_SPREAD if launches is None else LAUNCH_SPREAD_S * launches / device_s
    relative = max(GRAPH_SPREAD, launched)
    return Spread(relative**2, KNOWN_FREEDOM)


def spreads(levels: Mapping[str, Levels]) -> dict[str, Spread]:
    """The Spread of each cell, taken to be the same in base and new; none of a cell with one process in either."""
    free = {key: sum(len(side) - 1 for side in sides) for key, sides in levels.items()}
    found: dict[str, Spread] = {}
    for freedom, keys in groupby(sorted((key for key in levels if free[key]), key=free.__getitem__), free.__getitem__):
        members = list(keys)
        own = np.array([_squares(levels[key]) / freedom for key in members])
        common, gained = _moderator(own, freedom, _independent([levels[key] for key in members], float(own.mean())))
        total = freedom + gained
        drawn = (gained * common + freedom * own) / total
        found |= {key: Spread(float(each), total) for key, each in zip(members, drawn, strict=True)}
    return found


def _squares(sides: Levels) -> float:
    return sum(float(np.sum((np.asarray(side) - np.mean(side)) ** 2)) for side in sides)


def _moderator(own: Floats, freedom: int, independent: float) -> tuple[float, float]:
    """(the variance that all cells are drawn towards, the degrees of freedom that this is worth to each).

    independent  how many of the cells count as such: they gain no more than so many cells have
    """
    from scipy.special import digamma, polygamma

    if len(own) < 2 or not own.any():
        return float(own.mean()), 0.0
    logs = np.log(np.maximum(own, _LEAST * np.median(own[own > 0]))) - digamma(freedom / 2) + np.log(freedom / 2)
    excess = float(np.var(logs, ddof=1) - polygamma(1, freedom / 2))
    prior = 2 * _inverse_trigamma(excess) if excess > 0 else float(MANY)
    gained = min(prior, (independent - 1) * freedom, float(MANY))
    shift = float(digamma(prior / 2) - np.log(prior / 2)) if excess > 0 else 0.0
    return float(np.exp(logs.mean() + shift)), gained


def _inverse_trigamma(value: float) -> float:
    """x where trigamma(x) is value, by Newton's method on 1 / trigamma, which is nearly straight."""
    from scipy.special import polygamma

    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-8:
            break
    return x


def _independent(cells: Sequence[Levels], variance: float) -> float:
    """How many of the cells tell of their own: 1 where a process moves all of them together, else up to all of them.

    The variance of a mean over independent cells is that of one divided by their number.
    """
    shapes = {tuple(len(side) for side in sides) for sides in cells}
    if len(shapes) != 1 or variance == 0:
        return 1.0
    shared: list[NDArray[np.float64]] = [
        np.mean([np.asarray(sides[place]) - np.mean(sides[place]) for sides in cells], axis=0) for place in (0, 1)
    ]
    freedom = sum(len(side) - 1 for side in cells[0])
    together = sum(float(np.sum(side**2)) for side in shared) / freedom
    return float(np.clip(variance / together, 1, len(cells))) if together > 0 else float(len(cells))
