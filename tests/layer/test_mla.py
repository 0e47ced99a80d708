"""The whole layer against the dense, unabsorbed oracle, and against itself by another road."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.layer import reference
from mlaprof.layer.batch import Batch, Request
from mlaprof.layer.ops import OPS

# Worst row of |out - ref| / |ref|. bf16 products in series give 0.004 to 0.009; the mildest fault planted in
# test_verify.py gives over 0.1.
TOLERANCE = 0.015
BATCHES: dict[str, dict[str, Any]] = {
    "one token": {"contexts": [(1, 0)]},
    "prefill": {"contexts": [(150, 0)]},
    "prefill of several": {"contexts": [(63, 0), (1, 0), (65, 0), (40, 0)]},
    "chunked prefill": {"contexts": [(37, 200)]},
    "several, some cached": {"contexts": [(33, 0), (20, 64), (5, 130)]},
    "decode": {"generations": [(1, 200), (1, 0), (1, 63), (1, 64), (1, 65)]},
    "decode of two": {"generations": [(2, 200), (2, 62), (2, 63)]},
    "mixed": {"contexts": [(65, 129), (1, 0)], "generations": [(1, 300), (1, 20)]},
    "mixed of two": {"contexts": [(9, 0)], "generations": [(2, 127), (2, 300)]},
}


def histories(bench: Any, batch: Batch, layer: int = 0) -> list[reference.History]:
    """What the caches hold before the step; read them before it runs."""
    index_pool = bench.caches.index_k[layer] if bench.shape.is_dsa else None
    return [
        reference.read_history(bench.caches.latent, index_pool, layer, pages, request.cached_tokens, request.new_tokens)
        for request, pages in zip(batch.requests, batch.pages, strict=True)
    ]


def worst_row(expected: Tensor, got: Tensor) -> float:
    return float(((got.float() - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def attention(bench: Any, hidden: Tensor, positions: Tensor, form: str = "split") -> Tensor:
    """The first attention layer alone, without the norm and the residual around it."""
    with bench.context(form=form):
        return bench.stack(form).attention["0"](hidden, positions)


def jaccard(a: Sequence[int], b: Sequence[int]) -> float:
    return len(set(a) & set(b)) / len(set(a) | set(b))


@pytest.mark.parametrize("name", BATCHES)
def test_the_layer_agrees_with_the_dense_oracle(bench, spy, name):
    """Prefill, chunked prefill, several requests, decode and mixed batches: every row of the output, given the layer's
    own selection; and that selection against the oracle's as sets."""
    batch = bench.batch(**BATCHES[name])
    hidden, positions = bench.load(batch)
    past = histories(bench, batch)
    with spy:
        got = attention(bench, hidden, positions)
    rows = [row[row >= 0].long() for (topk, *_), _ in spy.of("convert_indices") for row in topk]
    assert len(rows) == batch.num_tokens

    weights = bench.weights[0]
    own = reference.attention(weights, bench.shape, hidden, past)
    expected = reference.attention(weights, bench.shape, hidden, past, selected=dict(enumerate(rows)))
    assert worst_row(expected.output, got) < TOLERANCE
    overlaps = [jaccard(a.tolist(), b.tolist()) for a, b in zip(own.topk, rows, strict=True)]
    assert sum(overlaps) / len(overlaps) >= 0.95
    if batch.max_kv_len <= bench.shape.index_topk:
        assert min(overlaps) == 1.0


@pytest.mark.parametrize("name", BATCHES)
def test_split_and_monolithic_give_the_same_bits(bench, name):
    """Output and both caches."""
    results = []
    for form in ("split", "monolithic"):
        hidden, positions = bench.load(bench.batch(**BATCHES[name]))
        output = bench.forward(hidden, positions, form=form)
        results.append([output, *(pool.clone() for pool in bench.pools)])
    for split, monolithic in zip(*results, strict=True):
        assert torch.equal(split.view(torch.uint8), monolithic.view(torch.uint8))


@pytest.mark.parametrize("skip", [True, False], ids=["dense table", "indexer"])
@pytest.mark.parametrize("geometry", ["tiny", "glm-like"])
def test_a_prompt_cut_into_steps_gives_what_it_gives_whole(make_bench, shapes, geometry, skip):
    """60 tokens at once, or 25, then 33 on the 25 cached, then a decode of two: what one step wrote the next one reads,
    without any oracle."""
    bench = make_bench(shapes[geometry], skip_indexer_for_short_seqs=skip)
    pages = ((7,),)
    whole = Batch((Request(60, 0),), (), pages)
    hidden, positions = bench.load(whole)
    want = attention(bench, hidden, positions).float()

    bench.load(whole)  # caches as new
    parts = []
    for batch in (
        Batch((Request(25, 0),), (), pages),
        Batch((Request(33, 25),), (), pages),
        Batch((), (Request(2, 58),), pages),
    ):
        bench.metadata.prepare(batch)
        at = slice(batch.requests[0].cached_tokens, batch.requests[0].kv_len)
        parts.append(attention(bench, hidden[at], positions[at]))
    assert worst_row(want, torch.cat(parts)) < TOLERANCE


def test_absorption_changes_the_order_of_products_and_nothing_else(bench):
    """q_nope through k_b_proj_trans against the latent is q_nope against kv_b_proj's keys; so with the values."""
    shape, attn = bench.shape, bench.attn
    heads, nope, rank = shape.num_heads, shape.qk_nope_head_dim, shape.kv_lora_rank
    assert attn.k_b_proj_trans.shape == (heads, rank, nope)
    assert attn.v_b_proj.shape == (heads, shape.v_head_dim, rank)
    c = torch.randn(5, rank).bfloat16().double()
    kv = c @ bench.weights[0]["kv_b_proj.weight"].double().T  # all heads' keys, then all heads' values
    keys, values = kv.split((heads * nope, heads * shape.v_head_dim), dim=-1)
    q = torch.randn(heads, nope).double()
    dense = torch.einsum("hd,thd->ht", q, keys.view(5, heads, nope))
    absorbed = torch.einsum("hd,hrd,tr->ht", q, attn.k_b_proj_trans.double(), c)
    assert torch.allclose(dense, absorbed)
    assert torch.allclose(values.view(5, heads, -1), torch.einsum("tr,hvr->thv", c, attn.v_b_proj.double()))


def test_v_b_proj_costs_no_second_copy(bench):
    """It is a view of kv_b_proj's rows; k_b_proj_trans is the one derived copy."""
    attn = bench.attn
    storage = attn.kv_b_proj.weight.untyped_storage().data_ptr()
    assert attn.v_b_proj.untyped_storage().data_ptr() == storage
    assert attn.k_b_proj_trans.untyped_storage().data_ptr() != storage


@pytest.mark.parametrize("missing", ["absorbed weights", "fused indexer weights"])
def test_a30_weights_are_fused_by_a_post_load_step_and_its_absence_is_asserted(make_bench, shapes, missing):
    """No lazy fusing in a forward: a layer not made ready says which step is missing."""
    bench = make_bench(shapes["glm-like"])
    hidden, positions = bench.load(bench.batch([(3, 0)]))
    if missing == "absorbed weights":
        bench.attn.k_b_proj_trans = None
    else:
        bench.attn.indexer.wk_weights_proj = None
    with pytest.raises(AssertionError, match=r"expected post_load_weights\(\) before the first forward"):
        bench.forward(hidden, positions)


def test_a30_the_fused_indexer_weight_is_wk_then_weights_proj_in_fp32(bench):
    """[128 + heads, hidden_size], from one concatenation after loading."""
    fused = bench.attn.indexer.wk_weights_proj.weight
    assert fused.dtype == torch.float32 and fused.shape == (128 + bench.shape.index_n_heads, bench.shape.hidden_size)
    assert torch.equal(fused[:128], bench.weights[0]["indexer.wk.weight"].float())
    assert torch.equal(fused[128:], bench.weights[0]["indexer.weights_proj.weight"].float())


def test_a_wrong_output_buffer_is_not_silently_accepted(bench):
    """Op 2 writes the tensor it is given, so one of another width cannot pass."""
    hidden, positions = bench.load(bench.batch([(3, 0)]))
    with bench.context():
        parts = OPS.mla_dsa_proj(hidden, positions, "0")
        with pytest.raises(RuntimeError):
            OPS.mla_dsa_attn_inplace(*parts[:4], parts[4:], positions, "0", torch.empty(3, 5, dtype=torch.bfloat16))
