"""Counting what a step asks of the driver."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import _disable_current_modes

from mlaprof.measure.activity import Activity
from mlaprof.measure.activity import activities as recorded
from mlaprof.measure.counts import (
    MARK,
    Counts,
    CpuCounter,
    CudaCounter,
    check_seen,
    complete,
    sync_waits_s,
    tally_steps,
)

# The account


@pytest.mark.parametrize(
    ("counts", "graph_kernels", "closes"),
    [
        (Counts(steps=3, steady=True, kernels=9, kernel_launches=3), 6, True),
        (Counts(steps=3, steady=True, kernels=9, kernel_launches=3), 3, False),
        (Counts(steps=3, steady=True, kernels=0, kernel_launches=5), 0, False),
        (Counts(steps=3, steady=False, kernels=9, kernel_launches=3), 6, False),
        (Counts(steps=3, steady=True), 0, True),
    ],
    ids=["all kernels named", "a replay left out", "the profiler lost them", "steps differ", "a step of nothing"],
)
def test_an_account_closes_when_every_kernel_has_a_cause(counts, graph_kernels, closes):
    assert complete(counts, graph_kernels) is closes


# Records of the profiler, by hand. Times in nanoseconds; device work runs long after its call.


def mark(begin: int, end: int) -> Activity:
    return Activity(MARK, False, 1, begin, end)


def call(name: str, correlation: int, at: int) -> Activity:
    return Activity(name, False, correlation, at, at + 5)


def work(name: str, correlation: int, at: int) -> Activity:
    return Activity(name, True, correlation, at, at + 50)


KERNEL = "void at::native::vectorized_elementwise_kernel<4>(int)"


def test_device_work_belongs_to_the_step_that_launched_it():
    """The kernel of the first step runs while the second is marked, and is still the first one's."""
    first, second = tally_steps(
        [
            mark(100, 200),
            call("cudaLaunchKernel", 7, 150),
            mark(1000, 1100),
            call("cuLaunchKernelEx", 8, 1050),
            work(KERNEL, 7, 1060),
            work("triton_poi_fused", 8, 1300),
        ]
    )
    assert first == second == {"kernels": 1, "kernel_launches": 1}


def test_what_lies_between_the_marks_is_ours_and_counts_for_nobody():
    """Warm-up, our own synchronisation and the session's last one are in no step."""
    tallies = tally_steps(
        [
            call("cudaLaunchKernel", 3, 10),
            work(KERNEL, 3, 20),
            call("cudaDeviceSynchronize", 4, 90),
            mark(100, 200),
            call("cudaDeviceSynchronize", 5, 300),
            mark(400, 500),
            call("cudaDeviceSynchronize", 6, 600),
        ]
    )
    assert tallies == [{}, {}]


def test_a_graph_launch_is_no_kernel_launch_and_its_kernels_are_the_steps():
    """Three kernels share the correlation of the launch; a memset and a copy inside are no kernels."""
    (step,) = tally_steps(
        [
            mark(100, 200),
            call("cudaGraphLaunch", 9, 120),
            *(work(KERNEL, 9, at) for at in (300, 400, 500)),
            work("Memset (Device)", 9, 600),
            work("Memcpy DtoD (Device -> Device)", 9, 700),
        ]
    )
    assert step == {"kernels": 3, "graph_launches": 1, "other": 2}


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("cudaLaunchKernelExC", "kernel_launches"),
        ("cudaLaunchCooperativeKernel", "kernel_launches"),
        ("cuLaunchKernel", "kernel_launches"),
        ("cudaStreamSynchronize", "stream_syncs"),
        ("cuStreamSynchronize", "stream_syncs"),
        ("cudaMemcpy", "stream_syncs"),
        ("cudaMemcpyToSymbol", "stream_syncs"),
        ("cuMemcpyDtoH_v2", "stream_syncs"),
        ("cudaDeviceSynchronize", "device_syncs"),
        ("cuCtxSynchronize", "device_syncs"),
        ("cudaEventSynchronize", "event_syncs"),
        ("cudaMalloc", "driver_allocations"),
        ("cudaHostAlloc", "driver_allocations"),
        ("cuMemCreate", "driver_allocations"),
        ("cudaMemcpyAsync", None),
        ("cudaMemcpyToSymbolAsync", None),
        ("cudaMemcpyPeerAsync", None),
        ("cudaMemsetAsync", None),
        ("cudaLaunchHostFunc", None),
        ("cudaStreamWaitEvent", None),
        ("cudaEventRecord", None),
        ("cudaEventQuery", None),
        ("cudaStreamIsCapturing", None),
        ("aten::add_", None),
        ("cudagraph trees", None),
    ],
)
def test_calls_of_the_host_are_told_apart_by_name(name, field):
    """A call that waits, launches or allocates counts in one field; the many others in none."""
    (step,) = tally_steps([mark(100, 200), call(name, 4, 150)])
    assert step == ({field: 1} if field else {})


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("Memcpy DtoH (Device -> Pageable)", "d2h_copies"),
        ("Memcpy HtoD (Pinned -> Device)", "h2d_copies"),
        ("Memcpy DtoD (Device -> Device)", "other"),
    ],
)
def test_copies_are_told_apart_by_direction(name, field):
    (step,) = tally_steps([mark(100, 200), call("cudaMemcpyAsync", 4, 150), work(name, 4, 900)])
    assert step == {field: 1}


def test_a_driver_call_inside_a_runtime_call_is_not_counted_twice():
    """Both records carry one correlation."""
    (step,) = tally_steps(
        [mark(100, 200), call("cudaLaunchKernel", 4, 150), call("cuLaunchKernel", 4, 151), work(KERNEL, 4, 160)]
    )
    assert step == {"kernels": 1, "kernel_launches": 1}


def test_work_without_a_call_goes_to_the_step_before_it():
    """The profiler drops some calls of the driver; their work must not vanish, nor be given to a later step."""
    first, second = tally_steps(
        [
            work(KERNEL, 40, 50),
            mark(100, 200),
            work("Memcpy DtoH (Device -> Pageable)", 41, 300),
            mark(400, 500),
        ]
    )
    assert (first, second) == ({"d2h_copies": 1}, {})


def test_an_operator_with_a_calls_number_is_not_its_cause():
    """torch numbers its operators from 1, CUPTI its calls too: only names tell them apart."""
    first, second = tally_steps(
        [
            mark(100, 200),
            call("cudaLaunchKernel", 8, 110),
            mark(400, 500),
            Activity("aten::mm", False, 8, 410, 490),
            work(KERNEL, 8, 450),
        ]
    )
    assert (first, second) == ({"kernels": 1, "kernel_launches": 1}, {})


def test_the_profilers_own_records_hold_the_marks_and_no_call_of_cuda_on_a_cpu():
    """The private list that is read exists in this torch, in order, and operators are not taken for calls."""
    with profile(activities=[ProfilerActivity.CPU]) as session:
        for _ in range(3):
            with record_function(MARK):
                torch.ones(5).add_(1)
    activities = recorded(session)
    assert {MARK, "aten::add_"} <= {each.name for each in activities}
    assert all(each.start_ns <= each.end_ns and not each.on_device for each in activities)
    assert tally_steps(activities) == [{}, {}, {}]


def test_a_profiler_that_saw_nothing_is_an_error_not_a_step_of_nothing():
    """Without CUPTI every count is 0 and the account would close."""
    launch, kernel = call("cudaLaunchKernel", 4, 10), work(KERNEL, 4, 20)
    check_seen([launch, kernel])
    for blind in ([], [launch], [kernel], [launch, work("Memset (Device)", 4, 20)], [mark(1, 2), kernel]):
        with pytest.raises(RuntimeError, match="expected records of launches and of kernels"):
            check_seen(blind)


def test_the_wait_of_a_step_is_the_time_inside_its_synchronising_calls():
    """A blocking copy and the driver's call inside it are one wait; launches, and calls between steps, are none."""
    waits = sync_waits_s(
        [
            mark(0, 100_000),
            Activity("cudaLaunchKernel", False, 1, 1_000, 9_000),
            Activity("cudaMemcpy", False, 2, 10_000, 40_000),
            Activity("cuStreamSynchronize", False, 2, 12_000, 39_000),
            Activity("cudaEventSynchronize", False, 3, 50_000, 60_000),
            Activity("cudaDeviceSynchronize", False, 4, 150_000, 190_000),
            mark(200_000, 300_000),
        ]
    )
    assert waits == pytest.approx([40e-6, 0.0])


# Emulated


@pytest.fixture(params=[torch.inference_mode, torch.no_grad], ids=["inference mode", "no grad"])
def mode(request):
    with request.param():
        yield


@pytest.mark.usefixtures("mode")
class TestOperators:
    def test_every_operator_that_writes_is_a_launched_kernel(self):
        x, y = torch.ones(7, 3), torch.ones(7, 3)

        def step():
            y.copy_(x)
            y.add_(1)
            torch.mul(x, 2, out=y)
            return x + y

        counts = CpuCounter().count_steps(step)
        assert counts == Counts(steps=3, steady=True, kernels=4, kernel_launches=4, allocations=1)
        assert complete(counts, 0)

    def test_views_and_allocations_are_no_kernels(self):
        """But a new storage is an allocation."""
        x = torch.ones(6, 4)

        def step():
            torch.empty_like(x)
            x.new_empty(3)
            return x.view(4, 6).T[1:].unsqueeze(0).detach(), x.split(2), x.unbind(1)

        assert CpuCounter().count_steps(step) == Counts(steps=3, steady=True, allocations=2)

    def test_composite_operators_count_by_their_parts(self):
        """matmul of a batch is more than one operator, whether or not autograd is there to take it apart."""
        x = torch.ones(2, 3, 5)
        counts = CpuCounter().count_steps(lambda: torch.nn.functional.linear(x, torch.ones(7, 5)))
        assert counts.kernels == counts.kernel_launches == 2  # ones, one multiplication

    @pytest.mark.parametrize(
        ("read", "kernels"),
        [
            (lambda x: x[0].item(), 0),
            (lambda x: int(x[3]), 0),
            (lambda x: bool(x[1] > 0), 1),
            (lambda x: x.nonzero(), 1),
            (lambda x: x[x > 2], 2),
            (lambda x: x.masked_select(x > 2), 2),
            (lambda x: torch.equal(x, x), 1),
            (lambda x: torch.repeat_interleave(torch.ones_like(x)), 2),
        ],
        ids=["item", "int", "bool", "nonzero", "mask", "masked_select", "equal", "repeat_interleave"],
    )
    def test_a_value_or_shape_the_host_waits_for_is_a_synchronisation_and_a_copy(self, read, kernels):
        x = torch.arange(5)
        counts = CpuCounter().count_steps(lambda: read(x))
        assert (counts.stream_syncs, counts.d2h_copies, counts.kernels) == (1, 1, kernels)

    @pytest.mark.parametrize(
        "quiet",
        [
            lambda x: x[torch.zeros_like(x)],
            lambda x: x.index_put_((x > 2,), torch.tensor(0)),
            lambda x: torch.repeat_interleave(torch.ones_like(x), output_size=5),
            lambda x: x.masked_fill(x > 2, 0),
        ],
        ids=["rows", "one number under a mask", "known size", "masked_fill"],
    )
    def test_a_shape_known_beforehand_waits_for_nothing(self, quiet):
        x = torch.arange(5)
        counts = CpuCounter().count_steps(lambda: quiet(x))
        assert (counts.stream_syncs, counts.d2h_copies) == (0, 0)

    def test_a_list_made_a_tensor_is_a_blocking_copy(self):
        counts = CpuCounter().count_steps(lambda: torch.tensor([4, 2]))
        assert (counts.stream_syncs, counts.h2d_copies, counts.d2h_copies) == (1, 1, 0)

    def test_a_profiler_range_in_the_step_counts_for_nothing(self):
        def step():
            with torch.profiler.record_function("segment"):
                torch.ones(3)

        assert CpuCounter().count_steps(step).kernels == 1

    def test_a_custom_operator_is_one_kernel_unless_seen_through(self, two_kernels):
        x = torch.ones(5)
        counted = {names: CpuCounter(names).count_steps(lambda: two_kernels(x)) for names in ((), (NAME,))}
        assert [each.kernels for each in counted.values()] == [1, 2]
        assert all(complete(each, 0) for each in counted.values())


NAME = "mlaprof_test_counts::two_kernels"


@pytest.fixture(scope="module")
def two_kernels():
    """A custom operator that writes in place by two operators."""
    library = torch.library.Library("mlaprof_test_counts", "DEF")
    library.define("two_kernels(Tensor(a!) x) -> ()")

    def body(x):
        x.add_(1)
        x.view(-1).mul_(2)

    library.impl("two_kernels", body, "CPU")
    yield torch.ops.mlaprof_test_counts.two_kernels
    library._destroy()


class Replays:
    """An emulated graph of in-place additions, and the totals of all replays."""

    def __init__(self, x: torch.Tensor, nodes: int) -> None:
        self.x, self.nodes = x, nodes
        self.totals = (0, 0)

    def replay(self) -> None:
        with _disable_current_modes():
            for _ in range(self.nodes):
                self.x.add_(1)
        self.totals = (self.totals[0] + 1, self.totals[1] + self.nodes)


def test_emulated_replays_are_launches_of_their_nodes():
    """Two replays of 3 nodes around one eager operator; an account with one replay too few stays open."""
    graph = Replays(torch.zeros(3), nodes=3)

    def step():
        graph.replay()
        graph.x.mul_(2)
        graph.replay()

    counts = CpuCounter(replayed=lambda: graph.totals).count_steps(step, steps=2)
    assert counts == Counts(steps=2, steady=True, kernels=7, kernel_launches=1, graph_launches=2)
    assert complete(counts, graph_kernels=6)
    assert not complete(counts, graph_kernels=3)


def test_steps_that_differ_are_told_and_the_largest_numbers_shown():
    """A step that grows is never complete, not even where its account would close."""
    x, calls = torch.ones(3), []

    def step():
        calls.append(1)
        for _ in calls:
            x.add_(1)

    counts = CpuCounter().count_steps(step, steps=3)
    assert counts == Counts(steps=3, steady=False, kernels=4, kernel_launches=4)  # the first call is the warm-up
    assert not complete(counts, 0)


def test_an_error_of_the_step_comes_through_and_leaves_no_mode_behind():
    def step():
        torch.ones(3)
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        CpuCounter().count_steps(step)
    assert torch._C._len_torch_dispatch_stack() == 0


@pytest.mark.parametrize("counter", [CpuCounter(), CudaCounter()], ids=["cpu", "cuda"])
def test_no_steps_cannot_be_counted(counter):
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        counter.count_steps(lambda: None, steps=0)


# A real GPU


def five_kernels(x: torch.Tensor) -> None:
    for _ in range(5):
        x.add_(1.0)


@pytest.mark.gpu
def test_a_real_step_is_counted_without_our_own_synchronisations():
    """Twice: a second session in one process sees as much as the first."""
    x = torch.zeros(257, device="cuda")
    for _ in range(2):
        counts = CudaCounter().count_steps(lambda: five_kernels(x))
        assert counts == Counts(steps=3, steady=True, kernels=5, kernel_launches=5, sync_wait_s=0.0)
        assert complete(counts, 0)


@pytest.mark.gpu
def test_a_real_read_is_one_synchronisation_and_one_copy():
    """And the host waits for what was queued before it: a spin of 2e6 cycles is a millisecond or so."""
    x = torch.zeros(257, device="cuda")

    def step() -> None:
        five_kernels(x)
        x[3].item()

    def slow_step() -> None:
        torch.cuda._sleep(2_000_000)
        step()

    counts = CudaCounter().count_steps(step)
    waited_s = CudaCounter().count_steps(slow_step).sync_wait_s
    assert waited_s is not None and counts.sync_wait_s is not None and waited_s > 0.5e-3 > counts.sync_wait_s > 0
    assert (counts.stream_syncs, counts.d2h_copies, counts.kernels) == (1, 1, 5)
    assert (counts.device_syncs, counts.event_syncs, counts.h2d_copies) == (0, 0, 0)
    assert counts.steady


@pytest.mark.gpu
def test_real_synchronisations_and_copies_are_told_apart():
    x, pinned = torch.zeros(257, device="cuda"), torch.zeros(257).pin_memory()
    event = torch.cuda.Event()

    def step() -> None:
        x.copy_(pinned, non_blocking=True)
        event.record()
        event.synchronize()
        torch.cuda.synchronize()

    counts = CudaCounter().count_steps(step, steps=2)
    assert counts.sync_wait_s is not None and counts.sync_wait_s > 0
    waited = {"sync_wait_s": counts.sync_wait_s}
    assert counts == Counts(steps=2, steady=True, event_syncs=1, device_syncs=1, h2d_copies=1, **waited)


@pytest.mark.gpu
def test_real_allocations_are_counted_by_block():
    """Three blocks from the warm allocator, none from the driver; a block larger than all that is cached asks it."""
    x = torch.zeros(257, device="cuda")
    counts = CudaCounter().count_steps(lambda: [x + number for number in range(3)])
    assert (counts.allocations, counts.driver_allocations, counts.kernels) == (3, 0, 3)

    def greedy() -> None:
        torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        torch.cuda.empty_cache()

    counts = CudaCounter().count_steps(greedy)
    assert (counts.allocations, counts.driver_allocations) == (1, 1)


@pytest.mark.gpu
def test_a_real_graph_is_one_launch_and_its_kernels_close_the_account():
    """Captured before any profiler ran. Two replays of 3 kernels beside 5 eager ones; one replay left out shows."""
    x, y = torch.zeros(257, device="cuda"), torch.zeros(257, device="cuda")
    x.mul_(2.0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            x.mul_(2.0)

    def step() -> None:
        graph.replay()
        five_kernels(y)
        graph.replay()

    counts = CudaCounter().count_steps(step)
    assert counts == Counts(steps=3, steady=True, kernels=11, kernel_launches=5, graph_launches=2, sync_wait_s=0.0)
    assert complete(counts, graph_kernels=2 * 3)
    assert not complete(counts, graph_kernels=3)
    assert not complete(replace(counts, kernels=5), graph_kernels=2 * 3)


@pytest.mark.gpu
def test_real_triton_launches_are_seen():
    """Triton launches through the driver, not the runtime."""
    from mlaprof.kernels.act_quant import act_quant

    x = torch.randn(33, 128, device="cuda", dtype=torch.bfloat16)
    counts = CudaCounter().count_steps(lambda: act_quant(x))
    assert counts.kernels == counts.kernel_launches >= 1
    assert complete(counts, 0)
