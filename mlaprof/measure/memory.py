"""How many bytes a process and its tensors hold."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor


class MemoryMeter(Protocol):
    """Reads memory in bytes; None where the machine cannot tell."""

    def begin(self) -> None:
        """Drop what is garbage and count peaks from here."""
        ...

    def allocated_bytes(self) -> int | None:
        """Held by live tensors."""
        ...

    def reserved_bytes(self) -> int | None:
        """Held by torch's allocator, graphs' private pools included."""
        ...

    def peak_bytes(self) -> int | None:
        """The most that was held at once since begin()."""
        ...


class CudaMeter:
    """torch's caching allocator on the current CUDA device; peak_bytes is the peak of allocated_bytes."""

    def begin(self) -> None:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def allocated_bytes(self) -> int:
        return torch.cuda.memory_allocated()

    def reserved_bytes(self) -> int:
        return torch.cuda.memory_reserved()

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated()


class CpuMeter:
    """The process's peak resident size, interpreter included. torch keeps no account on a CPU.

    The operating system keeps one high-water mark, from the start of the process: begin() cannot lower it.
    """

    def begin(self) -> None:
        gc.collect()

    def allocated_bytes(self) -> None:
        return None

    def reserved_bytes(self) -> None:
        return None

    def peak_bytes(self) -> int:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB, macOS in bytes


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
