from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from mlaprof.capture import piecewise as pieces
from mlaprof.capture.eager import EagerRunner
from mlaprof.capture.full import FullRunner
from mlaprof.capture.graphs import CaptureError
from mlaprof.capture.piecewise import PiecewiseRunner
from mlaprof.capture.program import Prepared

pytestmark = pytest.mark.usefixtures("mode")
SIZES = (1, 2, 7, 64)
WIDTH = 8


@pytest.fixture
def piecewise(stack, buffers, graphs) -> PiecewiseRunner:
    return PiecewiseRunner(stack, buffers, graphs, ["toy::attend"])


@pytest.fixture
def full(stack, buffers, graphs) -> FullRunner:
    return FullRunner(stack, buffers, graphs)


def reload(buffers, num_tokens):
    device = buffers.slice(1)[0].device
    buffers.load(x=torch.randn(num_tokens, WIDTH, device=device))


def churn(device):
    """Allocate, fill and free blocks of many sizes, so that a freed address would hold something else."""
    sizes = [random.randrange(1, 5000) for _ in range(50)]
    del [torch.full((size,), float("nan"), device=device) for size in sizes][:]


def test_pieces_compute_what_eager_does_with_sizes_interleaved(piecewise, stack, buffers, batch, device):
    """Bit for bit at the captured size, for inputs loaded after capture, whatever ran in between."""
    piecewise.prepare(SIZES)
    random.seed(0)
    for num_tokens in [*random.choices(range(1, 65), k=40), 1, 64, 1, 2, 7, 64]:
        reload(buffers, num_tokens)
        churn(device)
        batch.num_tokens = num_tokens
        got = piecewise.run(num_tokens).clone()
        padded = piecewise.facts(num_tokens).num_tokens

        assert padded == min(size for size in SIZES if size >= num_tokens)
        assert torch.equal(stack(*buffers.slice(padded))[:num_tokens], got)


def test_a_full_graph_computes_what_eager_does(full, stack, buffers, batch, device):
    for num_tokens in SIZES:
        batch.num_tokens = num_tokens
        full.prepare([num_tokens])
    for num_tokens in (64, 1, 7, 2, 64, 7):
        reload(buffers, num_tokens)
        churn(device)
        batch.num_tokens = num_tokens
        got = full.run(num_tokens).clone()
        assert torch.equal(stack(*buffers.slice(num_tokens)), got)


def test_eager_runs_the_module_at_the_true_size(stack, buffers, batch):
    runner = EagerRunner(stack, buffers)
    batch.num_tokens = 3
    assert runner.prepare([1, 3]) == (Prepared(3, 0, 1, 0, 0), Prepared(1, 0, 1, 0, 0))
    assert torch.equal(stack(*buffers.slice(3)), runner.run(3))


def test_one_trace_serves_every_size(piecewise, buffers, batch, monkeypatch):
    """Engines drop the guards; a second trace at one token would be another program."""
    traces = []
    real = pieces.trace
    monkeypatch.setattr(pieces, "trace", lambda *args: traces.append(args) or real(*args))

    piecewise.prepare([64, 7])
    piecewise.prepare([2, 1])
    for num_tokens in (1, 2, 3, 64):
        batch.num_tokens = num_tokens
        piecewise.run(num_tokens)
    assert len(traces) == 1


def test_a_boundary_sees_the_batch_of_the_run_and_a_full_graph_that_of_its_capture(piecewise, full, buffers, batch):
    """The excluded operator stays Python; inside a full graph its Python is frozen."""
    piecewise.prepare([7])
    full.prepare([7])
    before = full.run(7).clone()
    batch.num_tokens = 2
    assert torch.equal(before, full.run(7))
    assert not torch.equal(before[:2], piecewise.run(2))


def test_prepare_answers_largest_first_and_counts(piecewise, full):
    done = piecewise.prepare([2, 64, 7, 7])
    assert [prepared.num_tokens for prepared in done] == [64, 7, 2]
    assert {(p.captured_segments, p.eager_segments, p.graph_launches) for p in done} == {(3, 2, 3)}
    assert piecewise.facts(5) == done[1]

    [one] = full.prepare([7])
    assert (one.captured_segments, one.eager_segments, one.graph_launches) == (1, 0, 1)
    assert one.graph_nodes > done[1].graph_nodes > 3


def test_above_the_largest_captured_size_the_pieces_run_eagerly_at_the_true_size(piecewise, stack, buffers, batch):
    piecewise.prepare([7])
    batch.num_tokens = 9
    assert piecewise.facts(9) == Prepared(9, 0, 5, 0, 0)
    assert torch.equal(stack(*buffers.slice(9)), piecewise.run(9))

    piecewise.prepare([64])
    assert piecewise.facts(9).num_tokens == 64


def test_the_output_stays_where_it_is(piecewise, full):
    """What reads the result may itself be captured."""
    piecewise.prepare([7, 2])
    full.prepare([7])
    addresses = {(piecewise.run(2).data_ptr(), piecewise.run(7).data_ptr(), full.run(7).data_ptr()) for _ in range(3)}
    assert len(addresses) == 1
    assert piecewise.run(6).shape == (6, WIDTH)


def test_the_boundary_writes_the_tensor_that_the_piece_before_it_allocated(piecewise, monkeypatch):
    """No copy between: the next captured piece reads the very address."""
    seen = []
    piecewise.prepare([7])
    program = piecewise._captured[7]
    eager = [step for step in program.steps if getattr(step, "args", None)]
    assert len(eager) == 2
    for step in eager:
        output = step.args[-1]
        output.fill_(5.0)
        step()
        seen.append(bool((output != 5.0).all()))
    assert seen == [True, True]


def test_rows_behind_the_batch_stay_untouched(piecewise, batch, buffers):
    """A boundary writes the true rows only. What the padding rows held before is nobody's promise: the pool may have
    lent the block to a temporary of the same piece."""
    piecewise.prepare([7])
    batch.num_tokens = 3
    steps = [step for step in piecewise._captured[7].steps if getattr(step, "args", None)]
    assert len(steps) == 2
    for step in steps:
        output = step.args[-1]
        output.fill_(5.0)
        step()
        assert bool((output[:3] != 5.0).all()) and bool((output[3:] == 5.0).all())


def test_a_failed_capture_names_the_op_and_leaves_the_other_sizes(piecewise, full, stack, buffers, batch, device):
    """One bad size is one failed row."""
    for runner in (piecewise, full):
        batch.bad_rows = ()
        runner.prepare([64])
        batch.bad_rows = (7,)
        with pytest.raises(CaptureError, match="graph of 7 tokens") as caught:
            runner.prepare([7])
        assert ("item" if device == "cuda" else "_local_scalar_dense") in caught.value.op
        runner.prepare([2])
        for num_tokens in (64, 2):
            reload(buffers, num_tokens)
            batch.num_tokens = 64  # as at the capture of the full graph
            got = runner.run(num_tokens).clone()
            assert torch.equal(stack(*buffers.slice(num_tokens)), got)


def test_a_size_is_captured_once(piecewise, full, graphs, monkeypatch):
    for runner in (piecewise, full):
        first = runner.prepare([7, 2])
        with monkeypatch.context() as patch:
            patch.setattr(graphs, "capture", None)
            assert runner.prepare([2, 7]) == first


@pytest.mark.parametrize("sizes", [[0], [65], [1, -1]])
def test_sizes_beyond_the_buffers_are_refused(piecewise, full, stack, buffers, sizes):
    for runner in (piecewise, full, EagerRunner(stack, buffers)):
        with pytest.raises(ValueError, match="expected 1 to 64"):
            runner.prepare(sizes)


@pytest.mark.parametrize("num_tokens", [0, -1, 65])
def test_a_run_beyond_the_buffers_is_refused(piecewise, stack, buffers, num_tokens):
    """Padding would answer 0 and -1 with rows of the smallest graph."""
    piecewise.prepare([7])
    for runner in (piecewise, EagerRunner(stack, buffers)):
        with pytest.raises(ValueError, match=f"expected 1 to 64, got {num_tokens}"):
            runner.run(num_tokens)


def test_a_full_graph_does_not_pad(full):
    """The batch in it is frozen: another size would be silently wrong."""
    full.prepare([7])
    for ask in (full.run, full.facts):
        with pytest.raises(ValueError, match=r"expected a prepared size of \[7\], got 6"):
            ask(6)


def test_each_size_is_warmed_up_before_its_capture(buffers, graphs):
    """Three calls that compile and allocate, then the capture itself."""
    calls = []

    class Counts(nn.Module):
        def forward(self, x, position_ids):
            calls.append(x.shape[0])
            return x * 2

    FullRunner(Counts(), buffers, graphs).prepare([7, 2])
    assert calls == [7] * 4 + [2] * 4


def test_buffers_of_one_token_can_run_in_pieces(stack, graphs, batch, device):
    """The trace needs two tokens, the user need not have them."""
    from mlaprof.capture.buffers import InputBuffers

    batch.num_tokens = 1
    buffers = InputBuffers({"x": torch.randn(1, WIDTH, device=device), "ids": torch.arange(1, device=device)})
    runner = PiecewiseRunner(stack, buffers, graphs, ["toy::attend"])
    runner.prepare([1])
    assert torch.equal(stack(*buffers.slice(1)), runner.run(1))


class Stops(nn.Module):
    """Indexes by tensor after one boundary."""

    def forward(self, x, position_ids):
        output = torch.empty_like(x)
        torch.ops.toy.attend(x * 2, x, output)
        return output[position_ids.flip(0)].exp()


def test_an_output_of_an_eager_tail_is_that_of_this_run(buffers, graphs, batch):
    """After a stop the last piece is eager, pads like the rest, and returns a new tensor each time."""
    module = Stops()
    runner = PiecewiseRunner(module, buffers, graphs, ["toy::attend"])
    [prepared] = runner.prepare([7])
    assert (prepared.captured_segments, prepared.eager_segments) == (1, 2)
    for num_tokens in (7, 4, 7):
        reload(buffers, 7)
        want = module(*buffers.slice(7))[:num_tokens]
        assert torch.equal(want, runner.run(num_tokens))
