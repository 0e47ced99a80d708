"""A fake pynvml: two GPUs, and whatever a test makes it refuse."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest


class NVMLError(Exception):
    """The root of the fake library's errors."""


class FakePynvml:
    """The queries that machine.nvml uses, with NVML's own units (MHz, mW); a name in `refused` raises."""

    NVMLError = NVMLError

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.missing: set[str] = set()
        self.init_error: Exception | None = None
        self.uuids = ["GPU-aaaa1111-0000", "GPU-bbbb2222-0000"]
        self.processes: list[Any] = []
        self.processes_of: dict[int, list[Any]] = {}  # by index, in the place of processes
        self.open = 0
        self._answers = {
            "nvmlSystemGetNVMLVersion": lambda: "13.580.159",
            "nvmlSystemGetDriverVersion": lambda: "580.159",
            "nvmlDeviceGetCount": lambda: len(self.uuids),
            "nvmlDeviceGetHandleByIndex": self._handle,
            "nvmlDeviceGetName": lambda handle: "NVIDIA H100 80GB HBM3",
            "nvmlDeviceGetUUID": lambda handle: self.uuids[handle],
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=80 * 2**30),
            "nvmlDeviceGetCudaComputeCapability": lambda handle: (9, 0),
            "nvmlDeviceGetPowerManagementLimit": lambda handle: 600_000,
            "nvmlDeviceGetPowerManagementDefaultLimit": lambda handle: 700_000,
            "nvmlDeviceGetMaxClockInfo": lambda handle, kind: {1: 1980, 2: 2619}[kind],
            "nvmlDeviceGetClockInfo": lambda handle, kind: {1: 1380, 2: 2619}[kind],
            "nvmlDeviceGetPowerUsage": lambda handle: 699_125,
            "nvmlDeviceGetTemperature": lambda handle, sensor: {0: 61}[sensor],
            "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 0x4,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x8,
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: self.processes_of.get(handle, self.processes),
            "nvmlDeviceGetNumGpuCores": lambda handle: 16_896,
            "nvmlDeviceGetVbiosVersion": lambda handle: "96.00.89.00.01",
            "nvmlDeviceGetApplicationsClock": lambda handle, kind: {1: 1590}[kind],
            "nvmlDeviceGetDefaultApplicationsClock": lambda handle, kind: {1: 1980}[kind],
            "nvmlDeviceGetPersistenceMode": lambda handle: 1,
            "nvmlDeviceGetEccMode": lambda handle: [1, 0],
            "nvmlDeviceGetMigMode": lambda handle: [0, 1],
            "nvmlDeviceGetPciInfo": lambda handle: SimpleNamespace(busId="00000000:1B:00.0"),
            "nvmlSystemGetCudaDriverVersion": lambda: 13_010,
            "nvmlSystemGetConfComputeState": lambda: SimpleNamespace(ccFeature=0),
        }

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise self.init_error
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def __getattr__(self, name: str) -> Any:
        if name in self.missing or name not in self._answers:
            raise AttributeError(name)

        def answer(*arguments: Any) -> Any:
            if name in self.refused:
                raise NVMLError("Not Supported")
            return self._answers[name](*arguments)

        return answer

    def _handle(self, index: int) -> int:
        if index >= len(self.uuids):
            raise NVMLError("Invalid Argument")
        return index


@pytest.fixture
def pynvml(monkeypatch: pytest.MonkeyPatch) -> FakePynvml:
    """A fake in the place of pynvml, with every GPU visible to CUDA."""
    fake = FakePynvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake
