"""Two pieces of work beside each other where that is asked for, one after the other elsewhere; the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mlaprof.layer.parallel import maybe_execute_in_parallel
from mlaprof.study import BOUNDARIES

MIXED: dict[str, Any] = {"contexts": [(33, 0), (20, 70)], "generations": [(1, 200), (1, 5)]}


@pytest.mark.parametrize("switch", ["off", "graphs", "always"])
def test_on_a_cpu_the_second_follows_the_first(tiny, switch):
    """Whatever the switch says: there are no streams. Both results come back in order."""
    done: list[str] = []

    def work(name: str) -> torch.Tensor:
        done.append(name)
        return torch.tensor(len(done))

    context = tiny.context(multi_stream=switch)
    assert context.multi_stream == switch and not context.forks
    one, two = maybe_execute_in_parallel(lambda: work("first"), lambda: work("second"), context)
    assert done == ["first", "second"] and (int(one), int(two)) == (1, 2)


def test_multi_stream_is_off_unless_asked_for(tiny):
    """As upstream: stream switches cost host time in eager runs."""
    assert tiny.context().multi_stream == "off"


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_what_forks_is_the_indexer_beside_the_projections(recut, monkeypatch, boundary):
    """The products of the layer's input beside each other, then those of the compressed q; where the indexer is left to
    Op 2, its query beside its key."""
    pairs: list[list[str]] = []

    def spying(first: Any, second: Any, context: Any) -> tuple[Any, Any]:
        pairs.append([getattr(each.func, "__name__", type(each.func).__name__) for each in (first, second)])
        return first(), second()

    for module in ("mla", "indexer"):
        monkeypatch.setattr(f"mlaprof.layer.{module}.maybe_execute_in_parallel", spying)
    recut.cut(boundary)
    hidden, positions = recut.load(recut.batch([(70, 0)]))
    recut.forward(hidden, positions)
    fused = [["Linear", "project"], ["Linear", "query"]]
    assert pairs == ([["query", "key"]] if boundary == "proj" else fused)


@pytest.fixture(scope="module")
def on_gpu(make_bench: Any, shapes: Any) -> Any:
    return make_bench(shapes["tiny"], num_layers=2, mlp=True, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["split", "monolithic"])
def test_two_streams_give_the_bits_of_one(on_gpu, form):
    """Eager, again and again with churned memory between: fork, join and allocator included."""
    batch = on_gpu.batch(**MIXED)
    hidden, positions = on_gpu.load(batch)
    want = on_gpu.forward(hidden, positions, form=form)
    with on_gpu.context(form=form, multi_stream="always") as context:
        assert context.forks
        for _ in range(20):
            hidden, positions = on_gpu.load(batch)
            got = on_gpu.stack(form)(hidden, positions)
            churned = [torch.full((size,), torch.nan, device="cuda") for size in range(1, 60_000, 997)]
            del churned
            assert torch.equal(want, got)


@pytest.mark.gpu
def test_graphs_alone_fork_where_that_is_asked_for(on_gpu):
    """Eager work of the same arm, Op 2 between two graphs for one, stays on its stream."""
    context = on_gpu.context(multi_stream="graphs")
    assert not context.forks
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        assert context.forks


@pytest.mark.gpu
@pytest.mark.parametrize("switch", ["graphs", "always"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_forked_step_is_captured_and_replays_eager(on_gpu, boundary, switch):
    """Fork and join are edges of the graph; other hidden states than at capture."""
    on_gpu.cut(boundary)
    batch = on_gpu.batch([(33, 0), (70, 0)])
    hidden, positions = on_gpu.load(batch)
    other, _ = on_gpu.load(batch, seed=77)
    want = on_gpu.forward(other, positions, compiled=True)
    on_gpu.load(batch)
    with on_gpu.context(compiled=True, multi_stream=switch):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                on_gpu.split(hidden, positions)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = on_gpu.split(hidden, positions)
    hidden.copy_(other)
    for _ in range(3):
        output.fill_(torch.nan)
        graph.replay()
        assert torch.equal(want, output)
    on_gpu.cut("index_quant")


@pytest.mark.gpu
def test_the_auxiliary_stream_is_kept_and_is_never_the_current_one(on_gpu):
    """torch deals streams from a ring, so that the kept one may come round as the current one."""
    on_gpu.load(on_gpu.batch(**MIXED))
    context = on_gpu.context(multi_stream="always")
    current = torch.cuda.current_stream()
    aux = context.aux_stream(current)
    assert aux != current and context.aux_stream(current) == aux
    assert context.aux_stream(aux) != aux
