"""A module in pieces cut from one trace: what the compiled way adds to the promises of every runner."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlaprof.capture import piecewise as subject
from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.graphs import CaptureError
from mlaprof.capture.piecewise import PiecewiseRunner

pytestmark = pytest.mark.usefixtures("mode")


def test_one_trace_serves_every_size(piecewise, batch, monkeypatch):
    """Engines drop the guards; a second trace at one token would be another program."""
    traces = []
    real = subject.trace
    monkeypatch.setattr(subject, "trace", lambda *args: traces.append(args) or real(*args))

    piecewise.prepare([64, 7])
    piecewise.prepare([2, 1])
    for num_tokens in (1, 2, 3, 64):
        batch.num_tokens = num_tokens
        piecewise.run(num_tokens)
    assert len(traces) == 1


def test_three_warm_ups_then_the_capture(piecewise, stack, buffers, graphs, monkeypatch):
    """The first of them compares with the trace; a graph is captured only behind all three."""
    events = []
    checked, capture = subject.check_fakes, graphs.capture
    forward = piecewise.partition.graph_module.forward
    monkeypatch.setattr(subject, "check_fakes", lambda *args: events.append("checked") or checked(*args))
    monkeypatch.setattr(graphs, "capture", lambda fn: events.append("captured") or capture(fn))
    monkeypatch.setattr(
        piecewise.partition.graph_module, "forward", lambda *args: events.append("warm") or forward(*args)
    )
    piecewise.prepare([7])
    assert events == ["checked", "warm", "warm", "captured", "captured", "captured"]


def test_pieces_are_those_of_the_partition(piecewise):
    """Captured ones with their kernels, at a captured size; all eager above."""
    piecewise.prepare([7])
    segments = piecewise.partition.segments
    for num_tokens in (7, 3):
        pieces = piecewise.pieces(num_tokens)
        assert [(piece.name, piece.kind, piece.ops) for piece in pieces] == [(s.name, s.kind, s.ops) for s in segments]
        kernels = [piece.kernels for piece in pieces]
        assert kernels[1] is kernels[3] is None
        assert sum(kernels[::2]) == piecewise.facts(7).nodes.kernel > 3
    assert [(piece.kind, piece.kernels) for piece in piecewise.pieces(8)] == [("eager", None)] * 5
    assert piecewise.stop is None


def test_a_free_piece_is_told_and_is_no_step(buffers, graphs, batch):
    """Views between two boundaries: printed, and nothing to do at any size."""

    class Views(nn.Module):
        def forward(self, x, position_ids):
            first = torch.empty_like(x)
            gate = x.sigmoid()
            torch.ops.toy.attend(x, gate, first)
            second = torch.empty_like(x)
            torch.ops.toy.attend(first.view(-1, 2, 4).flatten(1), gate, second)
            return second + 1

    module = Views()
    for hold in ("strong", "weak"):
        runner = PiecewiseRunner(module, buffers, graphs, ["toy::attend"], hold=hold)
        [prepared] = runner.prepare([7])
        runner.prepare([5])
        assert [piece.kind for piece in runner.pieces(7)] == ["captured", "eager", "free", "eager", "captured"]
        assert [piece.kind for piece in runner.pieces(9)] == ["eager", "eager", "free", "eager", "eager"]
        assert (prepared.captured_segments, prepared.eager_segments) == (2, 2)
        batch.num_tokens = 7
        assert torch.equal(module(*buffers.slice(7)), runner.verified_run(7))


def test_buffers_of_one_token_can_run_in_pieces(stack, graphs, batch, device):
    """The trace needs two tokens, the user need not have them."""
    batch.num_tokens = 1
    buffers = InputBuffers({"x": torch.randn(1, 8, device=device), "ids": torch.arange(1, device=device)})
    runner = PiecewiseRunner(stack, buffers, graphs, ["toy::attend"])
    runner.prepare([1])
    assert torch.equal(stack(*buffers.slice(1)), runner.run(1))


class Stops(nn.Module):
    """Indexes by tensor after one boundary."""

    def forward(self, x, position_ids):
        output = torch.empty_like(x)
        torch.ops.toy.attend(x * 2, x, output)
        return output[position_ids.flip(0)].exp()


@pytest.mark.parametrize("hold", ["strong", "weak"])
def test_an_output_of_an_eager_tail_is_that_of_this_run(buffers, graphs, batch, reload, hold):
    """After a stop the last piece is eager, pads like the rest, and returns a new tensor each time."""
    module = Stops()
    runner = PiecewiseRunner(module, buffers, graphs, ["toy::attend"], hold=hold)
    [prepared] = runner.prepare([7])
    assert (prepared.captured_segments, prepared.eager_segments) == (1, 2)
    assert runner.stop == "aten::index.Tensor"
    for run in (runner.run, runner.verified_run):
        for num_tokens in (7, 4, 7):
            reload(7)
            want = module(*buffers.slice(7))[:num_tokens]
            assert torch.equal(want, run(num_tokens))


def test_pieces_of_which_none_can_be_captured_are_no_captured_size(buffers, graphs):
    """An index in the first piece: the coverage is nought, and so says the state."""

    class Early(nn.Module):
        def forward(self, x, position_ids):
            return x[position_ids.flip(0)] * 2

    runner = PiecewiseRunner(Early(), buffers, graphs, ["toy::attend"])
    [prepared] = runner.prepare([7])
    assert (prepared.state, prepared.captured_segments, prepared.graph_launches) == ("fell_back", 0, 0)
    runner.run(7)
    assert runner.facts(7).state == "fell_back"


def test_trap_a_data_dependent_arity_is_refused_by_name(piecewise, batch):
    """Op 1 returns fewer or more tensors for this batch than its fake kernel promised at the trace."""
    piecewise.prepare([64])
    for arity in (1, 3):
        batch.arity = arity
        with pytest.raises(CaptureError, match=f"of 7 tokens: toy::proj: traced with 2 .* returns {arity}") as caught:
            piecewise.prepare([7])
        assert caught.value.op == "toy::proj"
    batch.arity = 2
    [prepared] = piecewise.prepare([7])
    assert prepared.state == "captured"


def test_trap_without_the_check_a_third_tensor_is_lost_silently(piecewise, batch, monkeypatch):
    """Its twin: nothing else would have complained."""
    monkeypatch.setattr(subject, "check_fakes", lambda *args: None)
    batch.arity = 3
    assert piecewise.prepare([7])[0].state == "captured"
