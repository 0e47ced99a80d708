"""Which steps stand for a trace, and what a measured run says of a prediction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlaprof.sizing.check import predicted_step, strata
from mlaprof.sizing.score import expected
from mlaprof.sizing.steps import steps_of

COUNTS = st.lists(st.integers(1, 200), min_size=1, max_size=40)
SIZES = st.lists(st.integers(1, 150), min_size=1, max_size=8, unique=True).map(sorted)


@given(counts=COUNTS, sizes=SIZES)
def test_strata_are_steps_of_the_trace_and_share_all_of_it(counts, sizes):
    steps = steps_of("drawn", counts)
    found = strata(steps, sizes)

    assert {each.num_tokens for each in found} <= set(counts)
    assert sum(each.share for each in found) == pytest.approx(1.0)
    for each in found:
        holding = [size for size in sizes if size >= each.num_tokens]
        assert each.padded == (min(holding) if holding else None)


def test_two_lists_are_compared_by_the_same_steps():
    steps = steps_of("even", range(1, 101))
    found = [[each.num_tokens for each in strata(steps, sizes, 10)] for sizes in ((8, 100), (50,), ())]

    assert found[0] == pytest.approx([5, 15, 25, 35, 45, 55, 65, 75, 85, 95], abs=1)
    assert found == [found[0]] * 3


def test_a_count_that_fills_several_parts_has_their_share():
    (only, rest) = strata(steps_of("two", [5, 5, 5, 9]), (8,), 4)

    assert (only.num_tokens, only.padded, only.share) == (5, 8, 0.75)
    assert (rest.num_tokens, rest.padded, rest.share) == (9, None, 0.25)


@given(counts=COUNTS, sizes=SIZES)
def test_the_expected_step_is_the_mean_of_its_steps(counts, sizes, make_costs):
    """Two ways to the same number: scored at once, and step by step."""
    costs = make_costs(padding_share=0.7)
    one_by_one = sum(predicted_step(count, sizes, costs) for count in counts) / len(counts)

    assert expected(sizes, steps_of("drawn", counts), costs).step_s == pytest.approx(one_by_one)
