from __future__ import annotations

import pytest
import torch
import torch._dynamo
from torch import nn

from mlaprof.capture.graphs import CaptureError
from mlaprof.capture.trace import trace

pytestmark = pytest.mark.usefixtures("mode")


class Fn(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x, position_ids):
        return self.fn(x * self.scale, position_ids)


def inputs(num_tokens=5, width=8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(num_tokens, width), torch.arange(num_tokens)


def test_a_module_that_fixes_the_token_count_is_refused_with_the_line():
    def forward(x, ids):
        return x.view(5, 8).exp()  # the culprit

    with pytest.raises(CaptureError, match="fixes the token count to 5") as caught:
        trace(Fn(forward), inputs())
    assert "x.view(5, 8).exp()  # the culprit" in caught.value.op


def test_a_second_open_size_is_refused():
    """A graph is asked for by its token count alone."""
    other = torch.randn(6, 8)
    torch._dynamo.mark_dynamic(other, 0)
    with pytest.raises(CaptureError, match="a size other than the token count is left open"):
        trace(Fn(lambda x, ids: x + other.sum(0)), inputs())


def test_a_module_that_cannot_be_traced_is_refused_with_the_line():
    def forward(x, ids):
        return x if x.sum() > 0 else x + 1

    with pytest.raises(CaptureError, match="cannot trace the module") as caught:
        trace(Fn(forward), inputs())
    file, _, line = caught.value.op.rpartition(":")
    assert file == __file__ and int(line) == forward.__code__.co_firstlineno + 1


def test_a_branch_on_the_token_count_binds_the_trace():
    """Dropped guards must not mean a silently wrong path."""
    traced = trace(Fn(lambda x, ids: x.exp() if x.shape[0] > 3 else x.sin()), inputs())

    traced.arguments(inputs(4))
    with pytest.raises(CaptureError, match="> 3, which 3 tokens do not meet") as caught:
        traced.arguments(inputs(3))
    assert "x.shape[0] > 3 else" in caught.value.op


def test_a_branch_on_one_token_is_not_told_and_takes_the_path_of_more():
    """The limit that trace's docstring names: Dynamo takes an open size for two or more, and asks nobody."""
    traced = trace(Fn(lambda x, ids: x.exp() if x.shape[0] == 1 else x.sin()), inputs())

    one = inputs(1)
    [got] = traced.graph_module.forward(*traced.arguments(one))
    assert torch.equal(one[0].sin(), got)


def test_tracing_runs_nothing_and_leaves_no_mark_on_the_examples(make_stack, batch):
    """The real operators would fail here; marks would turn up in whatever else is compiled on these tensors."""
    batch.bad_rows = None  # proj cannot look a row count up in it
    examples = inputs()
    with pytest.raises(TypeError):
        make_stack(1)(*examples)
    before = [set(vars(tensor)) for tensor in examples]
    trace(make_stack(1), examples)
    assert [set(vars(tensor)) for tensor in examples] == before


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 64])
def test_one_trace_computes_every_token_count(make_stack, num_tokens, batch):
    """One token too, though Dynamo's own guards would ask for two."""
    module = make_stack(2)
    batch.num_tokens = num_tokens
    traced = trace(module, inputs())

    mine = inputs(num_tokens)
    [got] = traced.graph_module.forward(*traced.arguments(mine))

    assert torch.equal(module(*mine), got)


def test_many_modules_can_be_traced(make_stack):
    """Neither a limit on recompilations nor sizes seen before leak from one trace into the next."""
    for width in range(2, 14):
        trace(make_stack(1, width=width), inputs(width=width))


@pytest.mark.parametrize("counts", [(1, 1), (4, 5)])
def test_examples_must_agree_on_two_or_more_tokens(make_stack, counts):
    with pytest.raises(ValueError, match="expected one num_tokens >= 2"):
        trace(make_stack(1), (torch.randn(counts[0], 8), torch.arange(counts[1])))


@pytest.mark.parametrize("fn", [lambda x, ids: 3, lambda x, ids: (x + 1, x + 2)], ids=["number", "two tensors"])
def test_a_module_that_does_not_return_one_tensor_is_refused(fn):
    with pytest.raises(CaptureError, match="must return one new tensor"):
        trace(Fn(fn), inputs())


def test_a_module_that_computes_nothing_is_refused():
    class Idle(nn.Module):
        def forward(self, x, position_ids):
            return 3

    with pytest.raises(CaptureError, match="computes nothing"):
        trace(Idle(), inputs())


def test_a_module_that_keeps_a_tensor_is_refused():
    """What a graph leaves on the module would go stale at the next size."""

    def forward(x, ids):
        module.kept = x.exp()
        return x + 1

    module = Fn(forward)
    with pytest.raises(CaptureError, match="must return one new tensor and keep none"):
        trace(module, inputs())
