"""Steps by their token count: what a trace asks of capture sizes. Numpy only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Steps:
    """How often each token count occurs, of the steps that a piecewise graph could run."""

    name: str
    tokens: Ints  # ascending without repetition, each at least 1
    weights: Floats  # of each count; they sum to 1
    count: int  # steps, or lines of a weighted trace, behind the weights
    decode_only: int = 0  # steps left out because they hold generations alone: `full` graphs run those
    model: str = ""  # how requests became steps; empty where the trace lists steps

    @property
    def largest(self) -> int:
        return int(self.tokens[-1])

    def at_most(self, size: int) -> float:
        """The share of steps of at most `size` tokens."""
        return float(self.weights[: np.searchsorted(self.tokens, size, side="right")].sum())


def steps_of(
    name: str, tokens: Iterable[int], weights: Iterable[float] | None = None, *, decode_only: int = 0, model: str = ""
) -> Steps:
    """Count tokens, one entry a step, each for 1 or for its weight.

    Raises ValueError on no step, a count below 1, a weight that is not positive and finite, or unequal lengths.
    """
    counts = np.fromiter(tokens, dtype=np.int64)
    shares = np.ones(counts.size) if weights is None else np.fromiter(weights, dtype=np.float64)
    if counts.size == 0 or counts.size != shares.size:
        raise ValueError(f"weights: expected one for each of at least one step, got {shares.size} for {counts.size}")
    if counts.min() < 1:
        raise ValueError(f"tokens: expected at least 1 a step, got {counts.min()}")
    if not np.all(np.isfinite(shares)) or shares.min() <= 0:
        raise ValueError("weights: expected positive finite numbers")
    distinct, place = np.unique(counts, return_inverse=True)
    summed = np.bincount(place, weights=shares / shares.max())
    return Steps(name, distinct, summed / summed.sum(), int(counts.size), decode_only, model)
