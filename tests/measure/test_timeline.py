"""The timeline of a step: what belongs to it, in which segment it lies, and what the profiler of this torch records."""

from __future__ import annotations

import pytest
import torch

from mlaprof.measure.activity import Activity
from mlaprof.measure.counts import MARK
from mlaprof.measure.timeline import SEGMENT, record_step, timeline


def marked(name: str, begin: int, end: int) -> Activity:
    return Activity(name, False, 0, begin, end, lane=1, marked=True)


def host(name: str, begin: int, end: int, correlation: int = 0) -> Activity:
    return Activity(name, False, correlation, begin, end, lane=1)


def work(name: str, correlation: int, begin: int, end: int) -> Activity:
    return Activity(name, True, correlation, begin, end, lane=7)


STEP = [
    marked(MARK, 1_000, 2_000),
    marked(SEGMENT + "piece 0 graph", 1_100, 1_300),
    host("cudaGraphLaunch", 1_150, 1_250, 11),
    marked(SEGMENT + "op attend eager", 1_400, 1_800),
    host("toy::attend", 1_410, 1_700),
    host("cudaLaunchKernel", 1_500, 1_550, 12),
    host("cuLaunchKernel", 1_505, 1_545, 12),  # the driver's call inside the runtime's
    work("gemm", 11, 1_600, 1_900),
    work("gate", 11, 1_900, 2_100),
    work("attend_kernel", 12, 2_500, 2_600),  # long after the host was done
]


def test_everything_lies_in_the_segment_that_asked_for_it() -> None:
    """Device work by its call, however late it ran; times are seconds from the beginning of the step."""
    spans = timeline(STEP)
    found = {span.name: (span.track, span.segment) for span in spans}
    assert found == {
        MARK: ("step", None),
        "piece 0 graph": ("segment", 0),
        "cudaGraphLaunch": ("call", 0),
        "op attend eager": ("segment", 1),
        "toy::attend": ("operator", 1),
        "cudaLaunchKernel": ("call", 1),
        "cuLaunchKernel": ("call", 1),
        "gemm": ("device", 0),
        "gate": ("device", 0),
        "attend_kernel": ("device", 1),
    }
    (late,) = (span for span in spans if span.name == "attend_kernel")
    assert (late.start_s, late.duration_s) == pytest.approx((1.5e-6, 1e-7))
    assert (late.lane, late.correlation) == (7, 12)


def test_what_ran_before_or_behind_the_step_is_no_part_of_it() -> None:
    """The warm step before the mark, and our own synchronisation behind it; work whose call was lost counts by time."""
    others = [
        marked(SEGMENT + "piece 0 graph", 100, 300),
        host("cudaLaunchKernel", 150, 160, 3),
        work("warm", 3, 1_050, 1_090),  # launched before, runs within
        host("cudaDeviceSynchronize", 2_700, 2_900, 99),
        work("before", 50, 500, 600),
        work("orphan", 51, 1_700, 1_800),
    ]
    names = {span.name for span in timeline([*STEP, *others])} - {each.name.removeprefix(SEGMENT) for each in STEP}
    assert names == {"orphan"}
    assert next(span for span in timeline([*STEP, *others]) if span.name == "orphan").segment is None


def test_records_without_the_step_are_an_error() -> None:
    for found in ([], [*STEP, *STEP]):
        with pytest.raises(RuntimeError, match="expected one marked step"):
            timeline(found)


def test_this_torch_records_the_ranges_and_operators_of_a_step() -> None:
    """On a CPU: the second of two marked calls alone, its operators inside their segments, no device."""

    def step(named) -> None:
        with named("piece 0 graph"):
            torch.ones(5).add_(1)
        with named("op b eager"):
            torch.zeros(3).mul_(2)

    spans = record_step(step, cuda=False)
    assert [span.name for span in spans if span.track == "segment"] == ["piece 0 graph", "op b eager"]
    assert {("aten::add_", 0), ("aten::mul_", 1)} <= {(each.name, each.segment) for each in spans}
    assert not any(span.track in ("device", "call") for span in spans)
    assert all(span.duration_s >= 0 and span.start_s >= 0 for span in spans)


@pytest.mark.gpu
def test_a_gpu_records_the_kernels_of_a_graph_and_of_eager_operators() -> None:
    x = torch.ones(1024, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x * 2
        y.add_(1)

    def step(named) -> None:
        with named("piece 0 graph"):
            graph.replay()
        with named("op b eager"):
            x.mul_(1)

    step(lambda name: torch.profiler.record_function(name))
    spans = record_step(step, cuda=True)
    device = [span.segment for span in spans if span.track == "device"]
    assert device == [0, 0, 1]
    assert any(span.track == "call" and span.name.startswith("cudaGraphLaunch") for span in spans)
