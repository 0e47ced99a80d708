"""Batches to replay a graph with: how they differ from the own one, and that they fit where it fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlaprof.layer.batch import Request, blocks_needed, place, requests_of
from mlaprof.layer.variations import MORE_CONTEXTS, Variation, variations

sizes = st.integers(1, 9000)
cached = st.integers(0, 5000)


@st.composite
def batches(draw: st.DrawFn) -> tuple[tuple[Request, ...], tuple[Request, ...]]:
    contexts = draw(st.lists(st.builds(Request, sizes, cached), max_size=5))
    next_n = draw(st.integers(1, 4))
    generations = [Request(next_n, draw(cached)) for _ in range(draw(st.integers(0 if contexts else 1, 9)))]
    return tuple(contexts), tuple(generations)


def named(found: tuple[Variation, ...]) -> dict[str, Variation]:
    return {each.name: each for each in found}


@given(batches(), st.floats(0, 1))
def test_every_variation_fits_where_the_own_batch_fits(batch, share):
    """No more new tokens, no longer request, no more tokens in the caches, MORE_CONTEXTS requests more at most and at
    most one page more for each."""
    contexts, generations = batch
    own = contexts + generations
    total = sum(request.new_tokens for request in own)
    below = int(share * (total - 1))
    found = variations(contexts, generations, num_tokens_below=below)
    assert [each.name for each in found[:2]] == ["own batch", "other pages"]
    assert found[0].requests == found[1].requests == own
    assert len(named(found)) == len(found)
    for each in found:
        assert len(each.generations) <= len(generations)
        assert len(each.contexts) <= len(contexts) + MORE_CONTEXTS if contexts else not each.contexts
        assert bool(each.contexts) == bool(contexts)
        assert min(request.new_tokens for request in each.requests) >= 1
        assert max(request.kv_len for request in each.requests) <= max(request.kv_len for request in own)
        assert sum(request.kv_len for request in each.contexts) <= sum(request.kv_len for request in contexts)
        more = max(0, len(each.requests) - len(own))
        assert blocks_needed(each.requests) <= blocks_needed(own) + more
        assert {request.new_tokens for request in each.generations} <= {request.new_tokens for request in generations}
        if each.name == "fewer tokens":
            assert below < each.num_tokens < total
        else:
            assert each.num_tokens == total


@pytest.mark.parametrize("phase", ["prefill", "mixed"])
@pytest.mark.parametrize("num_tokens", [6, 63, 64, 129, 1000, 8192])
@pytest.mark.parametrize("context_len", [0, 1, 64, 4096])
def test_contexts_have_four_sets_from_two_tokens_up(phase, num_tokens, context_len):
    """Own, other pages, other lengths and fewer tokens; lengths differ within the batch and from its own."""
    batch = requests_of(phase, num_tokens, context_len, num_contexts=1, num_generations=2, next_n=2)
    found = named(variations(*batch, num_tokens_below=num_tokens // 2))
    if phase == "mixed" and num_tokens == 6:
        assert "other lengths" in found
        return
    assert list(found) == ["own batch", "other pages", "other lengths", "fewer tokens"]
    assert len(found["other lengths"].contexts) > 1
    assert len({request.kv_len for request in found["other lengths"].contexts}) > 1


def test_a_long_prompt_stays_long_when_it_is_cut():
    """So that the shortcut for short sequences does not flip between the sets."""
    other = named(variations((Request(8192, 0),), (), num_tokens_below=4096))["other lengths"]
    assert max(request.kv_len for request in other.contexts) > 4096
    assert blocks_needed(other.contexts) == 128


def test_one_token_has_no_other_lengths_and_no_fewer_tokens():
    """Only its page can differ; with cached tokens their number, too."""
    assert list(named(variations((Request(1, 0),), (), num_tokens_below=0))) == ["own batch", "other pages"]
    assert list(named(variations((), (Request(1, 0),), num_tokens_below=0))) == ["own batch", "other pages"]
    assert "other lengths" in named(variations((Request(1, 9),), (), num_tokens_below=0))


def test_decode_has_idle_requests_and_drops_whole_ones():
    """The last quarter on one cached token, as an engine pads; fewer tokens are fewer requests, more than below."""
    generations = (Request(2, 4096),) * 8
    found = named(variations((), generations, num_tokens_below=8))
    assert list(found) == ["own batch", "other pages", "other lengths", "fewer tokens", "idle requests"]
    assert found["idle requests"].generations == (Request(2, 4096),) * 6 + (Request(2, 1),) * 2
    assert found["fewer tokens"].generations == (Request(2, 4096),) * 6
    lengths = [request.cached_tokens for request in found["other lengths"].generations]
    assert len(set(lengths)) == 8 and max(lengths) == 4096 - 65 and min(lengths) >= 1


@pytest.mark.parametrize("below,fewer", [(0, 4), (6, 7), (7, None), (8, None)])
def test_fewer_tokens_stay_above_the_next_smaller_size(below, fewer):
    """Or the runner would take another graph."""
    found = named(variations((Request(8, 0),), (), num_tokens_below=below))
    assert ("fewer tokens" in found) is (fewer is not None)
    if fewer is not None:
        assert found["fewer tokens"].contexts == (Request(fewer, 0),)


def test_a_mixed_batch_keeps_a_context_when_tokens_go():
    """A batch without any would be decode-only, which runs another way."""
    found = named(variations((Request(2, 0), Request(1, 0)), (Request(1, 9),) * 4, num_tokens_below=0))
    assert [request.new_tokens for request in found["fewer tokens"].contexts] == [1]
    assert len(found["fewer tokens"].generations) == 4
    assert "fewer tokens" not in named(variations((Request(1, 0),), (Request(1, 9),), num_tokens_below=0))


def test_every_variation_can_be_placed_on_other_pages():
    """With the caller's seed."""
    batch = requests_of("prefill", 777, 100, num_contexts=3, num_generations=0, next_n=1)
    found = variations(*batch, num_tokens_below=512)
    blocks = max(blocks_needed(each.requests) for each in found)
    placed = [place(each.contexts, each.generations, num_blocks=blocks, seed=n) for n, each in enumerate(found)]
    assert placed[0].pages != placed[1].pages
