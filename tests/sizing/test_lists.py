"""The best list: brute force over every list agrees, under every budget, and no list given by hand is better."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlaprof.errors import ConfigError
from mlaprof.sizing.choose import Limits, candidates_of, choose
from mlaprof.sizing.costs import Costs
from mlaprof.sizing.lists import best_lists
from mlaprof.sizing.score import Expected, expected
from mlaprof.sizing.steps import Steps, steps_of

LARGEST = 40


@st.composite
def problems(draw: st.DrawFn, make_costs) -> tuple[Steps, Costs]:
    """A trace of up to nine counts and rising costs, flat stretches and eager crossings included."""
    counts = draw(st.lists(st.integers(1, LARGEST), min_size=1, max_size=9, unique=True))
    weights = draw(st.lists(st.floats(0.01, 10), min_size=len(counts), max_size=len(counts)))
    sizes = sorted({1, LARGEST, *draw(st.lists(st.integers(2, LARGEST - 1), max_size=4))})
    times = [
        list(itertools.accumulate(draw(st.floats(0, 3)) for _ in sizes)) for _ in ("graph", "eager")
    ]  # rising, from anything
    rows = [(size, 0.1 + times[0][at], 0.1 + times[1][at]) for at, size in enumerate(sizes)]
    share = draw(st.sampled_from([1.0, 0.6, 0.0]))
    return steps_of("drawn", counts, weights), make_costs(rows, padding_share=share)


def every_list(steps: Steps, costs: Costs, most: int) -> list[Expected]:
    """Each list of up to `most` counts of the trace, scored one by one."""
    counts = steps.tokens.tolist()
    lists = itertools.chain.from_iterable(itertools.combinations(counts, k) for k in range(1, most + 1))
    return [expected(each, steps, costs) for each in lists]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_brute_force_finds_nothing_better(data, make_costs):
    """For every length and largest size, not only for the best of all."""
    steps, costs = data.draw(problems(make_costs))
    most = data.draw(st.integers(1, 5))
    table = best_lists(steps, costs, steps.tokens, most)
    best: dict[tuple[int, int], float] = {}
    for each in every_list(steps, costs, most):
        key = (len(each.sizes), each.fallback)
        best[key] = min(best.get(key, np.inf), each.step_s)

    for (length, largest), seconds in best.items():
        place = int(np.searchsorted(steps.tokens, largest))
        assert table.seconds[length - 1, place] == pytest.approx(seconds, rel=1e-9)
        found = table.sizes(length - 1, place)
        assert (len(found), found[-1]) == (length, largest)
        assert expected(found, steps, costs).step_s == pytest.approx(seconds, rel=1e-9)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_brute_force_agrees_under_budgets(data, make_costs):
    """Memory, capture time and length at once; where nothing fits, neither finds a list."""
    steps, costs = data.draw(problems(make_costs))
    most = data.draw(st.integers(1, 4))
    limits = Limits(
        memory_bytes=data.draw(st.none() | st.integers(1, 8 * 2**20)),
        capture_s=data.draw(st.none() | st.floats(0.001, 0.03)),
        sizes=most,
    )
    fitting = [each for each in every_list(steps, costs, most) if fits(each, limits)]
    if not fitting:
        # A measured size below every count of the trace may still fit: it is a candidate, too.
        try:
            found = choose(steps, costs, limits, {}).chosen
        except ConfigError:
            return
        assert not found.sizes or (fits(found, limits) and not set(found.sizes) <= set(steps.tokens.tolist()))
        return
    found = choose(steps, costs, limits, {}).chosen
    eager = expected((), steps, costs).step_s

    assert found.step_s == pytest.approx(min(eager, *(each.step_s for each in fitting)), rel=1e-9)
    assert fits(found, limits)


def fits(found: Expected, limits: Limits) -> bool:
    assert found.memory_bytes is not None and found.capture_s is not None
    within = limits.memory_bytes is None or found.memory_bytes <= limits.memory_bytes
    return within and (limits.capture_s is None or found.capture_s <= limits.capture_s)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_list_by_hand_is_better_at_its_memory(data, make_costs):
    """Sizes between the counts of the trace, too."""
    steps, costs = data.draw(problems(make_costs))
    by_hand = data.draw(st.lists(st.integers(1, LARGEST), min_size=1, max_size=8))
    (baseline,) = choose(steps, costs, Limits(), {"by hand": by_hand}).baselines

    assert baseline.at_equal_memory is not None and baseline.found.memory_bytes is not None
    assert baseline.at_equal_memory.step_s <= baseline.found.step_s * (1 + 1e-9)
    assert baseline.at_equal_memory.memory_bytes <= baseline.found.memory_bytes


def test_equal_times_take_fewer_sizes_and_less_memory(make_costs):
    """Up to 64 tokens the graph takes as long as at one: one size is as good as five."""
    steps = steps_of("flat", [1, 8, 16, 32, 60])

    assert choose(steps, make_costs(), Limits(), {}).chosen.sizes == (60,)


def test_where_eager_is_faster_nothing_is_captured(make_costs):
    costs = make_costs([(1, 2.0, 1.0), (64, 3.0, 1.5)])

    chosen = choose(steps_of("eager", [3, 50]), costs, Limits(), {}).chosen

    assert (chosen.sizes, chosen.fallback, chosen.eager_share) == ((), 0, 1.0)


def test_a_front_falls_and_no_baseline_lies_below_it(make_costs):
    steps = steps_of("even", range(1, 1025))
    choice = choose(steps, make_costs(), Limits(), {"two": (64, 512), "many": range(16, 1025, 16)})
    memory = [point.memory_bytes for point in choice.front]
    times = [point.step_s for point in choice.front]

    assert memory == sorted(memory) and times == sorted(times, reverse=True) and len(times) > 10
    for baseline in choice.baselines:
        at_most = [p.step_s for p in choice.front if p.memory_bytes <= baseline.found.memory_bytes]
        assert min(at_most) <= baseline.found.step_s * (1 + 1e-3)  # the front is thinned


def test_too_many_counts_are_thinned_and_said(make_costs):
    costs = make_costs([(1, 1.0, 2.0), (30_000, 9.0, 10.0)])
    found, grain = candidates_of(steps_of("long", range(1, 30_001)), costs, {})

    assert grain == 4 and found.size <= 8192 and found[-1] == 30_000


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(memory_bytes=100), "the smallest budget that holds one is 1024 bytes"),
        (Limits(capture_s=0.001), "the smallest budget that holds one is 0.005s"),
    ],
    ids=["memory", "capture time"],
)
def test_a_budget_that_holds_nothing_names_the_smallest_that_would(make_costs, limits, words):
    with pytest.raises(ConfigError, match=words):
        choose(steps_of("one", [1, 900]), make_costs(), limits, {})


def test_the_smallest_budget_that_is_named_holds_a_size(make_costs):
    chosen = choose(steps_of("one", [1, 900]), make_costs(), Limits(memory_bytes=1024, capture_s=0.005), {}).chosen

    assert chosen.sizes == (1,)


def test_a_trace_beyond_the_run_is_refused(make_costs):
    with pytest.raises(ConfigError, match=r"a step of 2000 tokens, but the run measured up to 1024.*sweep up to 2000"):
        choose(steps_of("long", [1, 2000]), make_costs(), Limits(), {})


def test_a_memory_budget_needs_a_ledger(make_costs):
    with pytest.raises(ConfigError, match="no memory ledger"):
        choose(steps_of("one", [1]), make_costs(ledger=False), Limits(memory_bytes=2**30), {})
    assert choose(steps_of("one", [1]), make_costs(ledger=False), Limits(), {}).chosen.memory_bytes is None
