"""Medians and ratios with 95 % percentile-bootstrap intervals, deterministic and fast.

The median of a bootstrap resample is an order statistic of the original samples, chosen by order statistics of
uniform numbers, so it is drawn directly instead of resampling n values a draw: the same distribution in O(draws).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
LEVEL = (2.5, 97.5)  # percentiles of a 95 % interval

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


def bootstrap(samples: Sequence[float], *, seed: int) -> Bootstrap:
    """The median of `samples` and its draws. Series that are to be combined need different seeds.

    Raises ValueError on no samples or on one that is not finite.
    """
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        shown = f"{list(samples[:4])}{'...' if len(samples) > 4 else ''}"
        raise ValueError(f"samples: expected one or more finite numbers, got {shown}")
    return Bootstrap(float(np.median(values)), _median_draws(values, seed), int(values.size))


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


def _median_draws(samples: Floats, seed: int) -> Floats:
    """Medians of DRAWS resamples of `samples` with replacement, each of the same size."""
    ordered = np.sort(samples)
    n = ordered.size
    rng = np.random.default_rng(seed)
    rank = (n + 1) // 2  # of the (lower) middle order statistic
    lower = rng.beta(rank, n + 1 - rank, size=DRAWS)  # the rank-th of n uniform numbers
    middle: Floats = ordered[np.minimum((lower * n).astype(np.intp), n - 1)]
    if n % 2:
        return middle
    # The next order statistic is the smallest of the n - rank uniform numbers that lie above `lower`.
    upper = lower + (1 - lower) * rng.beta(1, n - rank, size=DRAWS)
    return (middle + ordered[np.minimum((upper * n).astype(np.intp), n - 1)]) / 2
