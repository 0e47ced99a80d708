"""Which tile configuration to measure next, from what was measured so far. No clock, no GPU, no state of its own.

Up to EXHAUSTIVE configurations all of them, shuffled. Beyond: the seeds, a spread of random ones, and then in turns
what a forest of the measured ones expects to be fast (its mean less its doubt), the neighbours of the fastest, and
once in a while a random one, so that a forest misled early is not followed for ever. What failed counts as
slower than any that ran.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlaprof.tuning.forest import Floats, Forest

EXHAUSTIVE = 200
SPREAD = 12  # random configurations before the forest is asked
DOUBT = 1.0  # standard deviations of the trees that a configuration is given credit for
RANDOM_EVERY = 10  # one asked in so many is random
NEIGHBOUR_EVERY = 3
FAILED = 2.0  # times the slowest that ran

Values = tuple[int, ...]
Told = Mapping[Values, float | None]
"""Configuration -> seconds, or None where it failed, in the order of measuring."""


@dataclass(frozen=True)
class Space:
    """Every legal configuration once, a value a field each; features [n, d] for the forest, by default log2 of them."""

    configurations: tuple[Values, ...]
    features: Floats

    @classmethod
    def of(cls, configurations: Sequence[Values]) -> Space:
        """Raises ValueError on an empty space."""
        if not configurations:
            raise ValueError("configurations: expected at least one, got none")
        values = np.array(configurations, dtype=np.float64)
        return cls(tuple(configurations), np.log2(np.maximum(values, 0.5)))


def ask(space: Space, told: Told, *, seeds: Sequence[Values] = (), seed: int = 0) -> Values | None:
    """The next configuration to measure; None when all were. The same for the same space, told, seeds and seed."""
    order = [
        space.configurations[place] for place in np.random.default_rng(seed).permutation(len(space.configurations))
    ]
    known = set(space.configurations)
    first = [each for each in dict.fromkeys(seeds) if each in known]
    if len(order) > EXHAUSTIVE:
        first += order[:SPREAD]
    else:
        first += order
    for each in first:
        if each not in told:
            return each
    left = np.array([place for place, each in enumerate(space.configurations) if each not in told], dtype=np.intp)
    if not len(left):
        return None
    turn = len(told)
    if turn % RANDOM_EVERY == 0:
        return next(each for each in order if each not in told)
    if turn % NEIGHBOUR_EVERY == 0:
        near = _neighbours(space, told, left)
        if len(near):
            left = near
    expected = _expected(space, told, left, seed=seed + turn)
    return space.configurations[left[int(expected.argmin())]]


def best(told: Told) -> Values | None:
    """The fastest configuration that ran."""
    ran = {each: seconds for each, seconds in told.items() if seconds is not None}
    return min(ran, key=lambda each: ran[each], default=None)


def _expected(space: Space, told: Told, left: NDArray[np.intp], *, seed: int) -> Floats:
    """What the forest thinks of the configurations left: log seconds less its doubt."""
    places = {each: place for place, each in enumerate(space.configurations)}
    ran = [seconds for seconds in told.values() if seconds is not None]
    worst = FAILED * max(ran, default=1.0)
    rows = [places[each] for each in told if each in places]
    targets = np.log([worst if seconds is None else seconds for each, seconds in told.items() if each in places])
    mean, doubt = Forest(space.features[rows], targets, seed=seed).predict(space.features[left])
    return mean - DOUBT * doubt


def _neighbours(space: Space, told: Told, left: NDArray[np.intp]) -> NDArray[np.intp]:
    """Of the configurations left, those that differ from one of the three fastest by one step of one field."""
    ran = sorted((seconds, each) for each, seconds in told.items() if seconds is not None)
    steps = [sorted({each[field] for each in space.configurations}) for field in range(len(space.configurations[0]))]
    wanted: set[Values] = set()
    for _, each in itertools.islice(ran, 3):
        for field, values in enumerate(steps):
            at = values.index(each[field])
            for other in values[max(at - 1, 0) : at + 2]:
                wanted.add((*each[:field], other, *each[field + 1 :]))
    return np.array([place for place in left if space.configurations[place] in wanted], dtype=np.intp)
