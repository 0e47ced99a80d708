"""The search, on spaces whose every time is known: what it promises at any point of it, and how soon it is near."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlaprof.tuning.search import EXHAUSTIVE, SPREAD, Space, ask, best

SMALL = [(a, b) for a in (16, 32, 64) for b in (1, 2, 4, 8)]
LARGE = list(itertools.product((16, 32, 64, 128), (16, 32, 64, 128, 256), (1, 2, 4, 8), (1, 2, 3, 4, 5, 6)))


def valley(values: tuple[int, ...]) -> float:
    """Seconds with one lowest place, a cliff beside it and an interaction of two fields."""
    a, b, c, d = np.log2(values)
    return 1e-4 * float(
        1 + 0.1 * (a - 6) ** 2 + 0.08 * (b - 5) ** 2 + 0.2 * abs(c - 2) + 0.03 * (d - 1.6) ** 2 + 0.5 * (a + b > 12)
    )


def searched(configurations, seconds, evaluations, *, seeds=(), seed=0):
    told = {}
    space = Space.of(configurations)
    for _ in range(evaluations):
        proposal = ask(space, told, seeds=seeds, seed=seed)
        if proposal is None:
            break
        each = proposal.values
        assert each not in told
        told[each] = seconds(each)
    return told


@given(st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_a_small_space_is_measured_whole_and_each_once(seed):
    told = searched(SMALL, lambda values: float(sum(values)), 100, seed=seed)
    assert set(told) == set(SMALL) and len(SMALL) <= EXHAUSTIVE
    assert best(told) == (16, 1)


def test_seeds_come_first_in_their_order_and_once():
    """What is deployed and the default are measured whatever comes after; one outside the space is passed over."""
    seeds = [LARGE[7], LARGE[3], LARGE[7], (1, 1, 1, 1)]
    assert list(searched(LARGE, valley, 5, seeds=seeds))[:2] == [LARGE[7], LARGE[3]]


def test_the_same_history_asks_the_same_question():
    """A search that was cut off goes on as if it had not been."""
    told = searched(LARGE, valley, 30, seed=5)
    space = Space.of(LARGE)
    again: dict = {}
    for each, seconds in told.items():
        proposal = ask(space, again, seed=5)
        assert proposal is not None and proposal.values == each
        again[each] = seconds


def test_a_space_of_failures_ends_without_a_best():
    told = searched(SMALL, lambda values: None, 100)
    assert len(told) == len(SMALL) and best(told) is None


def test_failures_are_avoided_and_never_asked_again():
    """Half of the space fails, the fast half of it beside it; the search ends in the half that runs."""
    told = searched(LARGE, lambda values: None if values[0] == 64 else valley(values), 64)
    found = best(told)
    assert found is not None and found[0] != 64
    assert sum(seconds is None for seconds in told.values()) < 24


@pytest.mark.parametrize("seed", range(3))
def test_few_of_many_come_near_the_best(seed):
    """480 configurations, 48 measured: within 2 % here, where random ones are 10 % off."""
    optimum = min(map(valley, LARGE))
    told = searched(LARGE, valley, 48, seed=seed)
    assert optimum / min(seconds for seconds in told.values() if seconds) > 0.98


def test_an_empty_space_is_a_programmers_error():
    with pytest.raises(ValueError, match="configurations: expected at least one, got none"):
        Space.of([])


@pytest.mark.parametrize("seed", range(5))
def test_a_form_of_few_configurations_is_met_as_soon_as_one_of_many(seed):
    """The optimum of prefill attention is of a form that has 14 of 490; by chance it is met after 35 launches."""
    rare = [(1, 16, warps) for warps in (4, 8)]
    many = [(0, *rest) for rest in itertools.product((16, 32, 64, 128), range(1, 65))]
    told = searched([*many, *rare], lambda values: float(values[1]), SPREAD, seed=seed)
    assert set(rare) <= set(told)
