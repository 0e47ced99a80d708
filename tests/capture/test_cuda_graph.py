from __future__ import annotations

import gc
import warnings

import pytest
import torch

from mlaprof.capture.graphs import CaptureError, GraphMaker, Nodes

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("mode")]


@pytest.fixture
def device() -> str:
    return "cuda"


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(1000, device="cuda")


def test_nodes_are_counted_by_the_drivers_types(graphs: GraphMaker, x):
    """Three kernels (a small zero_ is one, too) and a copy; views and allocations are none."""

    def fn():
        total = x.new_empty(1000)
        return (x * 2 + 1).view(10, 100).t(), total.zero_(), torch.empty_like(x).copy_(x)

    fn()
    graph, _ = graphs.capture(fn)
    assert graph.nodes == Nodes(kernel=3, memcpy=1)
    assert graph.ops == ()
    assert not graphs.emulated


def test_capture_and_instantiation_are_timed_apart(graphs, x):
    graph, _ = graphs.capture(lambda: x * 2)
    assert graph.capture_s > 0 and graph.instantiate_s > 0 == graph.first_replay_s


def test_an_empty_capture_has_no_nodes_and_no_warning(graphs, x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph, view = graphs.capture(lambda: x.view(10, 100).t())
    assert graph.nodes == Nodes()
    graph.replay()
    assert view.data_ptr() == x.data_ptr()


def test_replay_reads_what_the_inputs_hold_now(graphs, x):
    graph, result = graphs.capture(lambda: x * 2)
    for value in (3.0, -1.0):
        x.fill_(value)
        graph.replay()
        assert torch.equal(x * 2, result)


def test_all_captures_share_one_pool_whose_bytes_are_counted(graphs, x):
    """A second, smaller graph fits where the temporaries of the first one were."""
    big = torch.randn(8 << 20, device="cuda")
    assert graphs.pool_bytes() == 0
    first, kept = graphs.capture(lambda: (big * 2 + 1).sum())
    after_first = graphs.pool_bytes()
    assert after_first >= 2 * big.numel() * 4
    second, also = graphs.capture(lambda: (big[: 4 << 20] * 3 - 1).sum())
    assert graphs.pool_bytes() == after_first

    for _ in range(2):
        first.replay()
        second.replay()
    want = [(big * 2 + 1).sum(), (big[: 4 << 20] * 3 - 1).sum()]
    assert torch.equal(want[0], kept) and torch.equal(want[1], also)


def test_a_matrix_product_puts_no_workspace_into_the_pool(graphs):
    """cuBLAS keeps tens of MiB per stream; they are no memory of the layer."""
    a = torch.randn(64, 64, device="cuda", dtype=torch.bfloat16)
    a @ a
    _ = graphs.capture(lambda: a @ a)
    assert graphs.pool_bytes() <= 2 << 20


def test_a_broken_capture_names_the_line_and_leaves_the_maker_and_the_device_well(graphs, x):
    def fn():
        y = x * 2
        return y.sum().item()  # the culprit

    enabled = gc.isenabled()
    for _ in range(2):
        with pytest.raises(CaptureError) as caught:
            graphs.capture(fn)
        assert "y.sum().item()  # the culprit" in caught.value.op
    assert gc.isenabled() == enabled

    graph, result = graphs.capture(lambda: x + 1)
    before = graphs.pool_bytes()
    graph.replay()
    assert torch.equal(x + 1, result)
    ordinary = torch.randn(8 << 20, device="cuda")
    assert graphs.pool_bytes() == before
    assert torch.isfinite(ordinary.sum()).item()


def test_an_error_of_the_function_itself_is_told(graphs, x):
    with pytest.raises(CaptureError, match="shape"):
        graphs.capture(lambda: x.view(3))
    graph, result = graphs.capture(lambda: x + 1)
    graph.replay()
    assert torch.equal(x + 1, result)
