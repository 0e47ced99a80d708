"""Verified runs: everything a graph reads is where it was at capture, or nothing is replayed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlaprof.capture.addresses import StaleAddress

pytestmark = pytest.mark.usefixtures("mode")


def moved(tensor: torch.Tensor) -> torch.Tensor:
    """The same values elsewhere; the old place keeps them too."""
    return tensor.detach().clone()


def test_a_verified_run_is_a_run(captured, reload):
    """At captured, padded and fallen-back sizes."""
    captured.prepare([7])
    for num_tokens in (7, 5, 9, 7):
        reload(num_tokens)
        assert torch.equal(captured.run(num_tokens).clone(), captured.verified_run(num_tokens))


def test_trap_an_input_that_moved_is_told(captured, buffers):
    """A view made earlier is still where it was; the buffer itself is asked."""
    captured.prepare([64, 7])
    want = captured.run(7).clone()
    buffers.tensors["x"].set_(moved(buffers.tensors["x"]))
    buffers.load(x=torch.ones_like(buffers.tensors["x"]))
    for num_tokens in (7, 64):
        with pytest.raises(StaleAddress, match="was captured with input x at 0x"):
            captured.verified_run(num_tokens)
    assert torch.equal(want, captured.run(7)), "an unverified run reads what is left at the old place"


def replace_parameter(stack):
    stack.layers[1].out.weight = nn.Parameter(moved(stack.layers[1].out.weight), requires_grad=False)


def replace_data(stack):
    stack.layers[1].out.weight.data = moved(stack.layers[1].out.weight)


def take_away(stack):
    del stack.layers[1].out.weight


@pytest.mark.parametrize("change", [replace_parameter, replace_data, take_away])
def test_trap_a_weight_that_moved_is_told(captured, stack, change):
    captured.prepare([7])
    change(stack)
    state = "is gone" if change is take_away else "is at 0x"
    with pytest.raises(StaleAddress, match=rf"with layers\.1\.out\.weight at 0x[0-9a-f]+, which {state}"):
        captured.verified_run(7)


def test_pieces_of_a_trace_are_named(piecewise, stack):
    """The piece that takes the tensor as an argument; a weight that an operator finds for itself has none."""
    piecewise.prepare([7])
    replace_parameter(stack)
    with pytest.raises(StaleAddress, match=r"^submod_4 was captured with layers\.1\.out\.weight"):
        piecewise.verified_run(7)


def test_a_buffer_of_the_module_is_looked_at_though_no_argument_shows_it(make_runner, device):
    """As weights are that an operator finds by the layer's name."""

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.ones(3, device=device))

        def forward(self, x, position_ids):
            return x * 2

    for name in ("full", "piecewise", "breakable"):
        module = Hidden()
        runner = make_runner(name, module)
        runner.prepare([7])
        module.table = moved(module.table)
        with pytest.raises(StaleAddress, match="table"):
            runner.verified_run(7)


LIBRARY = torch.library.Library("toymoves", "DEF")
LIBRARY.define("attend(Tensor q, Tensor(a!) output) -> ()")
FRESH: list[torch.Tensor] = []  # keeps what it allocates, so that no later one lands at the same place


def _attend(q: torch.Tensor, output: torch.Tensor) -> None:
    FRESH.append(q * 3)
    output.set_(FRESH[-1])


for _key in ("CPU", "CUDA"):
    LIBRARY.impl("attend", _attend, _key)
torch.library.register_fake("toymoves::attend", lambda q, output: None, lib=LIBRARY)


class Moves(nn.Module):
    """Its boundary operator does not write its output but puts another tensor in its place."""

    def forward(self, x, position_ids):
        q = x + 1
        output = torch.empty_like(q)
        torch.ops.toymoves.attend(q, output)
        return output * 2


@pytest.mark.parametrize("hold", ["strong", "weak"])
@pytest.mark.parametrize("name", ["piecewise", "breakable"])
def test_trap_an_eager_operator_that_allocates_its_own_output_is_told(name, hold, buffers, graphs, reload):
    """The piece behind it reads the output of the capture for ever."""
    from mlaprof.capture.breakable import BreakableRunner
    from mlaprof.capture.piecewise import PiecewiseRunner

    module = Moves()
    kind = {"piecewise": PiecewiseRunner, "breakable": BreakableRunner}[name]
    runner = kind(module, buffers, graphs, ["toymoves::attend"], hold=hold)
    runner.prepare([7])
    reload(7)
    got = runner.run(7).clone()
    assert not torch.equal(module(*buffers.slice(7)), got), "unverified, it is silently wrong"
    with pytest.raises(StaleAddress, match=r"(submod|piece)_2 was captured with .* at 0x"):
        runner.verified_run(7)
    FRESH.clear()


def test_a_stale_graph_is_not_replayed(full, buffers):
    """The output of the last run is left alone."""
    full.prepare([7])
    output = full.run(7)
    output.fill_(5.0)
    buffers.tensors["x"].set_(moved(buffers.tensors["x"]))
    with pytest.raises(StaleAddress):
        full.verified_run(7)
    assert output.eq(5).all()
