"""The layer at a real model's size on a GPU, through the Triton kernels: against the oracle, and replayed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mlaprof import verify
from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.full import FullRunner
from mlaprof.capture.piecewise import PiecewiseRunner
from mlaprof.layer.ops import ATTN
from mlaprof.shapes import PRESETS

pytestmark = pytest.mark.gpu
BATCHES: dict[str, dict[str, Any]] = {
    "one token": {"contexts": [(1, 0)]},
    "63 tokens": {"contexts": [(63, 0)]},
    "odd prefill": {"contexts": [(333, 0), (1, 0), (129, 0)]},
    "chunked prefill": {"contexts": [(257, 2300), (65, 100)]},
    "more than top-k": {"contexts": [(1100, 1500)]},
    "decode": {"generations": [(1, 2500), (1, 64), (1, 3000)]},
    "decode of two": {"generations": [(2, 2500), (2, 62), (2, 3000)]},
    "mixed": {"contexts": [(111, 2100)], "generations": [(2, 2500), (2, 5)]},
}


@pytest.fixture(scope="module", params=["v3.2-tp8", "glm-5-tp8"])
def big(request: Any, make_bench: Any) -> Any:
    return make_bench(PRESETS[request.param], num_blocks=160, max_num_tokens=1200, max_seq_len=3200, device="cuda")


@pytest.mark.parametrize("name", BATCHES)
def test_the_layer_agrees_with_the_oracle_at_the_model_s_size(big, name):
    """The worker's own checks, at token counts that fill no tile."""
    batch = big.batch(**BATCHES[name])
    hidden, positions = big.load(batch)
    with big.context() as context:
        output, [probed] = verify.probe(big.split, hidden, positions)
        checks = verify.against_oracle(probed, big.weights[0], batch, big.caches, positions, context)
    assert verify.finite("output", output).passed
    assert {"worst row error vs oracle", "top-k sets missing vs oracle"} <= {
        check.name.split(": ")[1] for check in checks
    }
    assert [check for check in checks if not check.passed] == []


@pytest.mark.parametrize("name", BATCHES)
def test_pieces_and_full_graphs_replay_eager_bit_for_bit(big, name):
    """With other hidden states than at capture, and caches as new each time."""
    batch = big.batch(**BATCHES[name])
    hidden, positions = big.load(batch)
    buffers = InputBuffers({"hidden_states": hidden.clone(), "position_ids": positions})
    from mlaprof.capture.cuda_graph import CudaGraphs

    runners = [FullRunner(big.split, buffers, CudaGraphs())]
    if batch.contexts:
        runners.append(PiecewiseRunner(big.split, buffers, CudaGraphs(), [ATTN]))
    with big.context(compiled=True):
        for runner in runners:
            runner.prepare([batch.num_tokens])
            other, _ = big.load(batch, seed=77)
            buffers.load(hidden_states=other)
            got = runner.run(batch.num_tokens).clone()
            big.load(batch)
            want = big.split(*buffers.slice(batch.num_tokens))
            assert verify.same_bits("replay", want, got).passed
            buffers.load(hidden_states=hidden)


@pytest.mark.parametrize("name", ["odd prefill", "decode"])
def test_a_step_waits_for_nothing(big, name):
    """Neither op synchronises the host: torch raises on any read of a device value."""
    hidden, positions = big.load(big.batch(**BATCHES[name]))
    big.forward(hidden, positions)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        big.forward(hidden, positions)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["odd prefill", "chunked prefill", "decode of two", "mixed"])
def test_repeated_op2_is_idempotent(big, name):
    """The kernels leave q and the other seven tensors alone; a loop over Op 2 gives the same bits."""
    hidden, positions = big.load(big.batch(**BATCHES[name]))
    with big.context():
        parts = torch.ops.mlaprof.mla_dsa_proj(hidden, positions, "0")
        before = [part.clone() for part in parts]
        outputs = []
        for _ in range(3):
            outputs.append(hidden.new_empty((len(hidden), big.shape.num_heads * big.shape.v_head_dim)))
            torch.ops.mlaprof.mla_dsa_attn_inplace(*parts[:4], parts[4:], positions, "0", outputs[-1])
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    for old, part in zip(before, parts, strict=True):
        assert torch.equal(old.view(torch.uint8), part.view(torch.uint8))


def test_unused_pages_may_hold_nan(big):
    """Pages that no request owns."""
    batch = big.batch(contexts=[(111, 2100)], generations=[(2, 2500), (2, 5)])
    hidden, positions = big.load(batch)
    want = big.forward(hidden, positions)
    hidden, positions = big.load(batch)
    used = [page for pages in batch.pages for page in pages]
    unused = [page for page in range(len(big.caches.latent)) if page not in used]
    big.caches.latent[unused] = torch.nan
    big.caches.index_k[0][unused] = 0x7F
    assert torch.equal(want, big.forward(hidden, positions))
