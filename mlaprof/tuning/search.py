"""Which tile configuration to measure next, from what was measured so far. No clock, no GPU, no state of its own.

Up to EXHAUSTIVE configurations all of them, shuffled. Beyond: the seeds, a spread of random ones, and then in turns
what a forest of the measured ones expects to be fast (its mean less its doubt), the neighbours of the fastest, and
once in a while a random one, so that a forest misled early is not followed for ever. What failed counts as
slower than any that ran.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlaprof.facts import Origin
from mlaprof.tuning.forest import Floats, Forest

EXHAUSTIVE = 200
SPREAD = 12  # random configurations, of all forms alike, before the forest is asked
DOUBT = 1.0  # standard deviations of the trees that a configuration is given credit for
RANDOM_EVERY = 10  # one asked in so many is random
NEIGHBOUR_EVERY = 3
INCUMBENTS = 3  # whose neighbours are looked at
FAILED = 2.0  # times the slowest that ran
PATIENCE = 48  # configurations measured without a faster one, after which a space is left
LEAST = 64  # measured before patience may end it

Values = tuple[int, ...]
Told = Mapping[Values, float | None]
"""Configuration -> seconds, or None where it failed, in the order of measuring."""


class Proposal(NamedTuple):
    values: Values
    origin: Origin


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


def ask(
    space: Space,
    told: Told,
    *,
    pending: Iterable[Values] = (),
    seeds: Sequence[Values] = (),
    seed: int = 0,
    exhaustive: int = EXHAUSTIVE,
) -> Proposal | None:
    """The next configuration to measure; None when all were. The same for the same arguments.

    pending     asked for and not told yet: taken to be as slow as the median, so that they are not asked for again
    exhaustive  up to so many configurations, all of them
    """
    typical = [seconds for seconds in told.values() if seconds is not None]
    told = {**told, **dict.fromkeys(pending, median(typical) if typical else None)}
    order = [
        space.configurations[place] for place in np.random.default_rng(seed).permutation(len(space.configurations))
    ]
    known = set(space.configurations)
    for each in dict.fromkeys(seeds):
        if each in known and each not in told:
            return Proposal(each, "seed")
    whole = len(order) <= exhaustive
    for each in order if whole else _of_every_form(order)[:SPREAD]:
        if each not in told:
            return Proposal(each, "all" if whole else "random")
    left = np.array([place for place, each in enumerate(space.configurations) if each not in told], dtype=np.intp)
    if not len(left):
        return None
    turn = len(told)
    if turn % RANDOM_EVERY == 0:
        return Proposal(next(each for each in order if each not in told), "random")
    origin: Origin = "model"
    if turn % NEIGHBOUR_EVERY == 0:
        near = _neighbours(space, told, left)
        if len(near):
            left, origin = near, "neighbour"
    expected = _expected(space, told, left, seed=seed + turn)
    return Proposal(space.configurations[left[int(expected.argmin())]], origin)


def best(told: Told) -> Values | None:
    """The fastest configuration that ran."""
    ran = {each: seconds for each, seconds in told.items() if seconds is not None}
    return min(ran, key=lambda each: ran[each], default=None)


def settled(space: Space, told: Told) -> bool:
    """Whether a space too large to be measured whole has had no faster configuration for PATIENCE of them."""
    if len(space.configurations) <= EXHAUSTIVE or len(told) < LEAST:
        return False
    found = best(told)
    return found is None or len(told) - list(told).index(found) > PATIENCE


def _of_every_form(order: Sequence[Values]) -> list[Values]:
    """The same order, but the forms in turns: a form of few configurations would hardly be met by chance."""
    forms: dict[int, list[Values]] = {}
    for each in order:
        forms.setdefault(each[0], []).append(each)
    turns = itertools.zip_longest(*forms.values())
    return [each for turn in turns for each in turn if each is not None]


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
    """Of the configurations left, the nearest ones along a single field to any of the fastest."""
    ran = sorted((seconds, each) for each, seconds in told.items() if seconds is not None)
    every = np.array(space.configurations)
    wanted: set[int] = set()
    for _, each in itertools.islice(ran, INCUMBENTS):
        differs = every != np.array(each)
        for field in range(every.shape[1]):
            line = np.flatnonzero(differs[:, field] & (differs.sum(1) == 1))
            values = every[line, field]
            for side in (line[values < each[field]], line[values > each[field]]):
                if len(side):
                    wanted.add(int(side[np.abs(every[side, field] - each[field]).argmin()]))
    return np.array([place for place in left if int(place) in wanted], dtype=np.intp)
