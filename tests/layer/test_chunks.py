"""Causal bounds and prefill chunks: exact numbers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlaprof.layer.batch import Request
from mlaprof.layer.chunks import Chunk, causal_bounds, split_prefill_chunks


def requests(*new_tokens: int, cached: int = 0) -> list[Request]:
    return [Request(new, cached) for new in new_tokens]


def spans(chunks: tuple[Chunk, ...]) -> list[tuple[int, int, int, int]]:
    return [(chunk.q_start, chunk.q_end, chunk.k_start, chunk.k_end) for chunk in chunks]


def test_a17_bounds_of_upstreams_example():
    """Lengths 3 and 4, no cache."""
    assert causal_bounds(requests(3, 4)) == ((0, 0, 0, 3, 3, 3, 3), (1, 2, 3, 4, 5, 6, 7))


def test_a17_bounds_count_cached_tokens():
    """ks is the request's first key; ke = ks + cached + local query + 1."""
    assert causal_bounds([Request(2, 5), Request(1, 0), Request(2, 1)]) == ((0, 0, 7, 8, 8), (6, 7, 8, 10, 11))
    assert causal_bounds([]) == ((), ())


@pytest.mark.parametrize(
    "lengths,expected",
    [
        pytest.param((200, 300, 400), [(0, 900, 0, 900)], id="all fit in one"),
        pytest.param((400, 500, 300, 600), [(0, 900, 0, 900), (900, 1800, 900, 1800)], id="greedy packing"),
        pytest.param(
            (2500,),
            [(0, 1000, 0, 1000), (1000, 2000, 0, 2000), (2000, 2500, 0, 2500)],
            id="a long request in Q-blocks",
        ),
        pytest.param(
            (400, 2500, 300),
            [
                (0, 400, 0, 400),
                (400, 1400, 400, 1400),
                (1400, 2400, 400, 2400),
                (2400, 2900, 400, 2900),
                (2900, 3200, 2900, 3200),
            ],
            id="packing stops at a long request",
        ),
        pytest.param((1000,), [(0, 1000, 0, 1000)], id="exactly the limit"),
        pytest.param((600, 400, 1), [(0, 1000, 0, 1000), (1000, 1001, 1000, 1001)], id="exactly the limit, packed"),
        pytest.param((1001,), [(0, 1000, 0, 1000), (1000, 1001, 0, 1001)], id="one above the limit"),
        pytest.param((), [], id="no context"),
    ],
)
def test_a17_chunks_of_at_most_a_thousand(lengths, expected):
    """(q_start, q_end, k_start, k_end) of each chunk, in order."""
    assert spans(split_prefill_chunks(requests(*lengths), 1000)) == expected


def test_a17_a_later_request_starts_where_the_one_before_ends():
    """Upstream's start-index case: behind another request, queries count on and keys start at its own segment."""
    before, long = Request(1000, 70), Request(2500, 0)
    _, *chunks = split_prefill_chunks([before, long], 1000)
    assert spans(tuple(chunks)) == [(1000, 2000, 1070, 2070), (2000, 3000, 1070, 3070), (3000, 3500, 1070, 3570)]


def test_a17_a_q_block_sees_cached_tokens_and_all_before_it():
    """Bounds are relative to the chunk's own keys: ks 0, ke = cached + query + 1."""
    chunks = split_prefill_chunks([Request(5, 3)], 2)
    assert [(c.ks, c.ke) for c in chunks] == [((0, 0), (4, 5)), ((0, 0), (6, 7)), ((0,), (8,))]
    assert spans(chunks) == [(0, 2, 0, 5), (2, 4, 0, 7), (4, 5, 0, 8)]


def test_a17_a_packed_chunk_has_the_generic_bounds():
    """Cached tokens lengthen the keys of a packed chunk, not its share of the limit."""
    [first, second] = split_prefill_chunks([Request(2, 100), Request(1, 0), Request(2, 7)], 3)
    assert (first.ks, first.ke) == ((0, 0, 102), (101, 102, 103))
    assert (second.ks, second.ke) == ((0, 0), (8, 9))
    assert spans((first, second)) == [(0, 3, 0, 103), (3, 5, 103, 112)]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit):
    """It would never end."""
    with pytest.raises(ValueError, match=f"limit: expected at least 1 token, got {limit}"):
        split_prefill_chunks(requests(1), limit)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), max_size=6).map(lambda all: [Request(*r) for r in all]),
    st.integers(1, 50),
)
def test_a17_chunks_cover_every_query_once_with_the_keys_it_may_see(contexts, limit):
    """For any requests and limit: order kept, none above the limit, and the same keys as the bounds without chunks."""
    ks, ke = causal_bounds(contexts)
    chunks = split_prefill_chunks(contexts, limit)
    at = 0
    for chunk in chunks:
        assert chunk.q_start == at < chunk.q_end <= at + limit
        at = chunk.q_end
        rows = slice(chunk.q_start, chunk.q_end)
        assert tuple(chunk.k_start + each for each in chunk.ks) == ks[rows]
        assert tuple(chunk.k_start + each for each in chunk.ke) == ke[rows]
        assert max(chunk.ke) <= chunk.k_end - chunk.k_start
    assert at == len(ks)
