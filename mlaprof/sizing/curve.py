"""A time over token counts, of a few measured ones: never falling as tokens grow, with its interval everywhere.

A step of more tokens does no less work, so a fall between two measured sizes is noise of the host, and a list chosen
on it would be chosen on noise. Measured medians are therefore pooled until none falls (weighted least squares, the
pool-adjacent-violators rule). Between two sizes the value is interpolated linearly, and its interval reaches from the
low end of the left one to the high end of the right one: all that a rising curve can do there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlaprof.analysis.stats import Estimate
from mlaprof.sizing.steps import Floats, Ints

LEAST_HALF_WIDTH = 0.002  # of a median: no clock here is better, whatever its interval says


@dataclass(frozen=True, eq=False)
class Curve:
    """Seconds at the measured token counts, rising; `low` and `high` bound them, rising as well."""

    tokens: Ints  # ascending
    seconds: Floats
    low: Floats
    high: Floats

    def at(self, tokens: Ints) -> Floats:
        """Seconds at each count; below the smallest measured one that one's, an upper bound."""
        return np.interp(tokens, self.tokens, self.seconds)

    def bounds(self, tokens: Ints) -> tuple[Floats, Floats]:
        """The interval at each count; below the smallest measured one it begins at 0."""
        right = np.minimum(np.searchsorted(self.tokens, tokens, side="left"), self.tokens.size - 1)
        left = np.searchsorted(self.tokens, tokens, side="right") - 1
        low = np.where(left < 0, 0.0, self.low[np.maximum(left, 0)])
        return low, self.high[right]

    def scaled(self, factor: float) -> Curve:
        return Curve(self.tokens, self.seconds * factor, self.low * factor, self.high * factor)


def curve_of(points: Sequence[tuple[int, Estimate]]) -> Curve:
    """The rising curve of (tokens, seconds). Raises ValueError on no point or on one size twice."""
    ordered = sorted(points, key=lambda point: point[0])
    tokens = np.array([count for count, _ in ordered], dtype=np.int64)
    if tokens.size == 0 or np.any(np.diff(tokens) == 0):
        raise ValueError(f"points: expected distinct token counts, got {tokens.tolist()}")
    medians = np.array([each.median for _, each in ordered])
    half = np.array([(each.ci_high - each.ci_low) / 2 for _, each in ordered])
    seconds = rising(medians, 1 / np.maximum(half, LEAST_HALF_WIDTH * medians) ** 2)
    # What was pooled is known no better than by how far it was moved.
    low = np.minimum(np.array([each.ci_low for _, each in ordered]), seconds)
    high = np.maximum(np.array([each.ci_high for _, each in ordered]), seconds)
    return Curve(tokens, seconds, np.minimum.accumulate(low[::-1])[::-1], np.maximum.accumulate(high))


def rising(values: Floats, weights: Floats) -> Floats:
    """The sequence without a fall that is nearest to values by weighted least squares."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, total, length = value, weight, 1
        while pools and pools[-1][0] > mean:
            before, heavy, long = pools.pop()
            mean = (before * heavy + mean * total) / (heavy + total)
            total, length = total + heavy, length + long
        pools.append((mean, total, length))
    return np.repeat([mean for mean, _, _ in pools], [length for _, _, length in pools])
