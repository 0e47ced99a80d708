"""The dense branch for short contexts: when it is taken, what Op 1 then returns, and that it computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.layer import reference
from mlaprof.layer.ops import OPS

THRESHOLD = 48
CONTEXT_ONLY = {
    "one": {"contexts": [(48, 0)]},
    "several": {"contexts": [(20, 0), (1, 0), (33, 0)]},
    "cached": {"contexts": [(16, 32), (5, 20)]},
}
# Worst row of |dense - absorbed| / |absorbed| in bf16; 0.005 to 0.008 measured, 0.08 is what upstream's test allows.
TOLERANCE = 0.015


@pytest.fixture(scope="module", params=["tiny", "glm-like"])
def short(request: Any, make_bench: Any, shapes: Any) -> Any:
    """A bench whose layer takes the dense branch up to THRESHOLD tokens of KV."""
    return make_bench(shapes[request.param], short_seq_mha_threshold=THRESHOLD)


def op1(bench: Any, hidden: Tensor, positions: Tensor, *, compiled: bool = False) -> list[Tensor]:
    with bench.context(compiled=compiled):
        return OPS.mla_dsa_proj(hidden, positions, "0")


@pytest.mark.parametrize(
    "contexts,compiled,is_short",
    [
        pytest.param([(47, 0)], False, True, id="below"),
        pytest.param([(48, 0)], False, True, id="equality counts as short"),
        pytest.param([(49, 0)], False, False, id="above"),
        pytest.param([(8, 40)], False, True, id="cached and new at the threshold"),
        pytest.param([(8, 41)], False, False, id="few new tokens on a long cache"),
        pytest.param([(30, 0), (30, 0)], False, True, id="the longest request, not the sum"),
        pytest.param([(1, 0), (2, 47)], False, False, id="one long request among short ones"),
        pytest.param([(5, 0)], True, False, id="under compile"),
    ],
)
def test_a08_short_means_the_total_kv_length_at_most_the_threshold_and_no_compile(
    short, spy, contexts, compiled, is_short
):
    """One condition, asked by Op 1 and Op 2 alike."""
    hidden, positions = short.load(short.batch(contexts))
    with short.context(compiled=compiled) as context, spy:
        assert short.attn.short_mha(context, positions) is is_short
        parts = OPS.mla_dsa_proj(hidden, positions, "0")
        assert len(parts) == (4 if is_short else 8)
        output = hidden.new_empty((len(hidden), short.shape.num_heads * short.shape.v_head_dim))
        OPS.mla_dsa_attn_inplace(*parts[:4], parts[4:], positions, "0", output)
    assert ("sparse_attn" not in spy.names) is is_short
    assert ("cache_write" not in spy.names) is is_short


def test_a08_the_compile_flag_holds_at_run_time_too(short, spy):
    """The flag is the engine's, not Dynamo's: nothing traces here, and the branch is off in both ops all the same."""
    hidden, positions = short.load(short.batch([(20, 0)]))
    assert not torch.compiler.is_compiling()
    with spy:
        short.forward(hidden, positions, compiled=True)
    assert "sparse_attn" in spy.names


def test_a08_zero_is_off(bench):
    """The default threshold: not even a context of one token is short."""
    assert bench.attn.short_seq_mha_threshold == 0
    hidden, positions = bench.load(bench.batch([(1, 0)]))
    assert len(op1(bench, hidden, positions)) == 8


def test_a08_without_position_ids_nothing_is_short(short):
    """The dense branch rotates by position, so it needs them."""
    short.load(short.batch([(5, 0)]))
    with short.context() as context:
        assert short.attn.short_mha(context, None) is False


@pytest.mark.parametrize(
    "contexts,generations,count",
    [([(5, 0)], [], 4), ([(5, 0)], [(1, 10)], 8), ([], [(1, 10)], 8), ([(60, 0)], [], 8)],
    ids=["context only", "mixed", "generation only", "long context"],
)
def test_a06_eager_returns_four_only_where_short_mha_covers_the_whole_batch(short, contexts, generations, count):
    """One generation request, and the indexer's four are needed; under compile it is eight in any case, as in the
    fake."""
    hidden, positions = short.load(short.batch(contexts, generations))
    assert len(op1(short, hidden, positions)) == count
    assert len(op1(short, hidden, positions, compiled=True)) == 8
    assert len(short.attn.dsa_proj_like(hidden)) == 8


@pytest.mark.parametrize("name", CONTEXT_ONLY)
@pytest.mark.parametrize("form", ["split", "monolithic"])
def test_dense_and_absorbed_attention_agree(short, name, form):
    """The same batch with the branch on (eager) and off (under compile): cached tokens, several requests."""
    results = []
    for compiled in (False, True):
        hidden, positions = short.load(short.batch(**CONTEXT_ONLY[name]))
        with short.context(compiled=compiled, form=form):
            results.append(short.stack(form).attention["0"](hidden, positions).float())
    dense, absorbed = results
    assert not torch.equal(dense, absorbed), "two different ways of computing"
    assert float(((dense - absorbed).norm(dim=-1) / absorbed.norm(dim=-1)).max()) < TOLERANCE


def test_a_mixed_batch_serves_contexts_densely_and_generations_by_selection(short, spy):
    """Against the oracle: contexts see everything, generations the selected rows; the index keys of both are cached."""
    batch = short.batch([(20, 28), (7, 0)], [(1, 300), (1, 64)])
    hidden, positions = short.load(batch)
    past = [
        reference.read_history(short.caches.latent, short.caches.index_k[0], 0, pages, r.cached_tokens, r.new_tokens)
        for r, pages in zip(batch.requests, batch.pages, strict=True)
    ]
    with short.context(), spy:
        got = short.attn(hidden, positions).float()
    assert [name for name in spy.names if name in ("sparse_attn", "cache_write")] == [
        "cache_write",
        "sparse_attn",
    ]
    want = reference.attention(short.weights[0], short.shape, hidden, past).output
    error = (got - want).norm(dim=-1) / want.norm(dim=-1)
    assert float(error[: batch.num_ctx_tokens].max()) < TOLERANCE
    # The oracle's own selection may differ from the layer's by a tie or two of 64.
    assert float(error[batch.num_ctx_tokens :].max()) < 0.2


def test_the_dense_branch_attends_to_more_than_index_topk_keys(make_bench, shapes):
    """Upstream's default of old was 10,240: the branch has no selection, whatever index_topk says."""
    bench = make_bench(shapes["glm-like"], short_seq_mha_threshold=10_240)
    batch = bench.batch([(100, 50)])
    hidden, positions = bench.load(batch)
    [(request, pages)] = zip(batch.requests, batch.pages, strict=True)
    past = reference.read_history(
        bench.caches.latent, bench.caches.index_k[0], 0, pages, request.cached_tokens, request.new_tokens
    )
    everything = {row: torch.arange(int(position) + 1) for row, position in enumerate(positions)}
    want = reference.attention(bench.weights[0], bench.shape, hidden, [past], selected=everything).output
    with bench.context():
        got = bench.attn(hidden, positions).float()
    assert float(((got - want).norm(dim=-1) / want.norm(dim=-1)).max()) < TOLERANCE
