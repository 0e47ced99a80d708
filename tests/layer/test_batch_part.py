"""Op 2, the part that reads the batch: what it cuts, in which order it works, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.layer.batch import Batch
from mlaprof.layer.cache import INDEX_SCALE_OFFSET
from mlaprof.layer.ops import OPS

BATCHES = {
    "prefill": {"contexts": [(20, 0), (45, 0)]},
    "cached prefill": {"contexts": [(20, 70), (1, 0)]},
    "decode": {"generations": [(1, 130), (1, 64), (1, 200)]},
    "decode of two": {"generations": [(2, 130), (2, 62)]},
    "mixed": {"contexts": [(5, 0), (3, 70)], "generations": [(2, 130), (2, 62)]},
}
ROWS = 80  # more than any of them has tokens


def run_op2(bench: Any, parts: list[Tensor], positions: Tensor) -> Tensor:
    output = torch.full((len(parts[0]), bench.shape.num_heads * bench.shape.v_head_dim), 7.0, dtype=torch.bfloat16)
    with bench.context():
        OPS.mla_dsa_attn_inplace(*parts[:4], parts[4:], positions, "0", output)
    return output


def op1(bench: Any, hidden: Tensor, positions: Tensor) -> list[Tensor]:
    with bench.context():
        return OPS.mla_dsa_proj(hidden, positions, "0")


def poison(part: Tensor, start: int) -> Tensor:
    """A copy whose rows from start on are NaN."""
    part = part.clone()
    part[start:] = torch.full_like(part[start:].float(), torch.nan).to(part.dtype)
    return part


@pytest.mark.parametrize("name", BATCHES)
def test_a09_op2_slices_to_num_tokens_and_leaves_padding_rows_untouched(bench, name):
    """All eight tensors and the positions are cut: NaN and absurd positions behind num_tokens change no bit of the
    output or of a cache, and rows of output behind it keep what the buffer held."""
    batch = bench.batch(**BATCHES[name])
    hidden, positions = bench.load(batch, rows=ROWS)
    parts = op1(bench, hidden, positions)
    want = run_op2(bench, parts, positions)
    pools = [pool.clone() for pool in bench.pools]

    bench.load(batch, rows=ROWS)
    dirty = positions.clone()
    dirty[batch.num_tokens :] = -(1 << 40)
    got = run_op2(bench, [poison(part, batch.num_tokens) for part in parts], dirty)
    assert torch.equal(want[: batch.num_tokens], got[: batch.num_tokens])
    assert bool(got[: batch.num_tokens].isfinite().all())
    assert bool((got[batch.num_tokens :] == 7.0).all())
    for before, pool in zip(pools, bench.pools, strict=True):
        assert torch.equal(before.view(torch.uint8), pool.view(torch.uint8))


@pytest.mark.parametrize("form", ["split", "monolithic"])
def test_a09_garbage_in_padding_rows_of_hidden_states_reaches_no_real_row(bench, form):
    """Through the whole layer: NaN in the padding gives NaN there at most."""
    batch = bench.batch(**BATCHES["mixed"])
    hidden, positions = bench.load(batch, rows=ROWS)
    want = bench.forward(hidden, positions, form=form)[: batch.num_tokens]
    hidden, positions = bench.load(batch, rows=ROWS)
    hidden[batch.num_tokens :] = torch.nan
    assert torch.equal(want, bench.forward(hidden, positions, form=form)[: batch.num_tokens])


def test_a10_contexts_come_first_and_each_part_is_what_it_would_be_alone(bench):
    """Output rows and top-k rows of a mixed batch: [:ctx] are those of a context-only batch, [ctx:] those of a
    generation-only one, bit for bit."""
    mixed = bench.batch(**BATCHES["mixed"])
    num_ctx = mixed.num_ctx_tokens
    hidden, positions = bench.load(mixed)
    parts = op1(bench, hidden, positions)
    whole, whole_topk = run_op2(bench, parts, positions), select(bench, parts)
    for only, rows in (
        (Batch(mixed.contexts, (), mixed.pages[: len(mixed.contexts)]), slice(0, num_ctx)),
        (Batch((), mixed.generations, mixed.pages[len(mixed.contexts) :]), slice(num_ctx, mixed.num_tokens)),
    ):
        bench.load(only)
        own = [part[rows] for part in parts]
        assert torch.equal(run_op2(bench, own, positions[rows]), whole[rows])
        assert torch.equal(select(bench, own), whole_topk[rows])


def select(bench: Any, parts: list[Tensor]) -> Tensor:
    return bench.attn.indexer.sparse_attn_indexer(
        bench.metadata, *parts[4:], index_k_cache=bench.caches.index_k[0], tiles=bench.tiles
    )


@pytest.mark.parametrize("name", BATCHES)
def test_unused_pages_may_hold_nan(bench, name):
    """Pages no request owns, and slots behind each request's length, in both caches: nothing of them is seen."""
    batch = bench.batch(**BATCHES[name])
    hidden, positions = bench.load(batch)
    want = bench.forward(hidden, positions)

    hidden, positions = bench.load(batch)
    used = torch.zeros(len(bench.caches.latent), 64, dtype=torch.bool)
    for request, pages in zip(batch.requests, batch.pages, strict=True):
        for token in range(request.kv_len):
            used[pages[token // 64], token % 64] = True
    bench.caches.latent[:, 0][~used] = torch.nan
    for pool in bench.caches.index_k:
        pool[:, :INDEX_SCALE_OFFSET].unflatten(1, (64, 128))[~used] = 0x7F  # NaN in e4m3
        pool[:, INDEX_SCALE_OFFSET:].view(torch.float32)[~used] = torch.nan
    assert torch.equal(want, bench.forward(hidden, positions))


@pytest.mark.parametrize("name", BATCHES)
def test_the_order_of_pages_does_not_matter(bench, name):
    """The same sequences in other pages give the same bits."""
    kwargs = BATCHES[name]
    first = bench.batch(**kwargs, seed=1)
    hidden, positions = bench.load(first)
    latent, index_k = bench.caches.latent.clone(), [pool.clone() for pool in bench.caches.index_k]
    want = bench.forward(hidden, positions)

    second = bench.batch(**kwargs, seed=2)
    assert first.pages != second.pages
    hidden, positions = bench.load(second)
    for old, new in zip(first.pages, second.pages, strict=True):
        for source, target in zip(old, new, strict=True):
            bench.caches.latent[target] = latent[source]
            for pool, before in zip(bench.caches.index_k, index_k, strict=True):
                pool[target] = before[source]
    assert torch.equal(want, bench.forward(hidden, positions))


def test_a_longer_batch_before_leaves_no_trace(bench):
    """Stale rows of metadata buffers, of a batch that was larger in every way, are not read."""
    small = bench.batch([(3, 70)], [(1, 130)])
    hidden, positions = bench.load(small)
    want = bench.forward(hidden, positions)
    bench.load(bench.batch([(60, 0), (40, 200), (9, 64)], [(2, 300)] * 4, seed=7))
    hidden, positions = bench.load(small)
    assert torch.equal(want, bench.forward(hidden, positions))


def test_two_layers_do_not_share_cache_rows(make_bench, shapes):
    """Each layer writes its own slice of every block, and only the slots of this step's tokens."""
    bench = make_bench(shapes["glm-like"], num_layers=3)
    batch = bench.batch(**BATCHES["mixed"])
    hidden, positions = bench.load(batch)
    before = bench.caches.latent.clone()
    bench.forward(hidden, positions)
    changed = (bench.caches.latent != before).any(-1)  # [blocks, layers, 64]
    expected = torch.zeros_like(changed)
    for request, pages in zip(batch.requests, batch.pages, strict=True):
        for token in range(request.cached_tokens, request.kv_len):
            expected[pages[token // 64], :, token % 64] = True
    assert torch.equal(expected, changed)
