"""What every runner with graphs promises, whichever way it captures."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from mlaprof.capture.full import FullRunner
from mlaprof.capture.graphs import CaptureError
from mlaprof.capture.program import Piece, Prepared

pytestmark = pytest.mark.usefixtures("mode")
SIZES = (1, 2, 7, 64)
WIDTH = 8


def test_pieces_compute_what_eager_does_with_sizes_interleaved(pieces, stack, buffers, batch, reload, churn):
    """Bit for bit at the captured size, for inputs loaded after capture, whatever ran in between."""
    pieces.prepare(SIZES)
    random.seed(0)
    for num_tokens in [*random.choices(range(1, 65), k=40), 1, 64, 1, 2, 7, 64]:
        reload(num_tokens)
        churn()
        batch.num_tokens = num_tokens
        got = pieces.run(num_tokens).clone()
        padded = pieces.facts(num_tokens).num_tokens

        assert padded == min(size for size in SIZES if size >= num_tokens)
        assert torch.equal(stack(*buffers.slice(padded))[:num_tokens], got)


def test_a_full_graph_computes_what_eager_does(full, stack, buffers, batch, reload, churn):
    for num_tokens in SIZES:
        batch.num_tokens = num_tokens
        full.prepare([num_tokens])
    for num_tokens in (64, 1, 7, 2, 64, 7):
        reload(num_tokens)
        churn()
        batch.num_tokens = num_tokens
        got = full.run(num_tokens).clone()
        assert torch.equal(stack(*buffers.slice(num_tokens)), got)


def test_eager_runs_the_module_at_the_true_size(eager, stack, buffers, batch):
    batch.num_tokens = 3
    assert eager.prepare([1, 3]) == (Prepared(3, "eager", 0, 1, 0), Prepared(1, "eager", 0, 1, 0))
    assert eager.pieces(3) == (Piece("module", "eager"),)
    assert eager.stop is None
    for run in (eager.run, eager.verified_run):
        assert torch.equal(stack(*buffers.slice(3)), run(3))


def test_a_boundary_sees_the_batch_of_the_run_and_a_full_graph_that_of_its_capture(pieces, full, buffers, batch):
    """The excluded operator stays Python; inside a full graph its Python is frozen."""
    pieces.prepare([7])
    full.prepare([7])
    before = full.run(7).clone()
    batch.num_tokens = 2
    assert torch.equal(before, full.run(7))
    assert not torch.equal(before[:2], pieces.run(2))


def test_prepare_answers_largest_first_and_counts(pieces, full):
    done = pieces.prepare([2, 64, 7, 7])
    assert [prepared.num_tokens for prepared in done] == [64, 7, 2]
    assert {(p.captured_segments, p.eager_segments, p.graph_launches) for p in done} == {(3, 2, 3)}
    assert pieces.facts(5) == done[1]

    [one] = full.prepare([7])
    assert (one.captured_segments, one.eager_segments, one.graph_launches) == (1, 0, 1)
    assert one.graph_nodes == one.nodes.total > done[1].graph_nodes > 3


def test_what_a_capture_cost_is_told(captured, device):
    """Sums over the segments, of the size they were measured at."""
    large, small = captured.prepare([64, 7])
    for prepared in (large, small):
        assert prepared.capture_s > 0
        assert (prepared.instantiate_s > 0) == (device == "cuda")
    assert large.capture_s != small.capture_s
    assert captured.facts(64) == large


def test_the_first_replay_is_timed(full, piecewise):
    for runner in (full, piecewise):
        [prepared] = runner.prepare([7])
        assert prepared.first_replay_s > 0


def test_a_size_is_captured_until_a_run_uses_it(captured):
    """And asking for its facts is no use."""
    [prepared] = captured.prepare([7])
    assert prepared.state == captured.facts(7).state == "captured"
    captured.run(7)
    assert captured.facts(7).state == "replayed"
    assert [each.state for each in captured.prepare([7, 2])] == ["replayed", "captured"]
    captured.verified_run(2)
    assert captured.facts(2).state == "replayed"


def test_a_padded_run_uses_the_captured_size(pieces):
    pieces.prepare([7])
    assert pieces.facts(5).state == "captured"
    pieces.run(5)
    assert (pieces.facts(7).state, pieces.facts(5).num_tokens) == ("replayed", 7)


def test_a_run_that_fell_back_is_no_replay_of_the_graph_captured_later(captured):
    captured.run(9)
    assert captured.facts(9).state == "fell_back"
    captured.prepare([9])
    assert captured.facts(9).state == "captured"


def test_above_the_largest_captured_size_the_run_is_eager_at_the_true_size(captured, stack, buffers, batch):
    """No far graph, and nobody is left to believe there was one."""
    captured.prepare([7])
    batch.num_tokens = 9
    facts = captured.facts(9)
    assert (facts.num_tokens, facts.state, facts.captured_segments, facts.graph_launches) == (9, "fell_back", 0, 0)
    assert facts.eager_segments == len(captured.pieces(9))
    assert {piece.kind for piece in captured.pieces(9)} == {"eager"}
    for run in (captured.run, captured.verified_run):
        assert torch.equal(stack(*buffers.slice(9)), run(9))

    captured.prepare([64])
    assert captured.facts(9).num_tokens == (9 if isinstance(captured, FullRunner) else 64)


def test_a_full_graph_does_not_pad(full, stack, buffers, batch):
    """The batch in it is frozen: another size would be silently wrong."""
    full.prepare([7])
    batch.num_tokens = 6
    assert (full.facts(6).num_tokens, full.facts(6).state) == (6, "fell_back")
    assert torch.equal(stack(*buffers.slice(6)), full.run(6))


def test_the_output_stays_where_it_is(pieces, full):
    """What reads the result may itself be captured."""
    pieces.prepare([7, 2])
    full.prepare([7])
    addresses = {(pieces.run(2).data_ptr(), pieces.run(7).data_ptr(), full.run(7).data_ptr()) for _ in range(3)}
    assert len(addresses) == 1
    assert pieces.run(6).shape == (6, WIDTH)


def boundaries_of(runner):
    """(call, output that it writes) of the eager steps of 7 tokens."""
    [program] = [program for (size, _), program in runner._captured.items() if size == 7]
    steps = [step for step in program.steps if hasattr(step, "args")]
    assert len(steps) == 2
    return [(step, step.args[-1]) for step in steps]


def test_the_boundary_writes_the_tensor_that_the_piece_before_it_allocated(pieces):
    """No copy between: the next captured piece reads the very address."""
    pieces.prepare([7])
    for call, output in boundaries_of(pieces):
        output.fill_(5.0)
        call()
        assert bool((output != 5.0).all())


def test_rows_behind_the_batch_stay_untouched(pieces, batch):
    """A boundary writes the true rows only. What the padding rows held before is nobody's promise: the pool may have
    lent the block to a temporary of the same piece."""
    pieces.prepare([7])
    batch.num_tokens = 3
    for call, output in boundaries_of(pieces):
        output.fill_(5.0)
        call()
        assert bool((output[:3] != 5.0).all()) and bool((output[3:] == 5.0).all())


def test_a_failed_capture_names_the_op_and_leaves_the_other_sizes(captured, stack, buffers, batch, reload, device):
    """One bad size is one failed row."""
    captured.prepare([64])
    batch.bad_rows = (7,)
    with pytest.raises(CaptureError, match="graph of 7 tokens") as caught:
        captured.prepare([7])
    assert ("item" if device == "cuda" else "_local_scalar_dense") in caught.value.op
    captured.prepare([2])
    for num_tokens in (64, 2):
        reload(num_tokens)
        batch.num_tokens = 64  # as at the capture of the full graph
        got = captured.run(num_tokens).clone()
        assert torch.equal(stack(*buffers.slice(num_tokens)), got)


def test_a_size_is_captured_once(captured, graphs, monkeypatch):
    first = captured.prepare([7, 2])
    monkeypatch.setattr(graphs, "capture", None)
    monkeypatch.setattr(graphs, "capture_broken", None)
    assert captured.prepare([2, 7]) == first


@pytest.mark.parametrize("sizes", [[0], [65], [1, -1]])
def test_sizes_beyond_the_buffers_are_refused(captured, eager, sizes):
    for runner in (captured, eager):
        with pytest.raises(ValueError, match="expected 1 to 64"):
            runner.prepare(sizes)


@pytest.mark.parametrize("num_tokens", [0, -1, 65])
def test_a_run_beyond_the_buffers_is_refused(captured, eager, num_tokens):
    """Padding would answer 0 and -1 with rows of the smallest graph."""
    captured.prepare([7])
    for runner in (captured, eager):
        for ask in (runner.run, runner.verified_run, runner.facts, runner.pieces):
            with pytest.raises(ValueError, match=f"expected 1 to 64, got {num_tokens}"):
                ask(num_tokens)


def test_each_size_is_warmed_up_before_its_capture(buffers, graphs):
    """Three calls that compile and allocate, then the capture itself."""
    calls = []

    class Counts(nn.Module):
        def forward(self, x, position_ids):
            calls.append(x.shape[0])
            return x * 2

    FullRunner(Counts(), buffers, graphs).prepare([7, 2])
    assert calls == [7] * 4 + [2] * 4
