"""One capture broken at operators: what it adds to the promises of every runner."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlaprof.capture.breakable import BreakableRunner
from mlaprof.capture.graphs import CaptureError

pytestmark = pytest.mark.usefixtures("mode")


@pytest.fixture
def breakable(make_runner):
    return make_runner("breakable")


def test_nothing_is_traced(breakable, monkeypatch):
    """No compiler: a module that Dynamo cannot follow is captured all the same."""
    monkeypatch.setattr(torch, "compile", None)
    [prepared] = breakable.prepare([7])
    assert (prepared.state, prepared.captured_segments, prepared.eager_segments) == ("captured", 3, 2)
    assert breakable.stop is None


def test_pieces_alternate_and_name_their_operators(breakable):
    [prepared] = breakable.prepare([7])
    pieces = breakable.pieces(5)
    assert [piece.kind for piece in pieces] == ["captured", "eager", "captured", "eager", "captured"]
    assert [piece.ops for piece in pieces if piece.kind == "eager"] == [("toy::attend",)] * 2
    assert all(piece.ops for piece in pieces if piece.kind == "captured")
    assert sum(piece.kernels or 0 for piece in pieces) == prepared.nodes.kernel
    assert len({piece.name for piece in pieces}) == 5


def test_piecewise_and_breakable_launch_the_same_graphs(breakable, piecewise):
    """Two ways to one step: the same segments, and as many device operations in them."""
    [broken], [cut] = breakable.prepare([7]), piecewise.prepare([7])
    counts = [(p.captured_segments, p.eager_segments, p.graph_launches, p.nodes) for p in (broken, cut)]
    assert counts[0] == counts[1]


def test_the_first_replay_of_every_graph_is_timed(breakable, device):
    [prepared] = breakable.prepare([7])
    assert (prepared.first_replay_s > 0) == (device == "cuda")


def test_three_warm_ups_then_the_capture(buffers, graphs):
    calls = []

    class Counts(nn.Module):
        def forward(self, x, position_ids):
            calls.append(x.shape[0])
            return x * 2

    BreakableRunner(Counts(), buffers, graphs, ["toy::attend"]).prepare([7, 2])
    assert calls == [7] * 4 + [2] * 4


def test_an_operator_that_hands_on_a_new_tensor_is_refused(buffers, graphs):
    class Fresh(nn.Module):
        def forward(self, x, position_ids):
            return torch.ops.toy.fresh(x) + 1

    runner = BreakableRunner(Fresh(), buffers, graphs, ["toy::fresh"])
    with pytest.raises(CaptureError, match="broken graph of 7 tokens: toy::fresh stays eager") as caught:
        runner.prepare([7])
    assert caught.value.op == "toy::fresh"
    assert torch.equal(Fresh()(*buffers.slice(7)), runner.run(7))


def test_a_module_with_nothing_to_launch_is_no_captured_size(buffers, graphs):
    class Views(nn.Module):
        def forward(self, x, position_ids):
            return x[:, :4]

    runner = BreakableRunner(Views(), buffers, graphs, ["toy::attend"])
    assert runner.prepare([7])[0].state == "fell_back"
    assert torch.equal(buffers.slice(7)[0][:, :4], runner.verified_run(7))


def test_host_code_between_operators_runs_at_capture_alone(buffers, graphs, batch):
    """What the module computes in Python is frozen, as in any graph; only the operator at the break is called again."""
    calls = []

    class Counts(nn.Module):
        def forward(self, x, position_ids):
            calls.append(x.shape[0])
            output = torch.empty_like(x)
            torch.ops.toy.attend(x, x, output)
            return output + 1

    runner = BreakableRunner(Counts(), buffers, graphs, ["toy::attend"])
    runner.prepare([7])
    calls.clear()
    batch.num_tokens = 7
    x = buffers.slice(7)[0]
    assert torch.equal(x.flip(0) * x + 1, runner.run(7))
    assert calls == []
