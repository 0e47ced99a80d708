"""The faults themselves. Each is a context manager: what lasts is over with the next event of the worker."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlaprof.records import Device
from mlaprof.study import DrilledFault

FOREVER_S = 3600.0
SLOW_COMPILE_S = 60

Aftermath = Literal["", "lost"]
# On a CPU no context is lost, so that the worker has to be told that this one would be.
AFTERMATH: dict[tuple[DrilledFault, Device], Aftermath] = {
    ("illegal_address", "cpu"): "lost",
    ("misaligned_address", "cpu"): "lost",
}
_SIGNALS = {"sigkill": signal.SIGKILL, "sigint": signal.SIGINT, "sigterm": signal.SIGTERM}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "matmul"}


@contextmanager
def strike(fault: DrilledFault, device: Device, lines: int) -> Iterator[None]:
    """Let fault happen, now or to the next operation; `lines` is the descriptor of the worker's pipe."""
    match fault:
        case "illegal_address" | "misaligned_address" | "endless_kernel" if device == "cuda":
            from mlaprof.drill import kernels

            kernels.launch(fault)
            yield
        case "illegal_address" | "misaligned_address":
            said = "an illegal memory access was encountered" if fault == "illegal_address" else "misaligned address"
            with _Raising(lambda: _raise(RuntimeError(f"CUDA error: {said} (emulated)"))):
                yield
        case "device_oom" if device == "cuda":
            with _Raising(lambda: torch.empty(1 << 46, dtype=torch.uint8, device="cuda")):
                yield
        case "device_oom":
            with _Raising(lambda: _raise(torch.OutOfMemoryError("CUDA out of memory (emulated)"))):
                yield
        case "host_oom":
            with _Raising(lambda: torch.empty(1 << 60, dtype=torch.uint8)):
                yield
        case "abort":
            os.abort()
        case "segfault":
            ctypes.string_at(0)
            yield
        case "sigkill" | "sigint" | "sigterm":
            os.kill(os.getpid(), _SIGNALS[fault])
            time.sleep(FOREVER_S)
        case "exit":
            os._exit(0)
        case "rubbish":
            os.write(lines, b"\x00\xff{not a record\n")
            time.sleep(FOREVER_S)
        case "hang" | "endless_kernel":
            time.sleep(FOREVER_S)
            yield
        case "slow_compile" | "broken_compiler":
            with _another_ptxas(f"exec sleep {SLOW_COMPILE_S}" if fault == "slow_compile" else "kill -SEGV $$"):
                yield
        case "nan":
            with _Spoiling():
                yield
        case "nvml_gone":
            _shut_nvml_down()
            yield


def _raise(error: Exception) -> None:
    raise error


class _Raising(TorchDispatchMode):
    """Every operation fails as `blow` does."""

    def __init__(self, blow: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._blow = blow

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._blow()
        return func(*args, **(kwargs or {}))


class _Spoiling(TorchDispatchMode):
    """Every product is NaN."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name.removeprefix("aten::") in _PRODUCTS:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    leaf.fill_(torch.nan)
        return result


@contextmanager
def _another_ptxas(does: str) -> Iterator[None]:
    """Triton's assembler is a script that answers for its version and otherwise does this."""
    import triton

    real = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "ptxas"
        script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec "{real}" --version\n{does}\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        changes = {
            "TRITON_PTXAS_PATH": str(script),
            "TRITON_PTXAS_BLACKWELL_PATH": str(script),
            "TRITON_ALWAYS_COMPILE": "1",  # nothing out of the cache
        }
        before = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _shut_nvml_down() -> None:
    """As often as it was opened."""
    import pynvml

    while True:
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            return
