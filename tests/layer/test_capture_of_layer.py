"""The real layer under the real runners: how it is cut, captured and replayed, emulated on a CPU and on a GPU."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlaprof.capture.breakable import BreakableRunner
from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.cpu_graph import CpuGraphs
from mlaprof.capture.eager import EagerRunner
from mlaprof.capture.full import FullRunner
from mlaprof.capture.graphs import GraphMaker
from mlaprof.capture.piecewise import PiecewiseRunner
from mlaprof.capture.program import WARMUP_CALLS
from mlaprof.capture.splitter import Partition, split
from mlaprof.capture.trace import trace
from mlaprof.config.axes import Combination
from mlaprof.layer.batch import Batch
from mlaprof.layer.mla import MLA, Form
from mlaprof.layer.ops import ATTN, MONOLITH, PROJ
from mlaprof.shapes import PRESETS
from mlaprof.skips import skip_reason
from mlaprof.study import Axes, LayerSpec, Study

MAX_TOKENS = 80
SIZES = (64, 24, 7)
Lengths = list[tuple[int, int]]


class Capture:
    """A stack, its input buffers and a runner over them."""

    def __init__(self, bench: Any, form: Form, make_runner: Callable[..., Any]) -> None:
        self.bench = bench
        self.stack = bench.stack(form)
        self.buffers = InputBuffers(
            {
                "hidden_states": torch.randn(MAX_TOKENS, bench.shape.hidden_size, device=bench.device).bfloat16(),
                "position_ids": torch.zeros(MAX_TOKENS, dtype=torch.int64, device=bench.device),
            }
        )
        self.graphs = make_graphs(bench.device)
        self.runner = make_runner(self.stack, self.buffers, self.graphs)
        self.context = bench.context(compiled=True, form=form)

    def load(self, contexts: Lengths = (), generations: Lengths = (), *, seed: int = 1) -> Batch:
        """Caches as new, batch and inputs in place; rows behind the batch keep what they hold."""
        batch = self.bench.batch(contexts, generations, seed=seed)
        hidden, positions = self.bench.load(batch, seed=seed)
        self.buffers.load(hidden_states=hidden, position_ids=positions)
        return batch

    def prepare(self, *sizes: int) -> list[int]:
        """Captures each size with a batch that fills it; the sizes done, in order."""
        done = []
        with self.context:
            for size in sizes:
                self.load([(size, 0)])
                done += [prepared.num_tokens for prepared in self.runner.prepare([size])]
        return done

    def run(self, num_tokens: int) -> Tensor:
        with self.context:
            return self.runner.run(num_tokens).clone()

    def eager(self, rows: int) -> Tensor:
        with self.context:
            return self.stack(*self.buffers.slice(rows))


def make_graphs(device: torch.device) -> GraphMaker:
    if device.type == "cpu":
        return CpuGraphs(see_through=(PROJ, ATTN, MONOLITH))
    from mlaprof.capture.cuda_graph import CudaGraphs

    return CudaGraphs()


def make_piecewise(boundary: str) -> Callable[..., PiecewiseRunner]:
    return lambda stack, buffers, graphs: PiecewiseRunner(stack, buffers, graphs, [boundary])


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def two_layers(request: Any, make_bench: Any, shapes: Any) -> Any:
    return make_bench(shapes["tiny"], num_layers=2, mlp=True, device=request.param)


@pytest.fixture(scope="module")
def piecewise(two_layers: Any) -> Capture:
    """The split in pieces; traced once for the module."""
    return Capture(two_layers, "split", make_piecewise(ATTN))


@pytest.fixture(scope="module")
def monolithic_piecewise(two_layers: Any) -> Capture:
    return Capture(two_layers, "monolithic", make_piecewise(MONOLITH))


@pytest.fixture(params=["strong", "weak"])
def breakable(two_layers: Any, request: Any) -> Capture:
    def make_runner(stack: nn.Module, buffers: InputBuffers, graphs: GraphMaker) -> BreakableRunner:
        return BreakableRunner(stack, buffers, graphs, [ATTN], hold=request.param)

    return Capture(two_layers, "split", make_runner)


@pytest.fixture(scope="module")
def weak_piecewise(two_layers: Any) -> Capture:
    def make_runner(stack: nn.Module, buffers: InputBuffers, graphs: GraphMaker) -> PiecewiseRunner:
        return PiecewiseRunner(stack, buffers, graphs, [ATTN], hold="weak")

    return Capture(two_layers, "split", make_runner)


@pytest.fixture
def full(two_layers: Any) -> Capture:
    return Capture(two_layers, "split", FullRunner)


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """The number of rows of hidden_states or q at every call of a body of MLA, which stays what it is."""
    rows: list[int] = []
    real = getattr(MLA, name)

    def counting(self: MLA, first: Tensor, *args: Any) -> Any:
        rows.append(len(first))
        return real(self, first, *args)

    monkeypatch.setattr(MLA, name, counting)
    return rows


def churn(device: torch.device) -> None:
    """Allocate, fill and free blocks of many sizes, so that a freed address would hold something else."""
    del [torch.full((size,), torch.nan, device=device) for size in range(1, 60_000, 997)][:]


def partition_of(capture: Capture, module: nn.Module) -> Partition:
    with capture.context:
        return split(trace(module, capture.buffers.slice(MAX_TOKENS)), boundaries=[ATTN])


def test_a21_n_layers_give_n_plus_one_captured_pieces_and_op1_is_no_boundary(piecewise):
    """What follows the attention of one layer merges with Op 1 of the next: norms, MLP and o_proj between."""
    with piecewise.context:
        partition = piecewise.runner.partition
    assert [segment.kind for segment in partition.segments] == ["captured", "eager", "captured", "eager", "captured"]
    assert partition.stop is None
    before, _, between, _, after = partition.segments
    assert (before.ops.count(PROJ), between.ops.count(PROJ), after.ops.count(PROJ)) == (1, 1, 0)
    assert between.ops.count("aten::linear") == 3 and "aten::silu" in between.ops  # o_proj, then the MLP's two
    assert before.ops[-1] != ATTN and "aten::rms_norm" in before.ops


def test_a21_the_first_index_or_cumsum_excludes_all_that_follows(piecewise):
    """An early one collapses coverage: the second layer is no longer cut at its attention, nor captured."""
    layers = piecewise.stack.decoder_layers

    class Reordered(nn.Module):
        def forward(self, hidden_states: Tensor, position_ids: Tensor) -> Tensor:
            hidden_states = layers[0](hidden_states, position_ids)
            hidden_states = hidden_states[position_ids]
            return layers[1](hidden_states, position_ids)

    partition = partition_of(piecewise, Reordered())
    assert partition.stop == "aten::index.Tensor"
    assert [segment.kind for segment in partition.segments] == ["captured", "eager", "eager"]
    assert ATTN in partition.segments[2].ops and PROJ in partition.segments[2].ops


def test_a03_op2_is_an_eager_piece_of_its_own(piecewise):
    """Excluded from capture, nothing beside it, nothing returned: no later piece reads a tensor it made."""
    with piecewise.context:
        partition = piecewise.runner.partition
    eager = [segment for segment in partition.segments if segment.kind == "eager"]
    assert [segment.ops for segment in eager] == [(ATTN,), (ATTN,)]
    calls = [node for node in partition.graph_module.graph.nodes if node.op == "call_module"]
    assert all(not node.users for node in calls if node.target in {segment.name for segment in eager})


def test_a01_the_monolith_in_pieces_captures_neither_projection_nor_attention(monolithic_piecewise):
    """What upstream had before the split: the one op excluded, only what surrounds it captured."""
    with monolithic_piecewise.context:
        partition = monolithic_piecewise.runner.partition
    assert [segment.ops for segment in partition.segments if segment.kind == "eager"] == [(MONOLITH,), (MONOLITH,)]
    assert not any(name in segment.ops for segment in partition.segments for name in (PROJ, ATTN))
    assert partition.count("captured") == 3


def test_a22_op2_mutates_output_itself_and_no_copy_hides_behind_it(piecewise, monkeypatch):
    """The graph calls the operator on the caller's tensor, un-functionalised: whatever the body writes there, the next
    captured piece reads, from the same address every time."""
    with piecewise.context:
        names = [op for segment in piecewise.runner.partition.segments for op in segment.ops]
    assert not [name for name in names if "functional" in name or "clone" in name or "copy" in name]

    piecewise.prepare(7)
    piecewise.load([(7, 0)])
    addresses: list[int] = []
    fill = 0.0

    def constant(self: MLA, *args: Any) -> None:
        addresses.append(args[-1].data_ptr())
        args[-1].fill_(fill)

    monkeypatch.setattr(MLA, "dsa_attn", constant)
    results = []
    for fill in (0.5, -2.0):  # noqa: B007 (constant reads it)
        results.append(piecewise.run(7))
    assert len(addresses) == 4 and addresses[:2] == addresses[2:], "two layers, two runs"
    assert torch.equal(piecewise.eager(7), results[1])
    assert not torch.equal(*results)


def test_a04_the_output_is_allocated_in_the_captured_piece_before_op2(piecewise, monkeypatch):
    """[padded rows, heads * v_head_dim] in the model's dtype, at one address for each captured size."""
    seen: list[tuple[int, tuple[int, ...], torch.dtype]] = []
    real = MLA.dsa_attn

    def spying(self: MLA, *args: Any) -> None:
        if self.layer_number == 0:
            seen.append((args[-1].data_ptr(), tuple(args[-1].shape), args[-1].dtype))
        real(self, *args)

    piecewise.prepare(24, 7)
    monkeypatch.setattr(MLA, "dsa_attn", spying)
    for num_tokens in (20, 5, 24, 7, 20):
        piecewise.load([(num_tokens, 0)])
        piecewise.run(num_tokens)
    width = piecewise.bench.shape.num_heads * piecewise.bench.shape.v_head_dim
    assert [shape for _, shape, _ in seen] == [(rows, width) for rows in (24, 7, 24, 7, 24)]
    assert {dtype for *_, dtype in seen} == {torch.bfloat16}
    assert len({(address, shape) for address, shape, _ in seen}) == 2


def test_a06_under_capture_op1_hands_over_eight_tensors_whatever_short_mha_says(piecewise, monkeypatch):
    """A threshold that would make the eager arity four changes nothing in pieces."""
    for attn in piecewise.stack.attention.values():
        monkeypatch.setattr(attn, "short_seq_mha_threshold", 10_000)
    handed: list[int] = []
    real = MLA.dsa_attn

    def counting(self: MLA, *args: Any) -> None:
        handed.append(4 + len(args[4]))
        real(self, *args)

    monkeypatch.setattr(MLA, "dsa_attn", counting)
    piecewise.prepare(7)
    piecewise.load([(5, 0)])
    handed.clear()
    piecewise.run(5)
    assert handed == [8, 8]


def test_a23_three_warm_ups_then_the_capture_and_from_then_on_replays(two_layers):
    """Op 1's Python runs four times a size and layer in preparation and never again; Op 2's runs at every step."""
    for make_runner, eager_op2 in ((make_piecewise(ATTN), True), (FullRunner, False)):
        capture = Capture(two_layers, "split", make_runner)
        with pytest.MonkeyPatch.context() as patch:
            op1, op2 = count_calls(patch, "dsa_proj"), count_calls(patch, "dsa_attn")
            captures: list[int] = []
            real = capture.graphs.capture
            patch.setattr(capture.graphs, "capture", lambda fn, real=real, seen=captures: seen.append(1) or real(fn))
            with capture.context:
                capture.load([(7, 0)])
                capture.runner.prepare([7, 24])
            assert WARMUP_CALLS == 3
            assert op1 == [24] * 8 + [7] * 8, "largest first; two layers, four calls"
            assert len(captures) == (6 if eager_op2 else 2), "every graph from one maker: one pool, one stream"

            op1.clear()
            op2.clear()
            for _ in range(3):
                capture.run(7)
            assert op1 == []
            assert op2 == ([7] * 6 if eager_op2 else [])


def test_a23_what_op2_reads_is_held_by_the_program(piecewise):
    """Outputs of captured pieces are kept alive, not weakly: churned memory between replays of all sizes changes no
    bit."""
    piecewise.prepare(*SIZES)
    want = {}
    for size in SIZES:
        piecewise.load([(size, 0)], seed=size)
        want[size] = piecewise.run(size)
    for size in (*SIZES, *reversed(SIZES), SIZES[0]):
        churn(piecewise.bench.device)
        piecewise.load([(size, 0)], seed=size)
        assert torch.equal(want[size], piecewise.run(size))


def test_a24_sizes_are_captured_in_descending_order_and_none_is_invented(two_layers):
    """Exactly the sizes asked for, once each, largest first; one beyond the buffers is refused."""
    capture = Capture(two_layers, "split", FullRunner)
    capture.load([(7, 0)])
    with capture.context:
        assert [each.num_tokens for each in capture.runner.prepare([7, 64, 24, 7])] == [64, 24, 7]
        with pytest.raises(ValueError, match=f"expected 1 to {MAX_TOKENS}, got"):
            capture.runner.prepare([MAX_TOKENS + 1])


def test_a24_a_token_count_is_padded_up_to_the_next_captured_size(piecewise):
    """And the result is that of the eager layer at the padded size, bit for bit, whatever the padding rows hold."""
    piecewise.prepare(*SIZES)
    random.seed(0)
    for num_tokens in [*random.sample(range(1, 65), k=8), 1, 64, 8, 7, 25]:
        padded = min(size for size in SIZES if size >= num_tokens)
        piecewise.load([(MAX_TOKENS, 0)], seed=5)  # so that padding rows hold another batch
        piecewise.load([(num_tokens, 0)])
        got = piecewise.run(num_tokens)
        assert piecewise.runner.facts(num_tokens).num_tokens == padded
        assert got.shape[0] == num_tokens
        piecewise.load([(num_tokens, 0)])
        assert torch.equal(piecewise.eager(padded)[:num_tokens], got)


def test_a24_above_the_largest_captured_size_the_step_is_eager_at_its_true_size(piecewise, monkeypatch):
    """No far bucket: not one graph is launched, and Op 1 sees the true count."""
    piecewise.prepare(*SIZES)
    op1 = count_calls(monkeypatch, "dsa_proj")
    piecewise.load([(70, 0)])
    got = piecewise.run(70)
    assert op1 == [70, 70]
    facts = piecewise.runner.facts(70)
    assert (facts.num_tokens, facts.captured_segments, facts.graph_launches) == (70, 0, 0)
    piecewise.load([(70, 0)])
    assert torch.equal(piecewise.eager(70), got)


@pytest.mark.parametrize("mode", ["monolithic_piecewise", "split_piecewise"])
def test_a24_decode_only_batches_are_not_piecewise(mode):
    """The plan answers them with a reason; mixed and prefill batches run."""
    study = Study(name="s", layer=LayerSpec(preset="tiny", shape=PRESETS["tiny"]), axes=Axes(num_tokens=(8,)))
    reasons = {phase: skip_reason(study, Combination(phase, 8, 0, mode)) for phase in ("prefill", "decode", "mixed")}
    assert reasons["prefill"] is None and reasons["mixed"] is None
    assert "decode-only batches are not piecewise" in str(reasons["decode"])
    assert skip_reason(study, Combination("decode", 8, 0, "full")) is None


def test_garbage_in_the_padding_rows_reaches_no_real_row(piecewise):
    """NaN behind the batch in the input buffer, at a captured size."""
    piecewise.prepare(24)
    piecewise.load([(9, 0), (8, 70)])
    want = piecewise.run(17)
    piecewise.load([(9, 0), (8, 70)])
    hidden, _ = piecewise.buffers.slice(MAX_TOKENS)
    hidden[17:] = torch.nan
    assert torch.equal(want, piecewise.run(17))
    hidden[17:] = 0


@pytest.mark.parametrize(
    "contexts,generations",
    [
        pytest.param([(9, 0), (8, 0)], [], id="prefill"),
        pytest.param([(12, 150), (5, 64)], [], id="chunked prefill"),
        pytest.param([(9, 70)], [(2, 130), (2, 62)], id="mixed"),
        pytest.param([], [(1, 200)] * 11, id="decode"),
        pytest.param([], [(2, 130)] * 4, id="decode of two"),
    ],
)
def test_every_mode_replays_what_eager_computes(
    piecewise, monolithic_piecewise, weak_piecewise, breakable, full, contexts, generations
):
    """Bit for bit at the same padded size, for hidden states and caches that the capture did not see."""
    for capture in (piecewise, monolithic_piecewise, weak_piecewise, breakable, full):
        batch = capture.load(contexts, generations, seed=1)
        num_tokens = batch.num_tokens
        with capture.context:
            if capture is full:
                capture.runner.prepare([num_tokens])
            else:
                capture.runner.prepare([24])
        padded = capture.runner.facts(num_tokens).num_tokens
        for seed in (2, 3):
            other = capture.bench.load(batch, seed=seed)
            capture.buffers.load(hidden_states=other[0], position_ids=other[1])
            got, pools = capture.run(num_tokens), [pool.clone() for pool in capture.bench.pools]
            capture.bench.load(batch)
            assert torch.equal(capture.eager(padded)[:num_tokens], got)
            for replayed, eager in zip(pools, capture.bench.pools, strict=True):
                assert torch.equal(replayed.view(torch.uint8), eager.view(torch.uint8))


def test_a20_a_full_graph_of_decode_serves_another_batch_of_the_same_size(full):
    """Page tables, lengths and positions are read from fixed addresses: prepare() for other requests, replay, done."""
    lengths = [(1, cached) for cached in (150, 64, 200, 90)]
    full.load((), lengths, seed=1)
    with full.context:
        full.runner.prepare([4])
    for seed, shift in ((2, 0), (3, 37)):
        batch = full.load((), [(1, cached + shift) for _, cached in lengths], seed=seed)
        got = full.run(4)
        full.load((), [(1, cached + shift) for _, cached in lengths], seed=seed)
        assert batch.num_tokens == 4 and torch.equal(full.eager(4), got)


def test_a02_op1_is_capturable_alone(two_layers):
    """One graph over Op 1 only: no host synchronisation, and it replays for new inputs without Python."""
    hidden, positions = two_layers.load(two_layers.batch([(5, 0)]), rows=24)
    graphs = make_graphs(two_layers.device)
    with two_layers.context(compiled=True):
        for _ in range(WARMUP_CALLS):
            torch.ops.mlaprof.mla_dsa_proj(hidden, positions, "1")
        graph, parts = graphs.capture(lambda: torch.ops.mlaprof.mla_dsa_proj(hidden, positions, "1"))
        hidden.copy_(torch.randn(hidden.shape, device=hidden.device))
        graph.replay()
        want = torch.ops.mlaprof.mla_dsa_proj(hidden, positions, "1")
    for expected, got in zip(want, parts, strict=True):
        assert torch.equal(expected.view(torch.uint8), got.view(torch.uint8))


def test_breaking_the_capture_at_op2_gives_the_segments_of_the_partition(breakable, piecewise):
    """N + 1 graphs and N eager operators, without a trace; the same work in each way."""
    breakable.prepare(24)
    piecewise.prepare(24)
    with breakable.context:
        ways = [[(p.kind, p.kernels) for p in each.runner.pieces(24)] for each in (breakable, piecewise)]
        assert [piece.ops for piece in breakable.runner.pieces(24) if piece.kind == "eager"] == [(ATTN,)] * 2
    assert ways[0] == ways[1]
    assert [kind for kind, _ in ways[0]] == ["captured", "eager", "captured", "eager", "captured"]


def test_trap_a_larger_size_is_right_again_after_smaller_ones_took_its_blocks(weak_piecewise, breakable):
    """Weak hold at every size: interleaved, churned, bit for bit what eager computes."""
    for capture in (weak_piecewise, breakable):
        capture.prepare(*SIZES)
        for size in (*SIZES, *reversed(SIZES), SIZES[0]):
            churn(capture.bench.device)
            capture.load([(size, 0)], seed=size)
            with capture.context:
                got = capture.runner.verified_run(size).clone()
            capture.load([(size, 0)], seed=size)
            assert torch.equal(capture.eager(size), got)


def test_eager_runner_pads_nothing(two_layers, monkeypatch):
    """The eager modes run at the true size."""
    capture = Capture(two_layers, "split", lambda stack, buffers, graphs: EagerRunner(stack, buffers))
    op1 = count_calls(monkeypatch, "dsa_proj")
    capture.load([(11, 0)])
    assert capture.run(11).shape[0] == 11 and op1 == [11, 11]
