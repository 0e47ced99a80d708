"""How many bytes a process and its tensors hold, and what a capture adds to them."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

DEFAULT_POOL = (0, 0)  # torch's name for what is outside all private pools


@dataclass(frozen=True)
class DeviceReading:
    """What is in use on a device at one moment.

    device_bytes holds all the rest: reserved_bytes and what is outside torch. reserved_bytes holds the default pool and
    graphs' private pools, default_reserved_bytes what default_allocated_bytes says and slack.
    """

    device_bytes: int  # total minus free: of every process, so growth is ours only where the device is
    allocated_bytes: int  # by live tensors and cuBLAS workspaces, in all pools
    reserved_bytes: int  # by torch's allocator, in all pools
    default_allocated_bytes: int  # of allocated_bytes, in the default pool
    default_reserved_bytes: int  # of reserved_bytes, in the default pool

    @property
    def outside_bytes(self) -> int:
        """Not torch's allocator: contexts, modules, libraries, graph executables."""
        return self.device_bytes - self.reserved_bytes

    @property
    def slack_bytes(self) -> int:
        """Held by the default pool for nobody."""
        return self.default_reserved_bytes - self.default_allocated_bytes


@dataclass
class CaptureWeight:
    """What one capture cost beyond its pool; None until it has ended, and where the machine cannot tell."""

    driver_bytes: int | None = None  # growth of DeviceReading.outside_bytes: graph executables, modules loaded
    transient_bytes: int | None = None  # most that was allocated meanwhile beyond what is allocated after


class MemoryMeter(Protocol):
    """Reads memory in bytes; None where the machine cannot tell."""

    def begin(self) -> None:
        """Drop what is garbage and count peaks from here."""
        ...

    def peak_bytes(self) -> int | None:
        """The most that was held at once since begin()."""
        ...

    def reading(self) -> DeviceReading | None:
        """The device now, once it has done what was submitted and given back what nobody holds."""
        ...


class CudaMeter:
    """The current CUDA device and torch's caching allocator on it; peak_bytes is the peak of allocated_bytes."""

    def begin(self) -> None:
        _settle()
        torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated()

    def reading(self) -> DeviceReading:
        _settle()
        free, total = torch.cuda.mem_get_info()
        device = torch.cuda.current_device()
        segments = torch.cuda.memory_snapshot()
        default = [each for each in segments if each["device"] == device and _pool(each) == DEFAULT_POOL]
        return DeviceReading(
            device_bytes=total - free,
            allocated_bytes=torch.cuda.memory_allocated(),
            reserved_bytes=torch.cuda.memory_reserved(),
            default_allocated_bytes=sum(segment["allocated_size"] for segment in default),
            default_reserved_bytes=sum(segment["total_size"] for segment in default),
        )


class CpuMeter:
    """The process's peak resident size, interpreter included. torch keeps no account on a CPU.

    The operating system keeps one high-water mark, from the start of the process: begin() cannot lower it.
    """

    def begin(self) -> None:
        gc.collect()

    def peak_bytes(self) -> int:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB, macOS in bytes

    def reading(self) -> None:
        return None


@contextmanager
def weigh_capture(meter: MemoryMeter) -> Iterator[CaptureWeight]:
    """Weigh what the block captures; the weight is filled in when the block has ended without an exception.

    Warm-up calls inside the block count: their peak is transient, modules that they load are the driver's. So run the
    step eagerly before. The pool's growth is the graph maker's to tell.
    """
    weight = CaptureWeight()
    before = meter.reading()
    meter.begin()
    yield weight
    peak_bytes = meter.peak_bytes()  # before the reading, whose snapshot is not the capture's
    after = meter.reading()
    if before is None or after is None or peak_bytes is None:
        return
    weight.driver_bytes = after.outside_bytes - before.outside_bytes
    weight.transient_bytes = peak_bytes - after.allocated_bytes


def _settle() -> None:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def _pool(segment: dict[str, Any]) -> tuple[int, ...]:
    return tuple(segment["segment_pool_id"])


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each distinct storage once: views and shared weights add nothing.

    A view counts as the whole storage that it keeps alive. Devices may be mixed.
    """
    # Held until counted: a storage freed in between would lend its address to the next.
    storages = [tensor.untyped_storage() for tensor in tensors]
    sizes: dict[tuple[torch.device, int], int] = {}
    for storage in storages:
        address = storage.data_ptr() or storage._cdata  # empty and meta storages have no address
        key = (storage.device, address)
        sizes[key] = max(sizes.get(key, 0), storage.nbytes())
    return sum(sizes.values())
