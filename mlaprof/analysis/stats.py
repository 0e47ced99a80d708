"""Medians and ratios with 95 % percentile-bootstrap intervals, and p-values over a grid; deterministic and fast.

The median of a bootstrap resample is an order statistic of the original samples, chosen by order statistics of
uniform numbers, so it is drawn directly instead of resampling n values a draw: the same distribution in O(draws).
Rounds that follow each other alike count for fewer: resampling blocks of them spreads the median as resampling that
many single ones would (`_inflation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
LEVEL = (2.5, 97.5)  # percentiles of a 95 % interval
BLOCK = 8  # rounds; a proposal: no run has settled yet over how many rounds neighbours are alike

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A median or a ratio with its 95 % interval; n is the number of samples (of a mean: of ratios) behind it."""

    median: float
    ci_low: float
    ci_high: float
    n: int

    @property
    def half_width(self) -> float:
        """Half the interval relative to the median: 0.01 reads as +-1 %."""
        return (self.ci_high - self.ci_low) / 2 / abs(self.median) if self.median else 0.0


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """A statistic and DRAWS bootstrap draws of it, to be combined before an interval is taken."""

    value: float
    draws: Floats
    n: int

    @property
    def estimate(self) -> Estimate:
        """The value with its interval; of one or two samples that is their range."""
        low, high = np.percentile(self.draws, LEVEL)
        # The interval of few samples may miss its own value by rounding.
        return Estimate(self.value, min(float(low), self.value), max(float(high), self.value), self.n)


def bootstrap(samples: Sequence[float], *, seed: int, block: int = 1) -> Bootstrap:
    """The median of `samples` and its draws. Series that are to be combined need different seeds.

    block 1 takes the samples as independent; more resamples blocks of so many neighbours, fewer in a series of less
    than four blocks, and is never narrower than block 1. Raises ValueError on no samples or on one that is not finite.
    """
    values = _finite(samples)
    rng = np.random.default_rng(seed)
    return Bootstrap(
        float(np.median(values)),
        _median_draws(np.sort(values), values.size / _inflation(values, block), rng, DRAWS),
        int(values.size),
    )


def hierarchical(processes: Sequence[Sequence[float]], *, seed: int, block: int = BLOCK) -> Bootstrap:
    """The median over the rounds of all processes and its draws: processes are resampled, then blocks of their rounds.

    One process is `bootstrap` of its rounds. Raises ValueError on no process, or on one that `bootstrap` would refuse.
    """
    if not processes:
        raise ValueError("processes: expected at least one, got none")
    if len(processes) == 1:
        return bootstrap(processes[0], seed=seed, block=block)
    series = [_finite(samples) for samples in processes]
    sizes = np.array([values.size for values in series])
    inflations = np.array([_inflation(values, block) for values in series])
    rng = np.random.default_rng(seed)
    picks = np.sort(rng.integers(0, len(series), size=(DRAWS, len(series))), axis=1)
    draws = []
    for chosen, count in zip(*np.unique(picks, axis=0, return_counts=True), strict=True):
        pooled = np.sort(np.concatenate([series[place] for place in chosen]))
        # The counts of the processes' rounds below the median are independent: their variances add up.
        inflation = np.average(inflations[chosen], weights=sizes[chosen])
        draws.append(_median_draws(pooled, pooled.size / float(inflation), rng, int(count)))
    return Bootstrap(
        float(np.median(np.concatenate(series))),
        rng.permutation(np.concatenate(draws)),  # in the order of the picks, two arms would be drawn together
        int(sizes.sum()),
    )


def quotient(base: Bootstrap, new: Bootstrap) -> Bootstrap:
    """new / base of two independent statistics; n is the smaller. Raises ValueError unless both are positive."""
    for name, each in (("base", base), ("new", new)):
        if each.draws.min() <= 0:
            raise ValueError(f"{name}: expected positive samples, got {each.draws.min():g}")
    return Bootstrap(new.value / base.value, new.draws / base.draws, min(base.n, new.n))


def geometric_mean(ratios: Sequence[Bootstrap]) -> Bootstrap:
    """The geometric mean of independent ratios, carrying each one's uncertainty; n is the number of ratios.

    Raises ValueError on no ratios.
    """
    if not ratios:
        raise ValueError("ratios: expected at least one, got none")
    value = float(np.exp(np.mean([np.log(each.value) for each in ratios])))
    return Bootstrap(value, np.exp(np.mean([np.log(each.draws) for each in ratios], axis=0)), len(ratios))


def mann_whitney(base: Sequence[float], new: Sequence[float]) -> float:
    """The two-sided p-value of Mann and Whitney's U: how likely series of one distribution would differ so.

    Rounds count as independent. Raises ValueError on an empty series or one that is not finite.
    """
    from scipy.stats import mannwhitneyu  # costs a second to import, and many a command needs none

    return float(mannwhitneyu(_finite(base), _finite(new), alternative="two-sided").pvalue)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values adjusted after Holm (1979): below 0.05 bounds the chance of any false one among them by 5 %."""
    order, p = _ascending(p_values)
    adjusted = np.maximum.accumulate(p * np.arange(p.size, 0, -1))
    return _in_place(order, adjusted)


def benjamini_hochberg(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values adjusted after Benjamini and Hochberg (1995): of those below 0.05 about 5 % are false."""
    order, p = _ascending(p_values)
    adjusted = np.minimum.accumulate((p * p.size / np.arange(1, p.size + 1))[::-1])[::-1]
    return _in_place(order, adjusted)


def _ascending(p_values: Sequence[float]) -> tuple[NDArray[np.intp], Floats]:
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values: expected numbers from 0 to 1, got {list(p_values)[:4]}")
    order = np.argsort(p, kind="stable")
    return order, p[order]


def _in_place(order: NDArray[np.intp], adjusted: Floats) -> tuple[float, ...]:
    back = np.empty_like(adjusted)
    back[order] = np.minimum(adjusted, 1.0)
    return tuple(back.tolist())


def _finite(samples: Sequence[float]) -> Floats:
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        shown = f"{list(samples[:4])}{'...' if len(samples) > 4 else ''}"
        raise ValueError(f"samples: expected one or more finite numbers, got {shown}")
    return values


def _inflation(values: Floats, block: int) -> float:
    """By how much resampling blocks of neighbours spreads the median's rank more than resampling single samples: >= 1.

    The median follows how many samples lie below it, and of that count the circular block bootstrap has the variance
    of the blocks' sums (Politis and Romano 1992). Below 1 it is noise of a short series, and would claim too much.
    """
    length = min(block, values.size // 4)  # of fewer blocks the variance is not to be had
    side = np.sign(values - np.median(values))
    spread = float(np.mean(side**2))
    if length < 2 or spread == 0:
        return 1.0
    running = np.cumsum(np.concatenate([[0.0], side, side[: length - 1]]))
    sums = running[length:] - running[:-length]
    return max(1.0, float(np.mean(sums**2)) / (length * spread))


def _median_draws(ordered: Floats, effective: float, rng: np.random.Generator, draws: int) -> Floats:
    """Medians of `draws` resamples of the sorted samples, each of `effective` independent ones."""
    n = ordered.size
    rank = effective / 2 if n % 2 == 0 else (effective + 1) / 2  # of the (lower) middle order statistic
    lower = rng.beta(rank, effective + 1 - rank, size=draws)  # the rank-th of so many uniform numbers
    middle: Floats = ordered[np.minimum((lower * n).astype(np.intp), n - 1)]
    if n % 2:
        return middle
    # The next order statistic is the smallest of the uniform numbers that lie above `lower`.
    upper = lower + (1 - lower) * rng.beta(1, effective - rank, size=draws)
    return (middle + ordered[np.minimum((upper * n).astype(np.intp), n - 1)]) / 2
