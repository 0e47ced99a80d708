"""The scheduler's model: every prompt token is computed once, no step exceeds its limits, decode goes first."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlaprof.errors import ConfigError
from mlaprof.sizing import scheduler
from mlaprof.sizing.named import DISTRIBUTIONS, NAMED, requests_of
from mlaprof.sizing.scheduler import Request, Scheduler, run

REQUESTS = st.lists(
    st.builds(
        lambda gap, prompt, output, cached: (gap, prompt, output, min(cached, prompt - 1)),
        st.floats(0, 5),
        st.integers(1, 300),
        st.integers(1, 12),
        st.integers(0, 300),
    ),
    min_size=1,
    max_size=12,
)


def arriving(rows) -> list[Request]:
    now, found = 0.0, []
    for gap, prompt, output, cached in rows:
        now += gap
        found.append(Request(now, prompt, output, cached))
    return found


def tokens_of(steps) -> list[int]:
    """Each step's tokens, as many times as it occurs."""
    times = (steps.weights * steps.count).round().astype(int)
    return [count for count, often in zip(steps.tokens.tolist(), times.tolist(), strict=True) for _ in range(often)]


def test_a_prompt_is_chunked_and_decoding_takes_room_first(make_costs):
    """100 prompt tokens in steps of 64; the second request's prompt shares its step with a decoding token."""
    requests = [Request(0, 100, 4), Request(0, 30, 1)]
    steps = run("two", requests, Scheduler(64, 8, 1), make_costs().eager)

    assert sorted(tokens_of(steps)) == [3, 36 + 28, 64] or sorted(tokens_of(steps)) == [3, 64, 64]
    assert steps.count == 3 and steps.decode_only == 2
    assert "chunked prefill, 64 tokens and 8 requests at most" in steps.model


@settings(max_examples=100, deadline=None)
@given(rows=REQUESTS, most=st.integers(9, 128), batch=st.integers(1, 8))
def test_every_token_is_run_once(rows, most, batch, make_costs):
    """Prompt tokens that are not cached, and every output token but the first, which comes with the prompt."""
    requests = arriving(rows)
    sizes: list[int] = []
    steps = run("drawn", requests, Scheduler(most, batch, 1), make_costs().eager)
    sizes = tokens_of(steps)
    prompts = sum(each.prompt_tokens - each.cached_tokens for each in requests)
    decoded = sum(each.output_tokens - 1 for each in requests)

    assert max(sizes) <= most
    assert prompts <= sum(sizes) <= prompts + decoded
    assert sum(sizes) + steps.decode_only * batch >= prompts + decoded


def test_one_request_at_a_time_is_served_one_after_the_other(make_costs):
    requests = [Request(0, 10, 3), Request(0, 20, 2)]
    steps = run("serial", requests, Scheduler(64, 1, 1), make_costs().eager)

    assert sorted(tokens_of(steps)) == [10, 20]
    assert steps.decode_only == 3


def test_what_the_prefix_cache_holds_is_not_computed(make_costs):
    steps = run("cached", [Request(0, 1000, 1, 990)], Scheduler(64, 4, 1), make_costs().eager)

    assert steps.tokens.tolist() == [10]


def test_limits_that_cannot_serve_are_refused(make_costs, monkeypatch):
    with pytest.raises(ConfigError, match="8 requests fill every step"):
        run("full", [Request(0, 1, 1)], Scheduler(8, 8, 1), make_costs().eager)
    monkeypatch.setattr(scheduler, "MOST_STEPS", 5)
    with pytest.raises(ConfigError, match="more than 5 steps"):
        run("long", [Request(0, 1, 100)], Scheduler(64, 8, 1), make_costs().eager)


@pytest.mark.parametrize("name", NAMED)
def test_named_requests_are_the_same_everywhere(name):
    """A golden sum: another numpy that draws otherwise would be another trace."""
    requests = requests_of(NAMED[name])
    sums = {"chat": (6000, 824073), "long-cached": (3000, 32044749), "agentic": (5000, 52087005)}

    assert requests == requests_of(NAMED[name])
    assert (len(requests), sum(each.prompt_tokens for each in requests)) == sums[name]
    assert all(0 <= each.cached_tokens < each.prompt_tokens for each in requests)


def test_distributions_reach_the_largest_count():
    assert DISTRIBUTIONS["uniform"](100).weights == pytest.approx([0.01] * 100)
    assert DISTRIBUTIONS["log-uniform"](100).weights[9] / DISTRIBUTIONS["log-uniform"](100).weights[0] == pytest.approx(
        0.1
    )
