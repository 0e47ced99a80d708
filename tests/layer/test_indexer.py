"""The lightning indexer: token-wise half, cache update, selection."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.kernels import reference as kernel_reference
from mlaprof.layer import indexer as indexer_module
from mlaprof.layer import mla as mla_module
from mlaprof.layer.cache import INDEX_BLOCK_BYTES, INDEX_SCALE_OFFSET
from mlaprof.layer.indexer import Indexer
from mlaprof.layer.mla import MLA
from mlaprof.layer.ops import OPS
from mlaprof.shapes import PRESETS


def indexer_parts(bench: Any, hidden: Tensor, positions: Tensor) -> list[Tensor]:
    with bench.context() as context:
        return bench.attn.dsa_proj(hidden, positions, context)[4:]


def write_caches(bench: Any, hidden: Tensor, positions: Tensor) -> None:
    """What Op 2 does before it selects."""
    metadata = bench.metadata
    with bench.context() as context:
        _, compressed_kv, k_pe, _, _, k_fp8, k_scale, _ = bench.attn.dsa_proj(hidden, positions, context)
    slots = metadata.latent_slots(len(hidden)), *metadata.index_slots(len(hidden))
    bench.attn._write_caches(compressed_kv, k_pe, positions, k_fp8, k_scale, *slots)


def select(bench: Any, parts: list[Tensor], **changes: Any) -> Tensor:
    named = {"index_k_cache": bench.caches.index_k[0], "tiles": bench.tiles} | changes
    return bench.attn.indexer.sparse_attn_indexer(bench.metadata, *parts, **named)


@pytest.mark.parametrize(
    "contexts,generations,after",
    [
        ([(70, 0)], [], ["index_logits", "topk"]),
        ([(5, 90), (3, 0)], [], ["gather_index_cache", "index_logits", "topk"]),
        ([], [(2, 130)], ["paged_index_logits", "topk"]),
        ([(5, 90)], [(1, 130)], ["gather_index_cache", "index_logits", "topk", "paged_index_logits", "topk"]),
    ],
)
def test_a11_the_k_cache_is_updated_first_and_once_for_the_whole_batch(bench, spy, contexts, generations, after):
    """Before any gather or logits, in Op 2, never in Op 1; contexts and generations in one call."""
    batch = bench.batch(contexts, generations)
    hidden, positions = bench.load(batch, rows=90)
    with spy, bench.context():
        output = hidden.new_empty((len(hidden), bench.shape.num_heads * bench.shape.v_head_dim))
        parts = OPS.mla_dsa_proj(hidden, positions, "0")
        OPS.mla_dsa_attn_inplace(*parts[:4], parts[4:], positions, "0", output)
    op2 = spy.names.index("mla_dsa_attn_inplace")
    assert spy.names[:op2] == ["mla_dsa_proj", "norm_rope", "index_query"]
    attention = ("convert_indices", "absorb", "sparse_attn", "up_project")
    assert [name for name in spy.names[op2 + 1 :] if name not in attention] == ["cache_write", *after]
    assert spy.names[op2 + 1] == "cache_write"
    [((compressed_kv, *_), _)] = spy.of("cache_write")
    assert len(compressed_kv) == batch.num_tokens


def test_a11_chunks_see_the_keys_of_this_very_step(bench, spy):
    """What the gather returns for the new tokens is what Op 1 quantised, behind what the cache held."""
    batch = bench.batch([(5, 90)])
    hidden, positions = bench.load(batch)
    parts = indexer_parts(bench, hidden, positions)
    write_caches(bench, hidden, positions)
    with spy:
        select(bench, parts)
    [(_, (k, scale))] = spy.of("gather_index_cache")
    assert torch.equal(parts[1].view(torch.uint8), k[90:].view(torch.uint8))
    assert torch.equal(parts[2], scale[90:])
    assert k.shape == (95, 128) and scale.shape == (95, 1)


def test_a11_the_update_writes_the_slots_of_this_step_and_no_other_byte(bench):
    """Codes and scales stand at the formulas' offsets; the rest of the pool is as it was."""
    batch = bench.batch([(5, 90)], [(2, 62)])
    hidden, positions = bench.load(batch)
    expected = bench.caches.index_k[0].clone().view(-1)
    parts = indexer_parts(bench, hidden, positions)
    codes, scales = parts[1].view(torch.uint8), parts[2].view(torch.uint8)
    row = 0
    for request, pages in zip(batch.requests, batch.pages, strict=True):
        for token in range(request.cached_tokens, request.kv_len):
            base, place = pages[token // 64] * INDEX_BLOCK_BYTES, token % 64
            expected[base + place * 128 : base + place * 128 + 128] = codes[row]
            expected[base + INDEX_SCALE_OFFSET + place * 4 :][:4] = scales[row]
            row += 1
    write_caches(bench, hidden, positions)
    assert torch.equal(expected, bench.caches.index_k[0].view(-1))


def test_a12_the_restored_assertion_stands_at_the_top(bench, monkeypatch):
    """A quantiser block other than 128 is refused before the cache is touched, in every phase."""
    for contexts, generations in (([(5, 0)], []), ([], [(1, 70)])):
        hidden, positions = bench.load(bench.batch(contexts, generations))
        before = [pool.clone() for pool in bench.pools]
        with monkeypatch.context() as patch:
            patch.setattr(bench.attn.indexer, "quant_block_size", 64)
            with pytest.raises(AssertionError, match="quant_block_size: expected 128, got 64"):
                bench.forward(hidden, positions)
        assert all(torch.equal(*pair) for pair in zip(before, bench.pools, strict=True))


def test_a12_without_a_cache_manager_the_assertion_is_waived(bench, spy, monkeypatch):
    """No cache, no rule: an uncached prefill selects the same rows and updates nothing."""
    hidden, positions = bench.load(bench.batch([(90, 0)]))
    parts = indexer_parts(bench, hidden, positions)
    want = select(bench, parts)
    monkeypatch.setattr(bench.attn.indexer, "quant_block_size", 64)
    with spy:
        assert torch.equal(want, select(bench, parts, index_k_cache=None))
    assert spy.names == ["index_logits", "topk"]


@pytest.mark.parametrize("contexts,generations,name", [([(5, 90)], [], "chunked prefill"), ([], [(1, 90)], "decode")])
def test_phases_that_need_a_cache_say_so(bench, contexts, generations, name):
    """Cached contexts and decode cannot select without one."""
    hidden, positions = bench.load(bench.batch(contexts, generations))
    parts = indexer_parts(bench, hidden, positions)
    with pytest.raises(AssertionError, match=f"{name}: expected an indexer K cache, got None"):
        select(bench, parts, index_k_cache=None)


def test_a16_head_weights_carry_q_scale_and_both_roots(bench):
    """weights = fp32 projection of hidden_states x q's quantisation scale x d^-0.5 n^-0.5, computed in Op 1."""
    hidden, positions = bench.load(bench.batch([(33, 0)]))
    q_fp8, _, _, weights = indexer_parts(bench, hidden, positions)
    heads = bench.shape.index_n_heads
    projected = hidden.double() @ bench.weights[0]["indexer.weights_proj.weight"].double().T
    ratio = weights.double() / projected * (128 * heads) ** 0.5
    assert weights.dtype == torch.float32
    # What is left is q_scale: a power of two a row and head, under which the codes fill e4m3's range.
    assert torch.allclose(ratio.log2(), ratio.log2().round(), atol=1e-3)
    largest = q_fp8.float().abs().amax(-1)
    assert bool(((largest > 200) & (largest <= 448)).all())


@pytest.mark.parametrize("preset,constant", [("v3.2", 0.0110485), ("glm-5", 1 / 64)])
def test_a16_the_constant_is_that_of_the_model(preset, constant):
    """1 / sqrt(128 * 64) for DeepSeek, exactly 1/64 for GLM; tensor parallelism does not change it."""
    assert PRESETS[preset].index_weight_scale == pytest.approx(constant, rel=1e-5)
    assert PRESETS[f"{preset}-tp8"].index_weight_scale == PRESETS[preset].index_weight_scale


def test_index_q_and_k_are_rotated_first_half_by_the_models_pairing(bench):
    """[rope | nope]: the last 64 of each head do not depend on the position, the first 64 turn by half-split pairs
    (DeepSeek) or interleaved ones (GLM)."""
    hidden, positions = bench.load(bench.batch([(9, 0)]))
    q0, k0, s0, _ = indexer_parts(bench, hidden, torch.zeros_like(positions))
    q1, k1, s1, _ = indexer_parts(bench, hidden, torch.full_like(positions, 3))
    here, there = k0.float() * s0, k1.float() * s1
    assert (here[:, 64:] - there[:, 64:]).abs().max() <= 0.1 * here.abs().max()  # e4m3 under another scale
    assert (here[:, :64] - there[:, :64]).norm() > 0.3 * here[:, :64].norm()
    interleaved = bench.shape.indexer_rope_interleave
    a, b = (slice(0, 64, 2), slice(1, 64, 2)) if interleaved else (slice(0, 32), slice(32, 64))
    turned = there[:, a] ** 2 + there[:, b] ** 2
    kept = here[:, a] ** 2 + here[:, b] ** 2
    assert (turned - kept).norm() < 0.1 * kept.norm(), "a rotation keeps the length of each pair"
    assert not torch.equal(q0.float(), q1.float())


@pytest.mark.parametrize(
    "contexts,generations",
    [([(90, 0), (5, 200)], []), ([], [(2, 130), (2, 20)]), ([(9, 100), (1, 0)], [(1, 300), (1, 0)])],
)
def test_a18_topk_is_request_local_int32_with_minus_one_in_empty_slots(bench, contexts, generations):
    """Every entry is -1 or a position that the token may see, none twice, as many as there are or index_topk."""
    batch = bench.batch(contexts, generations)
    hidden, positions = bench.load(batch)
    topk = select(bench, indexer_parts(bench, hidden, positions))
    assert topk.dtype == torch.int32 and topk.shape == (batch.num_tokens, bench.shape.index_topk)
    for row, position in zip(topk.tolist(), positions.tolist(), strict=True):
        picked = [each for each in row if each != -1]
        assert len(set(picked)) == len(picked) == min(position + 1, bench.shape.index_topk)
        assert min(picked) >= 0 and max(picked) <= position


def test_a18_selected_positions_become_pool_rows(bench):
    """block * stride + position % 64 + layer * 64; -1 stays -1, as does what lies beyond the table or has no page."""
    table = torch.tensor([[7, 2, -1], [0, 5, 9]], dtype=torch.int32)
    topk = torch.tensor([[0, 63, 64, -1], [128, 191, 192, 10_000], [0, 64, 129, -1]], dtype=torch.int32)
    requests = torch.tensor([0, 0, 1], dtype=torch.int32)
    stride, offset = 3 * 64, 2 * 64
    assert OPS.convert_indices(topk, table, requests, stride, offset).tolist() == [
        [7 * 192 + 128, 7 * 192 + 63 + 128, 2 * 192 + 128, -1],
        [-1, -1, -1, -1],  # a negative table entry, then beyond the table
        [128, 5 * 192 + 128, 9 * 192 + 1 + 128, -1],
    ]


def test_a18_stale_minus_one_in_the_middle_of_a_row_is_ignored(bench):
    """Attention over a row with empty slots anywhere is attention over the others."""
    cache = torch.randn(256, bench.shape.latent_dim).bfloat16()
    q = torch.randn(2, bench.shape.num_heads, bench.shape.latent_dim).bfloat16()
    rows = torch.arange(40, 72, dtype=torch.int32).repeat(2, 1)
    holes = rows.clone()
    holes[:, 5:9] = -1
    dense = torch.cat((rows[:, :5], rows[:, 9:]), dim=1).contiguous()
    results = []
    for indices in (holes, dense):
        out = torch.empty(2, bench.shape.num_heads, bench.shape.kv_lora_rank, dtype=torch.bfloat16)
        OPS.sparse_attn(q, cache, indices, 0.1, bench.tiles.sparse_attn, out)
        results.append(out)
    assert kernel_reference.mismatch(*results, kernel_reference.TOLERANCE[torch.bfloat16]) is None


@pytest.mark.parametrize("next_n", [1, 2, 4])
def test_a19_decode_scores_through_the_page_table_at_full_width(bench, spy, next_n):
    """q is viewed [requests, next_n, ...]; the logits are max_seq_len wide, however short the sequences."""
    hidden, positions = bench.load(bench.batch((), [(next_n, 66), (next_n, 130)]))
    with spy:
        select(bench, indexer_parts(bench, hidden, positions))
    [(args, logits)] = spy.of("paged_index_logits")
    assert args[0].shape == (2, next_n, bench.shape.index_n_heads, 128)
    assert logits.shape == (2 * next_n, bench.metadata.limits.max_seq_len)
    assert args[3].tolist() == [66 + next_n, 130 + next_n]
    seen = logits.isfinite().sum(-1).tolist()
    assert seen == [*range(67, 67 + next_n), *range(131, 131 + next_n)], "row n ends at kv_len - next_n + n"


@pytest.mark.parametrize("chunk", [7, 64, 100])
def test_chunked_selection_equals_a_single_pass(make_bench, shapes, chunk):
    """Whatever the chunk limit, the same sets: keys read back from the cache are the keys that went in. Positions that
    tie, as those do that no head looks at, may stand for each other."""
    scores = []
    for limit in (32_768, chunk):
        bench = make_bench(shapes["glm-like"], indexer_max_chunk_size=limit)
        metadata = bench.metadata
        hidden, positions = bench.load(bench.batch([(90, 0), (30, 0), (70, 0)]))
        assert (metadata.prefill_chunks is None) == (limit > 190)
        q, k, k_scale, weights = parts = indexer_parts(bench, hidden, positions)
        write_caches(bench, hidden, positions)
        topk = select(bench, parts)
        ks = metadata.cu_seqlen_ks
        logits = kernel_reference.index_logits(q, k, k_scale[:, 0], weights, ks, metadata.cu_seqlen_ke)
        picked = logits.gather(1, (topk + ks[:, None]).clamp_min(0).long())
        scores.append(picked.masked_fill(topk < 0, -torch.inf).sort(dim=-1).values)
    assert torch.equal(*scores)


def test_short_sequences_may_skip_the_indexer(make_bench, shapes, spy):
    """While everything fits in index_topk the dense table stands in for logits and top-k: same sets, but the keys are
    cached all the same. At one token more it no longer does."""
    results = {}
    for skip in (True, False):
        bench = make_bench(shapes["glm-like"], skip_indexer_for_short_seqs=skip)
        for contexts, generations in (([(64, 0), (4, 60)], []), ([], [(2, 62)]), ([(9, 0)], [(1, 63)])):
            hidden, positions = bench.load(bench.batch(contexts, generations))
            spy.calls.clear()
            with spy:
                bench.forward(hidden, positions)
            assert "cache_write" in spy.names and ("topk" not in spy.names) == skip
            topk = select(bench, indexer_parts(bench, hidden, positions))
            key = (tuple(contexts), tuple(generations))
            assert torch.equal(results.setdefault(key, topk.sort(-1).values), topk.sort(-1).values)
    bench = make_bench(shapes["glm-like"])
    for contexts, generations in (([(65, 0)], []), ([], [(1, 64)])):
        hidden, positions = bench.load(bench.batch(contexts, generations))
        with spy:
            select(bench, indexer_parts(bench, hidden, positions))
        assert spy.names[-1] == "topk"


def test_a29_the_clean_ups_hold():
    """No lambda for a parallel helper, no pre_indexer, the K update told where it happens, and no DSA flag asked
    inside the layer's ops: the shape decides once, at construction."""
    assert not hasattr(Indexer, "pre_indexer")
    assert "both caches, in one launch" in " ".join(str(MLA._write_caches.__doc__).split())
    assert "cache" not in str(Indexer.pre_indexer_proj.__doc__)
    for module in (indexer_module, mla_module):
        tree = ast.parse(Path(str(module.__file__)).read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
    for body in (MLA.dsa_proj, MLA.dsa_attn, MLA.forward_impl):
        assert "is_dsa" not in inspect.getsource(body)
