"""Where the layer is cut: which steps sit in Op 1, and that the result does not depend on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mlaprof.layer.handover import for_indexer
from mlaprof.layer.ops import OPS
from mlaprof.study import BOUNDARIES, PR_BOUNDARY, Boundary

BATCHES: dict[str, dict[str, Any]] = {
    "one token": {"contexts": [(1, 0)]},
    "prefill": {"contexts": [(63, 0), (1, 0), (90, 0)]},
    "cached prefill": {"contexts": [(37, 200), (5, 0)]},
    "decode": {"generations": [(1, 200), (1, 0), (1, 64)]},
    "decode of two": {"generations": [(2, 200), (2, 62)]},
    "mixed": {"contexts": [(65, 129), (1, 0)], "generations": [(1, 300), (1, 20)]},
}
FIT_FOR_LOGITS = ("one token", "prefill")
CASES = [(name, cut) for name in BATCHES for cut in BOUNDARIES if cut != "logits" or name in FIT_FOR_LOGITS]
IN_OP1: dict[Boundary, list[str]] = {
    "proj": ["project_norms"],
    "index_quant": ["norm_rope", "index_query"],
    "cache_update": ["norm_rope", "index_query", "cache_write"],
    "logits": ["norm_rope", "index_query", "cache_write", "index_logits", "topk"],
}


def step(bench: Any, hidden: Tensor, positions: Tensor) -> tuple[list[Tensor], Tensor]:
    """(Op 1's parts, Op 2's output [T, heads * v_head_dim], 7 where it wrote nothing)."""
    attn = bench.attn
    output = torch.full((len(hidden), bench.shape.num_heads * bench.shape.v_head_dim), 7.0).to(hidden)
    with bench.context():
        parts = OPS.mla_dsa_proj(hidden, positions, "0")
        rest = for_indexer(attn.boundary, parts[4:], hidden)
        OPS.mla_dsa_attn_inplace(*parts[:4], rest, positions, "0", output)
    return parts, output


def bits(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.contiguous().view(torch.uint8).clone() for tensor in tensors]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def usable(bench: Any) -> list[Tensor]:
    """The bytes of all pages that a request may own."""
    return bits([pool[: bench.caches.num_blocks] for pool in bench.pools])


@pytest.mark.parametrize("name,boundary", CASES)
def test_every_boundary_gives_the_bits_of_the_monolith(recut, name, boundary):
    """Output and both caches: the same kernels on the same rows, whichever op runs them."""
    hidden, positions = recut.load(recut.batch(**BATCHES[name]))
    want = [recut.forward(hidden, positions, form="monolithic"), *(pool.clone() for pool in recut.pools)]
    recut.cut(boundary)
    hidden, positions = recut.load(recut.batch(**BATCHES[name]))
    assert same(bits(want), bits([recut.forward(hidden, positions), *recut.pools]))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("lengths", [[(70, 0)], [(66, 0), (20, 0)]], ids=["one", "two"])
def test_the_boundary_says_which_steps_op1_does(recut, spy, boundary, lengths):
    """Each kernel runs once, before the cut in Op 1 and behind it in Op 2."""
    recut.cut(boundary)
    hidden, positions = recut.load(recut.batch(lengths))
    with spy:
        step(recut, hidden, positions)
    op2 = spy.names.index("mla_dsa_attn_inplace")
    assert spy.names[1:op2] == IN_OP1[boundary]
    indexing = ["cache_write", "index_logits", "topk"]
    left = [name for name in indexing if name not in IN_OP1[boundary]]
    alone = ["index_query", "index_key"] if boundary == "proj" else []  # the key's norm is no longer beside the others'
    assert spy.names[op2 + 1 :] == [*alone, *left, "convert_indices", "absorb", "sparse_attn", "up_project"]


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_only_the_op_that_should_writes_the_caches(recut, boundary):
    """Neither, or both and all of them, are written when Op 1 is done; Op 2 then writes none or all."""
    recut.cut(boundary)
    hidden, positions = recut.load(recut.batch([(40, 0), (9, 0)]))
    before = bits(recut.pools)
    with recut.context():
        parts = OPS.mla_dsa_proj(hidden, positions, "0")
    between = bits(recut.pools)
    _, _ = step(recut, hidden, positions)
    after = bits(recut.pools)
    written_early = boundary in ("cache_update", "logits")
    assert same(before, between) is not written_early
    assert same(between, after) is written_early
    assert len(parts) == {"proj": 5, "index_quant": 8, "cache_update": 8, "logits": 5}[boundary]


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("rows", [1, 33])
def test_the_fake_kernel_knows_every_boundary(recut, boundary, rows):
    """As many tensors as the real one, of its shapes, dtypes and strides."""
    recut.cut(boundary)
    hidden, positions = recut.load(recut.batch([(1, 0)]), rows=rows)
    parts, _ = step(recut, hidden, positions)
    with FakeTensorMode() as mode, recut.context():
        fakes = OPS.mla_dsa_proj(mode.from_tensor(hidden), mode.from_tensor(positions), "0")
    assert [(f.shape, f.dtype, f.stride()) for f in fakes] == [(p.shape, p.dtype, p.stride()) for p in parts]


@pytest.mark.parametrize("skip", [True, False], ids=["dense table", "indexer"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_op1_returns_no_tensor_that_somebody_else_holds(make_bench, shapes, boundary, skip):
    """Neither its inputs, nor a buffer of the metadata, nor a cache: a graph's output must stay what it was."""
    bench = make_bench(shapes["glm-like"], skip_indexer_for_short_seqs=skip)
    bench.cut(boundary)
    hidden, positions = bench.load(bench.batch([(7, 0)]))
    parts, _ = step(bench, hidden, positions)
    buffers = [value.device for value in vars(bench.metadata).values() if hasattr(value, "host")]
    held = [hidden, positions, bench.metadata.dense_topk, *buffers, *bench.pools]
    assert not {each.untyped_storage().data_ptr() for each in held} & {
        part.untyped_storage().data_ptr() for part in parts
    }


@pytest.mark.parametrize("name,boundary", CASES)
def test_garbage_in_padding_rows_reaches_neither_a_real_row_nor_a_page(recut, name, boundary):
    """NaN hidden states at far positions behind the batch: the same output rows, the same pages, and output rows behind
    the batch untouched."""
    recut.cut(boundary)
    batch = recut.batch(**BATCHES[name])
    results = []
    for garbage in (False, True):
        hidden, positions = recut.load(batch, rows=200)
        if garbage:
            hidden[batch.num_tokens :] = torch.nan
            positions[batch.num_tokens :] = 499
        _, output = step(recut, hidden, positions)
        results.append([*bits([output]), *usable(recut)])
        assert bool((output[batch.num_tokens :] == 7.0).all())
        assert bool(output[: batch.num_tokens].isfinite().all())
    assert same(*results)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_padding_rows_are_written_to_the_scratch_page_alone(recut, boundary):
    """Every page slot that no token of the batch owns keeps its bytes; a long batch before leaves no slot behind."""
    recut.cut(boundary)
    recut.load(recut.batch([(180, 0)], seed=4))
    batch = recut.batch([(5, 0), (66, 0)])
    hidden, positions = recut.load(batch, rows=200)
    before = recut.caches.latent.clone()
    step(recut, hidden, positions)
    changed = (recut.caches.latent != before).any(-1)[:, 0]  # [blocks + 1, 64]
    owned = torch.zeros_like(changed)
    owned[recut.caches.scratch_block] = True
    for request, pages in zip(batch.requests, batch.pages, strict=True):
        for token in range(request.kv_len):
            owned[pages[token // 64], token % 64] = True
    assert not bool((changed & ~owned).any())
    assert bool(changed[: recut.caches.num_blocks].any())


@pytest.mark.parametrize("skip", [True, False], ids=["dense table", "indexer"])
def test_at_logits_padding_rows_select_nothing(make_bench, shapes, skip):
    """-1 in every slot, after a longer batch whose rows stood there, and with NaN in the padding."""
    bench = make_bench(shapes["glm-like"], skip_indexer_for_short_seqs=skip)
    bench.cut("logits")
    bench.load(bench.batch([(100, 0)]))
    batch = bench.batch([(20, 0), (9, 0)])
    hidden, positions = bench.load(batch, rows=64)
    hidden[29:] = torch.nan
    parts, _ = step(bench, hidden, positions)
    topk = parts[4]
    assert topk.shape == (64, bench.shape.index_topk) and topk.dtype == torch.int32
    assert bool((topk[29:] == -1).all())
    for row, position in zip(topk[:29].tolist(), positions[:29].tolist(), strict=True):
        assert sorted(each for each in row if each >= 0) == list(range(position + 1))


@pytest.mark.parametrize(
    "lengths,op",
    [
        ({"generations": [(1, 70)]}, "paged_index_logits starts at num_ctx_tokens"),
        ({"contexts": [(5, 0)], "generations": [(1, 70)]}, "paged_index_logits starts at num_ctx_tokens"),
        ({"contexts": [(5, 60)]}, "gather_index_cache returns as many keys"),
    ],
    ids=["decode", "mixed", "cached prefill"],
)
def test_logits_refuses_a_batch_that_no_graph_could_hold_and_names_the_operator(recut, lengths, op):
    """At its first Python call, captured or not."""
    recut.cut("logits")
    hidden, positions = recut.load(recut.batch(**lengths))
    with pytest.raises(AssertionError, match=op):
        recut.forward(hidden, positions)


def test_logits_refuses_a_prompt_that_is_scored_in_chunks(make_bench, shapes):
    """Longer than indexer_max_chunk_size: its keys are gathered chunk by chunk."""
    bench = make_bench(shapes["tiny"], indexer_max_chunk_size=16)
    bench.cut("logits")
    hidden, positions = bench.load(bench.batch([(17, 0)]))
    with pytest.raises(AssertionError, match=r"gather_index_cache .* 17 keys in 2 chunks"):
        bench.forward(hidden, positions)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("lengths", [{"contexts": [(20, 0), (9, 0)]}, {"contexts": [(9, 0)], "generations": [(1, 40)]}])
def test_short_mha_is_the_same_at_every_boundary(make_bench, shapes, boundary, lengths):
    """Four tensors where it covers the batch, and the latent rows written once all the same; with a generation beside
    it the indexer runs."""
    if boundary == "logits" and "generations" in lengths:
        pytest.skip("a batch with generations has no boundary logits")
    bench = make_bench(shapes["tiny"], short_seq_mha_threshold=64)
    results = []
    for cut in (PR_BOUNDARY, boundary):
        bench.cut(cut)
        hidden, positions = bench.load(bench.batch(**lengths), rows=40)
        parts, output = step(bench, hidden, positions)
        assert (len(parts) == 4) is ("generations" not in lengths)
        results.append([*bits([output[: bench.metadata.num_tokens]]), *usable(bench)])
    assert same(*results)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_monolithic_form_knows_no_boundary(tiny, boundary):
    """It is cut nowhere, so its bodies do what they always do."""
    stack = tiny.monolith.variant(form="monolithic", tiles=tiny.tiles, boundary=boundary)
    assert {attn.boundary for attn in stack.attention.values()} == {PR_BOUNDARY}


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_monolithic_op_serves_a_layer_cut_anywhere(recut, boundary):
    """Both bodies one after the other, hidden_states handed on where Op 2 needs them."""
    recut.cut(boundary)
    hidden, positions = recut.load(recut.batch([(30, 0)]))
    _, want = step(recut, hidden, positions)
    output = torch.empty_like(want)
    recut.load(recut.batch([(30, 0)]))
    with recut.context():
        OPS.mla_custom_op_inplace(hidden, positions, "0", output)
    assert torch.equal(want, output)


def test_a_boundary_belongs_to_a_variant_and_the_original_keeps_its_own(tiny):
    """Weights and caches shared."""
    cut = tiny.split.variant(form="split", tiles=tiny.tiles, boundary="proj")
    assert [attn.boundary for attn in cut.attention.values()] == ["proj"]
    assert [attn.boundary for attn in tiny.split.attention.values()] == [PR_BOUNDARY]
    assert cut.attention["0"].q_b_proj is tiny.split.attention["0"].q_b_proj


def test_captured_code_gets_no_view_beyond_the_buffers(tiny):
    """A slice would be cut short without a word."""
    rows = tiny.metadata.limits.max_num_tokens + 1
    for view in ("index_slots", "latent_slots", "causal_bounds", "dense_selection"):
        with pytest.raises(ValueError, match=f"expected at most {rows - 1} rows, got {rows}"):
            getattr(tiny.metadata, view)(rows)
