"""Bytes of tensors and of the process."""

from __future__ import annotations

import gc

import pytest
import torch

from mlaprof.measure.memory import CpuMeter, CudaMeter, tensor_bytes


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
    assert meter.allocated_bytes() is None
    assert meter.reserved_bytes() is None


def test_a_cpu_peak_covers_memory_that_was_touched_and_freed():
    meter = CpuMeter()
    meter.begin()
    size = meter.peak_bytes() + (32 << 20)  # more than was ever resident
    torch.ones(size, dtype=torch.uint8)
    gc.collect()
    assert meter.peak_bytes() >= size


@pytest.mark.gpu
def test_a_gpu_peak_counts_from_begin():
    """A freed tensor stays in the peak until begin() is called again."""
    meter = CudaMeter()
    meter.begin()
    base = meter.peak_bytes()
    assert base == meter.allocated_bytes()
    block = torch.empty(8 << 20, dtype=torch.uint8, device="cuda")
    assert meter.allocated_bytes() == base + (8 << 20)
    assert meter.reserved_bytes() >= meter.allocated_bytes()
    del block
    assert meter.allocated_bytes() == base
    assert meter.peak_bytes() == base + (8 << 20)
    meter.begin()
    assert meter.peak_bytes() == base
