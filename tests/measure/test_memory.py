"""Bytes of tensors and of the process."""

from __future__ import annotations

import gc

import pytest
import torch

from mlaprof.measure.memory import CpuMeter, CudaMeter, DeviceReading, tensor_bytes, weigh_capture


def test_a_shared_storage_counts_once():
    """Arms that share their weights, and views of them, add nothing."""
    weight = torch.empty(7, 13)
    assert tensor_bytes([weight, weight, weight.T, weight[2:], weight.view(-1).detach()]) == 7 * 13 * 4


def test_a_view_counts_as_the_storage_that_it_keeps_alive():
    assert tensor_bytes([torch.empty(1000, dtype=torch.int8)[:1]]) == 1000


def test_equal_values_in_two_storages_count_twice():
    weight = torch.ones(5, dtype=torch.bfloat16)
    assert tensor_bytes([weight, weight.clone()]) == 20


def test_tensors_made_on_the_way_are_not_confused():
    """A generator's temporaries may reuse an address; each still counts."""
    assert tensor_bytes(torch.empty(1 << 20, dtype=torch.uint8) for _ in range(5)) == 5 << 20


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ([], 0),
        ([torch.empty(0)], 0),
        ([torch.empty(0), torch.empty(0), torch.empty(3, dtype=torch.float8_e4m3fn)], 3),
        ([torch.empty(4, device="meta"), torch.empty(4, device="meta")], 32),
    ],
    ids=["none", "empty", "empty ones and fp8", "two without address"],
)
def test_odd_collections_are_counted(tensors, expected):
    assert tensor_bytes(tensors) == expected


def test_parameters_of_a_module_can_be_counted():
    """Tied parameters count once; a Parameter is a tensor."""
    first, second = torch.nn.Linear(3, 5), torch.nn.Linear(3, 5)
    second.weight = first.weight
    assert tensor_bytes([*first.parameters(), *second.parameters()]) == 4 * (15 + 5 + 5)


def test_a_cpu_says_what_it_cannot_tell():
    """None, never zero: nothing was measured."""
    meter = CpuMeter()
    meter.begin()
    assert meter.reading() is None
    with weigh_capture(meter) as weight:
        torch.ones(7)
    assert (weight.driver_bytes, weight.transient_bytes) == (None, None)


def test_a_cpu_peak_covers_memory_that_was_touched_and_freed():
    meter = CpuMeter()
    meter.begin()
    size = meter.peak_bytes() + (32 << 20)  # more than was ever resident
    torch.ones(size, dtype=torch.uint8)
    gc.collect()
    assert meter.peak_bytes() >= size


def reading(**changes: int) -> DeviceReading:
    """A device with 100 MiB in use: 40 outside torch, 50 in the default pool, 10 in private ones."""
    parts = {"device": 100, "allocated": 45, "reserved": 60, "default_allocated": 40, "default_reserved": 50}
    return DeviceReading(**{f"{name}_bytes": size << 20 for name, size in {**parts, **changes}.items()})


def test_a_reading_tells_what_torch_does_not_hold_and_what_it_holds_for_nobody():
    assert reading().outside_bytes == 40 << 20
    assert reading().slack_bytes == 10 << 20


class ScriptedMeter:
    """A device that is read once before and once after."""

    def __init__(self, *readings: DeviceReading, peak_bytes: int) -> None:
        self._readings = list(readings)
        self._peak_bytes = peak_bytes
        self.events: list[str] = []

    def begin(self) -> None:
        self.events.append("begin")

    def peak_bytes(self) -> int:
        self.events.append("peak")
        return self._peak_bytes

    def reading(self) -> DeviceReading:
        self.events.append("reading")
        return self._readings.pop(0)


def test_a_capture_weighs_what_the_pool_does_not_say():
    """The pool grew by 8 MiB, the device by 13: 5 are the driver's. 70 at most, 53 after: 17 were in passing."""
    after = reading(device=113, reserved=68, allocated=53)
    meter = ScriptedMeter(reading(), after, peak_bytes=70 << 20)
    with weigh_capture(meter) as weight:
        meter.events.append("capture")
        assert weight.driver_bytes is None
    assert (weight.driver_bytes, weight.transient_bytes) == (5 << 20, 17 << 20)
    assert meter.events == ["reading", "begin", "capture", "peak", "reading"]


def test_a_capture_that_fails_has_no_weight():
    """The error comes through, and no half number is left to be believed."""
    meter = ScriptedMeter(reading(), reading(), peak_bytes=0)
    with pytest.raises(RuntimeError, match="not capturable"), weigh_capture(meter) as weight:
        raise RuntimeError("not capturable")
    assert (weight.driver_bytes, weight.transient_bytes) == (None, None)


@pytest.mark.gpu
def test_a_gpu_peak_counts_from_begin():
    """A freed tensor stays in the peak until begin() is called again."""
    meter = CudaMeter()
    meter.begin()
    base = meter.peak_bytes()
    assert base == meter.reading().allocated_bytes
    block = torch.empty(8 << 20, dtype=torch.uint8, device="cuda")
    assert meter.reading().allocated_bytes == base + (8 << 20)
    del block
    assert meter.reading().allocated_bytes == base
    assert meter.peak_bytes() == base + (8 << 20)
    meter.begin()
    assert meter.peak_bytes() == base


@pytest.mark.gpu
def test_a_gpu_reading_adds_up():
    """Pools within the allocator within the device; garbage and idle segments are given back before it is taken."""
    meter = CudaMeter()
    torch.ones(3, device="cuda")
    base = meter.reading()
    block = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    held = meter.reading()
    assert held.allocated_bytes - base.allocated_bytes == 64 << 20
    assert held.default_allocated_bytes - base.default_allocated_bytes == 64 << 20
    assert held.default_reserved_bytes - base.default_reserved_bytes >= 64 << 20
    assert held.default_allocated_bytes <= held.default_reserved_bytes <= held.reserved_bytes < held.device_bytes
    assert held.default_allocated_bytes <= held.allocated_bytes <= held.reserved_bytes
    del block
    assert meter.reading().reserved_bytes == base.reserved_bytes


@pytest.mark.gpu
def test_a_gpu_capture_is_weighed_beside_its_pool():
    """What a graph keeps is in the pool, not in the default one, and what it used in passing is transient."""
    meter = CudaMeter()
    x = torch.ones(16 << 20, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    before = meter.reading()
    with weigh_capture(meter) as weight:
        with torch.cuda.graph(graph):
            kept = x + 1  # 16 MiB
            kept.add_((x + 2) + (x + 3))  # 32 MiB or more at once beside it, freed
        torch.cuda.synchronize()
    after = meter.reading()
    small = 2 << 20  # a segment for the random state that torch keeps for a graph
    assert 0 <= after.allocated_bytes - before.allocated_bytes - (16 << 20) < small
    assert 0 <= after.default_reserved_bytes - before.default_reserved_bytes <= small
    assert after.reserved_bytes - before.reserved_bytes >= 48 << 20
    assert weight.transient_bytes is not None and weight.transient_bytes >= 32 << 20
    assert weight.driver_bytes == after.outside_bytes - before.outside_bytes
    assert weight.driver_bytes >= 0
    graph.replay()
    torch.cuda.synchronize()
    assert kept[-1].item() == 2 + 3 + 4
