"""A curve never falls, passes through what rises, and its interval holds what a rising curve can do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlaprof.analysis.stats import Estimate
from mlaprof.sizing.curve import curve_of, rising

VALUES = st.lists(st.floats(0.1, 10), min_size=1, max_size=12)


def estimate(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value, value * (1 - half), value * (1 + half), 20)


@given(values=VALUES)
def test_the_fit_never_falls_and_keeps_the_weighted_mean(values):
    weights = np.linspace(1, 2, len(values))
    fit = rising(np.array(values), weights)

    assert np.all(np.diff(fit) >= -1e-12)
    assert fit @ weights == pytest.approx(np.array(values) @ weights)


@given(values=VALUES)
def test_what_rises_is_left_as_it_is(values):
    ordered = np.sort(np.array(values))

    assert rising(ordered, np.ones(ordered.size)) == pytest.approx(ordered)


def test_a_fall_is_pooled_by_what_is_known_better():
    """The host's 2.60 ms at two tokens, far less certain than its neighbours, moves them little."""
    fit = rising(np.array([1.8, 2.6, 1.9]), np.array([100.0, 1.0, 100.0]))

    assert fit == pytest.approx([1.8, (2.6 + 190) / 101, (2.6 + 190) / 101])


@given(values=VALUES, tokens=st.integers(1, 5000))
def test_the_interval_holds_the_value_everywhere(values, tokens):
    curve = curve_of([(2 ** (at + 1), estimate(value)) for at, value in enumerate(values)])
    at = np.array([min(tokens, int(curve.tokens[-1]))])
    low, high = curve.bounds(at)

    assert low[0] <= curve.at(at)[0] <= high[0]


def test_between_sizes_the_interval_spans_both():
    curve = curve_of([(64, estimate(1.0)), (256, estimate(2.0))])
    low, high = curve.bounds(np.array([64, 100, 256]))

    assert low == pytest.approx([0.99, 0.99, 1.98])
    assert high == pytest.approx([1.01, 2.02, 2.02])
    assert curve.at(np.array([160])) == pytest.approx([1.5])


def test_below_the_smallest_size_its_time_is_the_bound():
    curve = curve_of([(64, estimate(1.0)), (256, estimate(2.0))])
    low, high = curve.bounds(np.array([3]))

    assert (low[0], curve.at(np.array([3]))[0], high[0]) == pytest.approx((0.0, 1.0, 1.01))
