"""Batches as plain numbers: how token counts become requests, and where their pages are."""

from __future__ import annotations

import pytest

from mlaprof.layer.batch import Request, blocks_needed, place, requests_of

DEFAULTS = {"num_contexts": 1, "num_generations": 4, "next_n": 1}


@pytest.mark.parametrize(
    "phase,num_tokens,options,contexts,generations",
    [
        ("prefill", 7, {}, [7], []),
        ("prefill", 7, {"num_contexts": 3}, [3, 2, 2], []),
        ("prefill", 3, {"num_contexts": 3}, [1, 1, 1], []),
        ("decode", 3, {}, [], [1, 1, 1]),
        ("decode", 6, {"next_n": 2}, [], [2, 2, 2]),
        ("mixed", 9, {"num_contexts": 2}, [3, 2], [1, 1, 1, 1]),
        ("mixed", 5, {"next_n": 2, "num_generations": 2}, [1], [2, 2]),
    ],
)
def test_token_counts_become_requests(phase, num_tokens, options, contexts, generations):
    """Prompts as equal as they go, generations of next_n; every request on the same cached length."""
    got = requests_of(phase, num_tokens, 11, **{**DEFAULTS, **options})
    assert got == (tuple(Request(n, 11) for n in contexts), tuple(Request(n, 11) for n in generations))


@pytest.mark.parametrize(
    "phase,num_tokens,options,complaint",
    [
        ("decode", 5, {"next_n": 2}, "expected a multiple of next_n 2, got 5"),
        ("prefill", 2, {"num_contexts": 3}, "expected at least 3 in a prefill batch, got 2"),
        ("mixed", 4, {}, "expected at least 5 in a mixed batch, got 4"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(phase, num_tokens, options, complaint):
    """With what was expected and what came."""
    with pytest.raises(ValueError, match=complaint):
        requests_of(phase, num_tokens, 0, **{**DEFAULTS, **options})


def test_pages_are_shuffled_distinct_and_enough():
    """No page twice, out of order, the same for the same seed."""
    requests = tuple(Request(1, cached) for cached in (0, 63, 64, 200))
    assert blocks_needed(requests) == 1 + 1 + 2 + 4
    batch = place(requests[:2], requests[2:], num_blocks=20, seed=1)
    pages = [page for each in batch.pages for page in each]
    assert [len(each) for each in batch.pages] == [1, 1, 2, 4]
    assert len(set(pages)) == len(pages) and pages != sorted(pages)
    assert set(pages) <= set(range(20))
    assert batch == place(requests[:2], requests[2:], num_blocks=20, seed=1)
    assert batch != place(requests[:2], requests[2:], num_blocks=20, seed=2)


def test_a_pool_too_small_is_refused():
    """One page short."""
    with pytest.raises(ValueError, match="num_blocks: expected at least 2, got 1"):
        place((Request(65, 0),), (), num_blocks=1, seed=0)
