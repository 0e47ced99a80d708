"""Bootstrap draws of a median, as the few values that they come to and how often they come to each.

The median of a bootstrap resample is an order statistic of the original samples, chosen by order statistics of
uniform numbers, so it is drawn directly instead of resampling n values a draw: the same distribution in O(draws).
Which samples are chosen, and how often, is the same for every series of as many samples. So it is drawn once for all
of them, and an interval is read off a hundred values instead of ten thousand draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
LEVEL = (0.025, 0.975)  # the ends of a 95 % interval

Floats = NDArray[np.float64]
Places = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Chosen:
    """Which of n sorted samples DRAWS medians come to."""

    lower: Places  # [values] the middle one of an odd number of samples, the lower middle one of an even number
    upper: Places  # [values] the upper middle one; of an odd number `lower`
    times: Places  # [values] how many draws come to it
    which: Places  # [draws] the place of each draw's value


@dataclass(frozen=True, eq=False)
class Draws:
    """DRAWS draws of a statistic."""

    values: Floats  # [values] what they come to
    chosen: Chosen | None  # None: each value is one draw
    seed: int  # of the order of the draws

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the 95 % percentile interval, between two draws in proportion."""
        if self.chosen is None:
            ordered, ends = np.sort(self.values), _NEIGHBOURS
        else:
            order = np.argsort(self.values)
            ordered = self.values[order]
            ends = np.searchsorted(np.cumsum(self.chosen.times[order]), _NEIGHBOURS, side="right")
        low, above_low, high, above_high = ordered[ends].tolist()
        return (above_low - low) * _BETWEEN[0] + low, (above_high - high) * _BETWEEN[1] + high

    @property
    def log_variance(self) -> float:
        """The variance of the logarithms of the draws, which must be positive."""
        logs = np.log(self.values)
        times = None if self.chosen is None else self.chosen.times
        return float(np.average((logs - np.average(logs, weights=times)) ** 2, weights=times))

    def map(self, change: Callable[[Floats], Floats]) -> Draws:
        """The draws changed one by one."""
        return Draws(change(self.values), self.chosen, self.seed)

    def plus_student(self, freedom: int, scale: float) -> Draws:
        """The draws, each with an independent draw of Student's t times `scale` added."""
        rng = np.random.default_rng(self.seed)
        assert self.chosen is not None
        medians = self.values[self.chosen.which[rng.permutation(DRAWS)]]
        return Draws(medians + scale * rng.permutation(_student(freedom)), None, self.seed)


def median_draws(ordered: Floats, effective: float, seed: int) -> Draws:
    """Medians of resamples of the sorted samples, each of `effective` independent ones, rounded down."""
    chosen = _chosen(ordered.size, max(1, int(effective)))
    middle = ordered[chosen.lower]
    return Draws(middle if ordered.size % 2 else (middle + ordered[chosen.upper]) / 2, chosen, seed)


_RANKS = np.array(LEVEL) * (DRAWS - 1)
_NEIGHBOURS = np.stack([np.floor(_RANKS), np.floor(_RANKS) + 1], axis=1).astype(np.intp).ravel()
_BETWEEN = (_RANKS - np.floor(_RANKS)).tolist()


@lru_cache(maxsize=512)  # 40 MB at most
def _chosen(n: int, effective: int) -> Chosen:
    lower, upper = (np.minimum((share * n).astype(np.intp), n - 1) for share in _shares(effective, n % 2 == 0))
    pairs, which, times = np.unique(lower * n + upper, return_inverse=True, return_counts=True)
    return Chosen(pairs // n, pairs % n, times, which)


@lru_cache(maxsize=128)  # the slow part
def _shares(n: int, even: bool) -> tuple[Floats, Floats]:
    """Draws of the middle one of n uniform numbers, or of the middle two: of what share of the samples lies below."""
    rng = np.random.default_rng(n)
    rank = n / 2 if even else (n + 1) / 2  # of the (lower) middle order statistic
    lower = rng.beta(rank, n + 1 - rank, size=DRAWS)  # the rank-th of so many uniform numbers
    if not even:
        return lower, lower
    # The next order statistic is the smallest of the uniform numbers that lie above `lower`.
    return lower, lower + (1 - lower) * rng.beta(1, n - rank, size=DRAWS)


@lru_cache(maxsize=16)
def _student(freedom: int) -> Floats:
    return np.random.default_rng(freedom).standard_t(freedom, size=DRAWS)
