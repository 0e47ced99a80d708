"""The engine's rule on capture sizes: clamp to what a step can reach, drop what it may not hold, invent nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlaprof.buckets import Buckets, bucket_of, effective_sizes, reachable_ceiling

SIZES = st.lists(st.integers(1, 10_000), max_size=30)
LIMIT = st.none() | st.integers(1, 12_000)


@pytest.mark.parametrize(
    ("requested", "max_num_tokens", "ceiling", "expected"),
    [
        ([], None, None, Buckets(())),
        ([8, 1, 8], None, None, Buckets((1, 8))),
        ([64, 128], 8192, 127, Buckets((64, 127), clamped=(128,))),
        ([100, 256, 512], 8192, 127, Buckets((100, 127), clamped=(256, 512))),
        ([127, 128], 8192, 127, Buckets((127,), clamped=(128,))),
        ([13_914], 65_536, 65_536, Buckets((13_914,))),
        ([1, 64, 100], 64, None, Buckets((1, 64), dropped=(100,))),
        ([200], 150, 127, Buckets((), dropped=(200,))),
        ([100, 140, 200], 150, 127, Buckets((100, 127), clamped=(140,), dropped=(200,))),
        ([200], 150, 300, Buckets((), dropped=(200,))),
    ],
    ids=[
        *("nothing", "sorted", "clamped", "several to one", "onto its neighbour", "no far ceiling is appended"),
        *("dropped", "dropped before it is clamped", "all three", "ceiling above the limit"),
    ],
)
def test_sizes_of_an_engine(
    requested: list[int], max_num_tokens: int | None, ceiling: int | None, expected: Buckets
) -> None:
    """128 asked for where 127 is the most a step can hold is a graph of 127; what exceeds max_num_tokens is none."""
    assert expected == effective_sizes(requested, max_num_tokens=max_num_tokens, ceiling=ceiling)


@given(requested=SIZES, max_num_tokens=LIMIT, ceiling=LIMIT)
def test_no_size_is_invented_and_none_gets_lost(
    requested: list[int], max_num_tokens: int | None, ceiling: int | None
) -> None:
    """Every size was asked for, or stands for one that was; every one asked for is kept, clamped or dropped."""
    found = effective_sizes(requested, max_num_tokens=max_num_tokens, ceiling=ceiling)

    assert set(found.sizes) <= set(requested) | ({ceiling} if found.clamped else set())
    kept = set(requested) - set(found.clamped) - set(found.dropped)
    assert kept <= set(found.sizes)
    assert not set(found.clamped) & set(found.dropped)
    assert all(size <= limit for size in found.sizes for limit in (max_num_tokens, ceiling) if limit is not None)
    for each in (found.sizes, found.clamped, found.dropped):
        assert list(each) == sorted(set(each))


@given(requested=SIZES, max_num_tokens=LIMIT, ceiling=LIMIT)
def test_the_rule_applied_twice_is_the_rule_applied_once(
    requested: list[int], max_num_tokens: int | None, ceiling: int | None
) -> None:
    once = effective_sizes(requested, max_num_tokens=max_num_tokens, ceiling=ceiling)

    assert Buckets(once.sizes) == effective_sizes(once.sizes, max_num_tokens=max_num_tokens, ceiling=ceiling)


@given(requested=SIZES, more=SIZES, max_num_tokens=LIMIT, ceiling=LIMIT)
def test_asking_for_more_takes_nothing_away(
    requested: list[int], more: list[int], max_num_tokens: int | None, ceiling: int | None
) -> None:
    few = effective_sizes(requested, max_num_tokens=max_num_tokens, ceiling=ceiling)
    many = effective_sizes(requested + more, max_num_tokens=max_num_tokens, ceiling=ceiling)

    assert set(few.sizes) <= set(many.sizes)


@given(sizes=SIZES, num_tokens=st.integers(1, 12_000), fewer=st.integers(0, 12_000))
def test_a_step_pads_to_the_least_size_that_holds_it(sizes: list[int], num_tokens: int, fewer: int) -> None:
    """None above the largest; a captured size is its own bucket; fewer tokens never pad to more."""
    ascending = sorted(set(sizes))
    found = bucket_of(num_tokens, ascending)

    assert found == min((size for size in sizes if size >= num_tokens), default=None)
    assert all(bucket_of(size, ascending) == size for size in ascending)
    smaller = bucket_of(max(1, num_tokens - fewer), ascending)
    assert found is None or (smaller is not None and smaller <= found)


@pytest.mark.parametrize(
    ("requested", "limits", "words"),
    [
        ([0, 8], {}, "size: expected at least 1 token, got 0"),
        ([8, -3], {}, "size: expected at least 1 token, got -3"),
        ([8], {"max_num_tokens": 0}, "max_num_tokens: expected at least 1"),
        ([8], {"ceiling": 0}, "ceiling: expected at least 1"),
    ],
)
def test_sizes_and_limits_below_one_are_refused(requested: list[int], limits: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        effective_sizes(requested, **({"max_num_tokens": None, "ceiling": None} | limits))


def test_the_ceiling_leaves_each_request_a_token_to_decode() -> None:
    """And there is none without both of its limits."""
    assert reachable_ceiling(4, 128) == 508
    assert [reachable_ceiling(*limits) for limits in ((4, None), (None, 128), (None, None))] == [None] * 3
