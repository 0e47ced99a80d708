from __future__ import annotations

import operator

import pytest
import torch
from torch import nn

from mlaprof.capture.graphs import CaptureError
from mlaprof.capture.splitter import Partition, split
from mlaprof.capture.trace import trace

pytestmark = pytest.mark.usefixtures("mode")

ATTEND = ("toy::attend",)


class Fn(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x, position_ids):
        return self.fn(x * self.scale, position_ids)


def cut(module, boundaries=ATTEND, num_tokens=5, width=8, **options) -> Partition:
    traced = trace(module, (torch.randn(num_tokens, width), torch.arange(num_tokens)))
    return split(traced, boundaries=boundaries, **options)


def attend(x):
    output = torch.empty_like(x)
    torch.ops.toy.attend(x, x, output)
    return output


def kinds(partition: Partition) -> list[str]:
    return [segment.kind for segment in partition.segments]


@pytest.mark.parametrize("num_layers", [1, 2, 5])
def test_n_layers_leave_n_plus_one_captured_pieces(make_stack, num_layers):
    """The tail of one layer and Op 1 of the next are one piece; Op 1 is no boundary."""
    partition = cut(make_stack(num_layers))

    assert kinds(partition) == ["captured", "eager"] * num_layers + ["captured"]
    assert [s.ops for s in partition.segments if s.kind == "eager"] == [("toy::attend",)] * num_layers
    assert sum(s.ops.count("toy::proj") for s in partition.segments if s.captured) == num_layers
    assert partition.stop is None


@pytest.mark.parametrize("name", ["toy::attend", "toy::attend.default"])
def test_a_boundary_may_be_named_with_or_without_overload(make_stack, name):
    assert kinds(cut(make_stack(1), boundaries=(name,))) == ["captured", "eager", "captured"]


def test_without_a_boundary_all_is_one_captured_piece(make_stack):
    assert kinds(cut(make_stack(2), boundaries=("toy::other",))) == ["captured"]


def test_the_pieces_hold_the_ops_as_written_with_no_hidden_copy(make_stack):
    """Functionalisation would leave an auto_functionalized wrapper or a copy; the in-place op stands as it was."""
    partition = cut(make_stack(1))

    assert partition.segments[0].ops[-4:] == ("aten::new_empty", "toy::proj", "getitem", "getitem")
    assert partition.segments[1].ops == ("toy::attend",)
    assert partition.segments[2].ops == ("aten::linear", "aten::add")


INDEXERS = {
    "tensor index": (lambda x, ids: x[ids], "aten::index.Tensor"),
    "tensor index in a tuple": (lambda x, ids: x[ids, 2:4], "aten::index.Tensor"),
    "list index": (lambda x, ids: x + x[:, [0, 1, 2, 3, 4, 5, 6, 7]], "aten::index.Tensor"),
    "index packet": (lambda x, ids: torch.ops.aten.index(x, [ids]), "aten::index"),
    "index overload": (lambda x, ids: torch.ops.aten.index.Tensor(x, [ids]), "aten::index.Tensor"),
    "torch.cumsum": (lambda x, ids: torch.cumsum(x, 0), "aten::cumsum"),
    "cumsum method": (lambda x, ids: x.cumsum(0), "aten::cumsum"),
}


@pytest.mark.parametrize("name", INDEXERS)
def test_the_first_index_or_cumsum_stops_the_cutting(name):
    """Its own piece and all that follows stay eager, later boundaries included."""
    stopper, spelled = INDEXERS[name]
    partition = cut(Fn(lambda x, ids: attend(attend(x).exp() + stopper(attend(x), ids).sum())))

    assert kinds(partition) == ["captured", "eager", "captured", "eager", "eager"]
    assert partition.stop == spelled
    assert spelled in partition.segments[-1].ops and "toy::attend" in partition.segments[-1].ops
    assert f"stopped at {spelled}" in str(partition)


def test_an_index_in_the_first_piece_leaves_nothing_to_capture():
    """The collapse of coverage that upstream's rule has is kept and shown."""
    partition = cut(Fn(lambda x, ids: attend(x[ids].exp()) + 1))
    assert kinds(partition) == ["eager"]
    assert partition.count("captured") == 0


VIEWS = {
    "slice": lambda x, ids: x[:, 2:6],
    "number": lambda x, ids: x[:, 3],
    "new axis": lambda x, ids: ids[:, None] + x[..., :1],
    "list of tensors": lambda x, ids: x.chunk(2, dim=1)[0],
}


@pytest.mark.parametrize("name", VIEWS)
def test_slices_are_no_index(name):
    partition = cut(Fn(lambda x, ids: attend(x) + VIEWS[name](x, ids).sum()))
    assert partition.stop is None
    assert kinds(partition) == ["captured", "eager", "captured"]


def test_stops_can_be_named():
    assert cut(Fn(lambda x, ids: attend(x[ids]) + 1), stops=()).stop is None
    assert cut(Fn(lambda x, ids: attend(x.exp()) + 1), stops=("aten::exp",)).stop == "aten::exp"


def test_a_piece_of_views_and_allocations_needs_no_graph():
    """Nothing to launch, nothing to capture."""

    def forward(x, ids):
        first = torch.empty_like(x)
        torch.ops.toy.attend(x, x, first)
        second = torch.empty(x.shape[0], 8)
        view = first.view(-1, 2, 4).flatten(1)[:, :8]
        torch.ops.toy.attend(view, x, second)
        return second + 1

    partition = cut(Fn(forward))
    assert kinds(partition) == ["captured", "eager", "free", "eager", "captured"]


WORK = {
    "method": lambda y, x: y.add_(1),
    "operator": lambda y, x: operator.iadd(y, 1),
    "item": lambda y, x: y.__setitem__(0, 1),
    "through a view": lambda y, x: y[:, :2].fill_(0),
    "packet": lambda y, x: torch.ops.aten.add_(y, 1),
    "overload": lambda y, x: torch.ops.aten.add_.Tensor(y, 1),
    "out=": lambda y, x: torch.add(x, x, out=y),
    "out overload": lambda y, x: torch.ops.aten.add.out(x, x, out=y),
    "inplace=": lambda y, x: torch.nn.functional.relu(y, inplace=True),
    "inplace by place": lambda y, x: torch.nn.functional.silu(y, True),
    "inplace module": lambda y, x: nn.Hardtanh(inplace=True)(y),
    "operator without result": lambda y, x: torch.ops.toy.note(y),
}


@pytest.mark.parametrize("name", WORK)
def test_work_that_returns_nothing_new_is_captured(name):
    """A piece of views alone is evaluated once; a write must be done at every step."""

    def forward(x, ids):
        output = attend(x)
        WORK[name](output, x)
        torch.ops.toy.attend(output, x, output)
        return output * 1

    assert kinds(cut(Fn(forward))) == ["captured", "eager", "captured", "eager", "captured"]


def test_an_eager_op_that_hands_on_a_new_tensor_is_refused():
    """The next graph would read the first call's tensor for ever."""
    with pytest.raises(CaptureError, match="toy::fresh stays eager and hands a new tensor") as caught:
        cut(Fn(lambda x, ids: torch.ops.toy.fresh(x) + 1), boundaries=("toy::fresh",))
    assert caught.value.op == "toy::fresh"


def test_an_eager_op_may_return_the_output_itself():
    assert kinds(cut(Fn(lambda x, ids: torch.ops.toy.fresh(x)), boundaries=("toy::fresh",))) == ["captured", "eager"]


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 64])
def test_the_pieces_together_compute_every_token_count(make_stack, num_tokens, batch):
    """Cut at one token count, run at another."""
    module = make_stack(2)
    inputs = (torch.randn(num_tokens, 8), torch.arange(num_tokens))
    batch.num_tokens = num_tokens
    partition = cut(module)

    [got] = partition.graph_module.forward(*partition.traced.arguments(inputs))

    assert torch.equal(module(*inputs), got)


def test_partitions_are_values(make_stack):
    """Two traces of one architecture print and compare alike."""
    first, second = cut(make_stack(2)), cut(make_stack(2), num_tokens=9)
    assert first == second
    assert str(first) == str(second)
    assert str(first).splitlines()[1] == "submod_1 eager: toy::attend"
    assert first != cut(make_stack(1))
