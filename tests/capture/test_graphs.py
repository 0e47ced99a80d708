"""What every graph maker promises of a result that its caller no longer holds."""

from __future__ import annotations

import pytest
import torch

from mlaprof.capture.graphs import Nodes

pytestmark = pytest.mark.usefixtures("mode")

DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64]


@pytest.fixture
def x(device) -> torch.Tensor:
    return torch.randn(33, 8, device=device)


def test_nodes_add_up_by_type():
    assert Nodes(1, 2, 3, 4) + Nodes(kernel=10, other=1) == Nodes(11, 2, 3, 5)
    assert Nodes(1, 2, 3, 4).total == 10


def test_trap_a_result_held_weakly_is_overwritten_by_a_later_graph(graphs, x):
    """Weak references and one pool: what an engine gets that captures a second size and then replays the first."""
    first, result = graphs.capture(lambda: x * 2)
    weak = graphs.disown(result)
    del result
    second, later = graphs.capture(lambda: x[:20] - 5)

    assert later.data_ptr() == weak.data_ptr()
    first.replay()
    assert torch.equal(x * 2, weak)
    second.replay()
    assert torch.equal(x[:20] - 5, weak[:20])


def test_trap_a_result_held_strongly_is_not_overwritten(graphs, x):
    """The twin: the same two captures, with the defence."""
    first, result = graphs.capture(lambda: x * 2)
    weak = graphs.disown(result)
    second, later = graphs.capture(lambda: x[:20] - 5)

    assert later.data_ptr() != weak.data_ptr() == result.data_ptr()
    first.replay()
    second.replay()
    assert torch.equal(x * 2, result)
    assert torch.equal(x * 2, weak)


def test_memory_disowned_is_counted_once(graphs, x):
    first, result = graphs.capture(lambda: x * 2)
    before = graphs.pool_bytes()
    weak = graphs.disown(result)
    del result
    second, _ = graphs.capture(lambda: x * 3)
    assert graphs.pool_bytes() == before > 0
    assert first is not second and weak.shape == x.shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_disowned_tensor_is_the_same_but_for_its_owner(graphs, x, dtype):
    """Shape, strides, offset, dtype, address and values."""
    graph, result = graphs.capture(lambda: (x * 3).to(dtype)[1:, 2:].t())
    weak = graphs.disown(result)
    graph.replay()

    for trait in ("shape", "dtype", "device", "data_ptr", "stride", "storage_offset", "is_inference"):
        was, now = getattr(result, trait), getattr(weak, trait)
        assert (was() if callable(was) else was) == (now() if callable(now) else now)
    assert torch.equal(result.float(), weak.float())
    assert weak.untyped_storage()._cdata != result.untyped_storage()._cdata


def test_a_structure_stays_one_and_what_is_not_of_the_pool_stays_itself(graphs, x):
    weight = torch.nn.Parameter(x.clone())
    graph, result = graphs.capture(lambda: x * 2)
    tree = {"pool": [result, (result[1:], x)], "other": (weight, 3, None, "text")}
    weak = graphs.disown(tree)
    graph.replay()

    assert weak["other"][0] is weight and weak["other"][1:] == (3, None, "text")
    assert weak["pool"][1][1] is x
    assert torch.equal(result, weak["pool"][0]) and torch.equal(result[1:], weak["pool"][1][0])
    assert weak["pool"][0].untyped_storage()._cdata == weak["pool"][1][0].untyped_storage()._cdata
    assert tree["pool"][0] is result


def test_a_later_graph_reads_what_an_earlier_one_writes_to_a_disowned_tensor(graphs, x):
    """As pieces held weakly do, in the order of their captures."""
    first, result = graphs.capture(lambda: x * 2)
    weak = graphs.disown(result)
    first.replay()
    second, total = graphs.capture(lambda: weak + 1)
    del result
    for value in (3.0, -1.0):
        x.fill_(value)
        first.replay()
        second.replay()
        assert torch.equal(x * 2 + 1, total)


def test_tensors_of_another_maker_are_left_alone(graphs, x):
    _, result = graphs.capture(lambda: x * 2)
    assert type(graphs)().disown(result) is result
