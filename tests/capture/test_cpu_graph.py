from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mlaprof.capture.cpu_graph import CpuGraphs
from mlaprof.capture.graphs import Break, CaptureError, Nodes

pytestmark = pytest.mark.usefixtures("mode")

X = torch.tensor([[1.0, -2.0], [3.0, 4.0], [0.5, -0.5]])

ROWS = torch.tensor([0, 1, 0])

REFUSED = {
    "item": (lambda x: x.sum().item(), "aten::_local_scalar_dense"),
    "float": (lambda x: float(x[0, 0]), "aten::_local_scalar_dense"),
    "branch on a value": (lambda x: x if x.sum() > 0 else -x, "aten::_local_scalar_dense"),
    "equal": (lambda x: torch.equal(x, x + 0), "aten::equal"),
    "allclose": (lambda x: torch.allclose(x, x + 0), "aten::allclose"),
    "nonzero": (lambda x: x.nonzero(), "aten::nonzero"),
    "where with one argument": (lambda x: torch.where(x > 0), "aten::nonzero"),
    "masked_select": (lambda x: x.masked_select(x > 0), "aten::masked_select"),
    "unique": (lambda x: torch.unique(x), "aten::_unique2"),
    "mask read": (lambda x: x[x > 0], "aten::index.Tensor"),
    "mask write of many": (lambda x: (x + 0).index_put_((x > 0,), x[0, :1].expand(4)), "aten::index_put_"),
    "mask write that adds": (lambda x: (x + 0).index_put_((x > 0,), x[0, 0], accumulate=True), "aten::index_put_"),
    "mask write beside numbers": (lambda x: (x + 0).index_put_((x[:, 0] > 0, ROWS), x[0, 0]), "aten::index_put_"),
    "mask of bytes": (lambda x: x[(x > 0).byte()], "aten::index.Tensor"),
    "repeat by tensor": (lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.long), 0), "aten::repeat_interleave"),
    "list to tensor": (lambda x: x + torch.tensor([1.0, 2.0]), "aten::lift_fresh"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_capture_refuses_is_refused_by_name(name):
    """And the maker goes on as if nothing had been."""
    fn, op = REFUSED[name]
    graphs = CpuGraphs()
    with pytest.raises(CaptureError, match=op.split(".")[0]) as caught:
        graphs.capture(lambda: fn(X))
    assert caught.value.op.split(".")[0] == op.split(".")[0]

    graph, result = graphs.capture(lambda: X * 2)
    graph.replay()
    assert torch.equal(X * 2, result)


def assigned_under_a_mask(x: torch.Tensor) -> torch.Tensor:
    y = x + 0
    y[x > 0] = 7.0
    return y


HELD = {
    "index by numbers": lambda x: x[x[:, 0].long() % 3],
    "mask write of one": lambda x: (x + 0).masked_fill_(x > 0, 7.0),
    "mask write of one number": lambda x: (x + 0).index_put_((x > 0,), torch.tensor(7.0)),
    "mask assignment": assigned_under_a_mask,
    "repeat to a known size": lambda x: x.repeat_interleave((x[:, 0] * 0 + 2).long(), 0, output_size=6),
    "reshape that copies": lambda x: x.t().reshape(-1),
    "reshape that does not": lambda x: x.reshape(-1) * 1,
    "contiguous of contiguous": lambda x: x.contiguous() + 1,
    "two outputs": lambda x: torch.cat([v.float() for v in x.topk(1, dim=1)]),
    "einsum": lambda x: torch.einsum("td,td->t", x, x),
    "out=": lambda x: torch.mm(x, x.t(), out=torch.empty(3, 3)),
    "write through a view": lambda x: torch.zeros_like(x).t().copy_(x.t() * 3),
    "scalar tensor": lambda x: x * torch.tensor(2.0),
    "cast": lambda x: x.to(torch.bfloat16).float(),
    "cast to the same": lambda x: x.to(torch.float32) + 1,
    "layer norm": lambda x: torch.nn.functional.layer_norm(x, (2,)),
    "attention": lambda x: torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
    "opaque op": torch.ops.toy.busy,
}


@pytest.mark.parametrize("name", HELD)
def test_replay_computes_what_a_fresh_run_would(name):
    """Into the tensors of the capture, from whatever the inputs hold now."""
    fn, x = HELD[name], X.clone()
    graph, result = CpuGraphs().capture(lambda: fn(x))
    address = result.data_ptr()
    for factor in (-1.5, 0.25):
        x.copy_(X * factor)
        graph.replay()
        assert torch.equal(fn(x), result)
    assert result.data_ptr() == address


def test_replay_freezes_python_control_flow():
    choice = [1.0]
    graph, result = CpuGraphs().capture(lambda: X * choice[0])
    choice[0] = 5.0
    graph.replay()
    assert torch.equal(X, result)


def test_an_allocation_is_no_node_and_keeps_what_is_in_it():
    """Rows that a later, shorter batch leaves alone must hold what the earlier one wrote."""

    def fn():
        output = X.new_empty(3, 2)
        output[:1] = X[:1] * 2
        return output

    graph, output = CpuGraphs().capture(fn)
    output[1:] = 9.0
    graph.replay()

    assert output[1:].eq(9).all()
    assert graph.nodes.total == 2


@pytest.mark.parametrize("fn", [lambda x: x[1:].t().view(-1, 1), lambda x: x.detach(), lambda x: x])
def test_views_are_no_nodes(fn):
    graph, _ = CpuGraphs().capture(lambda: fn(X[:, :1]))
    assert graph.nodes.total == 0


def test_an_operator_is_one_node_unless_it_is_seen_through():
    output = torch.zeros(3, 2)

    def fn():
        torch.ops.toy.attend(X, X, output)

    opaque, _ = CpuGraphs().capture(fn)
    seen, _ = CpuGraphs(see_through=("toy::attend",)).capture(fn)
    plain, _ = CpuGraphs().capture(lambda: output.copy_(X.flip(0) * X))
    assert opaque.ops == ("toy::attend",)
    assert seen.ops == plain.ops

    returned, parts = CpuGraphs(see_through=("toy::proj",)).capture(lambda: torch.ops.toy.proj(X, torch.eye(2)))
    assert "toy::proj" not in returned.ops
    returned.replay()
    assert torch.equal(X.sigmoid(), parts[1])


def test_an_operator_seen_through_freezes_its_python(batch):
    """In a full graph the batch structure read at capture is the one replayed."""
    output = torch.zeros(3, 2)

    def fn():
        torch.ops.toy.attend(X, X, output)

    batch.num_tokens = 3
    opaque, _ = CpuGraphs().capture(fn)
    seen, _ = CpuGraphs(see_through=("toy::attend",)).capture(fn)
    batch.num_tokens = 1
    output.zero_()
    opaque.replay()
    assert output.any(dim=1).tolist() == [True, False, False]
    seen.replay()
    assert output.any(dim=1).tolist() == [True, True, True]


def test_a_wait_inside_an_operator_seen_through_is_refused(batch):
    batch.bad_rows = (3,)
    graphs = CpuGraphs(see_through=("toy::proj",))
    with pytest.raises(CaptureError, match="_local_scalar_dense"):
        graphs.capture(lambda: torch.ops.toy.proj(X, torch.eye(2)))


def test_an_output_that_changes_shape_on_replay_is_refused():
    x = X.clone()
    graph, _ = CpuGraphs().capture(lambda: torch.ops.toy.ragged(x.t().reshape(-1)))
    x[0, 0] = 4.0
    with pytest.raises(CaptureError, match="toy::ragged: captured with an output of") as caught:
        graph.replay()
    assert caught.value.op == "toy::ragged"


def test_the_pool_holds_what_graphs_allocate_until_they_go():
    graphs = CpuGraphs()
    assert graphs.pool_bytes() == 0
    kept, _ = graphs.capture(lambda: (X * 2).view(-1) + 1)
    gone, _ = graphs.capture(lambda: torch.empty(100))
    assert graphs.pool_bytes() == 2 * X.numel() * 4 + 400
    del gone
    assert graphs.pool_bytes() == 2 * X.numel() * 4
    del kept
    assert graphs.pool_bytes() == 0


def test_a_later_graph_keeps_the_block_that_it_took_from_one_that_is_gone():
    graphs = CpuGraphs()
    gone, result = graphs.capture(lambda: X * 2)
    del result
    kept, result = graphs.capture(lambda: X * 3)
    del gone
    assert graphs.pool_bytes() == X.numel() * 4
    kept.replay()
    assert torch.equal(X * 3, result)


def test_one_capture_uses_a_temporary_again():
    """As a caching allocator does, so the pool's size says what a graph's would be."""

    def fn():
        y = X
        for _ in range(10):
            y = y * 1.5
        return y

    graphs = CpuGraphs()
    graph, result = graphs.capture(fn)
    assert graphs.pool_bytes() == 2 * X.numel() * 4
    result.zero_()
    graph.replay()
    assert torch.equal(fn(), result)


def test_a_smaller_capture_fits_into_the_pool_of_a_larger_one():
    rows = torch.randn(64, 8)
    graphs = CpuGraphs()
    made = [graphs.capture(lambda n=n: (rows[:n] * 2).sum(1)) for n in (64, 33, 7)]
    assert graphs.pool_bytes() == 64 * 8 * 4 + (64 + 33 + 7) * 4
    for graph, _ in made:
        graph.replay()
    for n, (_, result) in zip((64, 33, 7), made, strict=True):
        assert torch.equal((rows[:n] * 2).sum(1), result)


def test_a_view_keeps_its_block():
    graphs = CpuGraphs()
    first, view = graphs.capture(lambda: (X * 2)[1:].t())
    second, _ = graphs.capture(lambda: X * 3)
    first.replay()
    second.replay()
    assert torch.equal((X * 2)[1:].t(), view)


def test_a_tensor_of_the_pool_that_is_resized_is_refused():
    """Addresses recorded before would be stale."""
    graphs = CpuGraphs()
    with pytest.raises(CaptureError, match="not resizable"):
        graphs.capture(lambda: X.new_zeros(3).resize_(300))


def test_a_view_that_outlives_its_graph_reads_memory_that_is_still_there():
    graphs = CpuGraphs()
    graph, result = graphs.capture(lambda: X * 2)
    weak = graphs.disown(result)
    del graph, result
    assert graphs.pool_bytes() == 0
    assert torch.equal(X * 2, weak)


def test_an_error_of_the_function_itself_is_told_with_its_line():
    with pytest.raises(CaptureError, match="shape") as caught:
        CpuGraphs().capture(lambda: X.view(4))  # the culprit
    assert "# the culprit" in caught.value.op


def test_operators_are_named_and_counted_as_kernels():
    graph, _ = CpuGraphs().capture(lambda: (X * 2).t().contiguous().zero_())
    assert graph.ops == ("aten::mul.Tensor", "aten::clone", "aten::zero_")
    assert graph.nodes == Nodes(kernel=3)
    assert graph.capture_s > 0 == graph.instantiate_s


def test_graphs_replay_outside_the_mode_they_were_captured_in():
    weight = torch.nn.Parameter(torch.eye(2))
    x = X.clone()
    graph, result = CpuGraphs().capture(lambda: torch.nn.functional.linear(x, weight) + 1)
    with torch.inference_mode(False), torch.enable_grad():
        graph.replay()
    assert torch.equal(X + 1, result)
    assert not result.requires_grad


def test_both_modes_record_the_same_nodes():
    """Inference mode hands composite operators over whole; they are recorded in parts all the same."""
    counts = set()
    for mode in (torch.no_grad, torch.inference_mode):
        with torch.inference_mode(False), mode():
            graph, _ = CpuGraphs().capture(
                lambda: torch.einsum("td,sd->ts", X, X).softmax(-1).reshape(-1).to(torch.half)
            )
            counts.add(graph.nodes.total)
    assert len(counts) == 1


def test_a_replay_shows_no_operator_to_a_dispatch_mode_but_is_counted():
    """A launch on a GPU hides its kernels too; who counts them asks the maker."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    graphs = CpuGraphs(see_through=("toy::proj",))
    one, _ = graphs.capture(lambda: torch.ops.toy.proj(X, torch.eye(2)))
    steps, _ = graphs.capture_broken(lambda: (y := X * 2, torch.ops.toy.note(y), y + 1)[-1], ["toy::note"])
    assert graphs.replayed() == (0, 0)
    with Watch():
        one.replay()
        one.replay()
        for step in steps:
            step() if isinstance(step, Break) else step.replay()
    assert seen == ["toy::note"]
    assert graphs.replayed() == (4, 2 * one.nodes.total + 2)
