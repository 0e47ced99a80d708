"""A CUDA device of arithmetic: one stream on a virtual time line, so that a clock can be judged exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from mlaprof.measure import clock

CYCLES_PER_S = 2e9


class VirtualGpu:
    """Host and device time in seconds. Work queues on the device; the host runs on until it waits."""

    def __init__(self) -> None:
        self.host_s = 100.0
        self.idle_at_s = 100.0  # when the device will have done all that is queued
        self.spins_s: list[float] = []
        self.cycles_per_s = CYCLES_PER_S
        self.stalled_s = 0.0  # that the host's thread was on no CPU

    def launch(self, device_s: float, submit_s: float = 0.0) -> None:
        """One kernel: the host spends submit_s on the launch, then it runs when the device is free."""
        self.host_s += submit_s
        self.idle_at_s = max(self.idle_at_s, self.host_s) + device_s

    def stall(self, seconds: float) -> None:
        """The host's thread gives its CPU away."""
        self.host_s += seconds
        self.stalled_s += seconds

    def sleep(self, cycles: int) -> None:
        self.spins_s.append(cycles / self.cycles_per_s)
        self.launch(cycles / self.cycles_per_s)

    def synchronize(self) -> None:
        self.host_s = max(self.host_s, self.idle_at_s)

    def event(self, *, enable_timing: bool) -> Event:
        assert enable_timing
        return Event(self)

    def step(self, *, kernels: int, device_s: float, submit_s: float, waits: bool = False) -> Callable[[], None]:
        """A step of equal kernels, device_s and submit_s each; one that waits synchronises at its end."""

        def run() -> None:
            for _ in range(kernels):
                self.launch(device_s, submit_s)
            if waits:
                self.synchronize()

        return run


class Event:
    def __init__(self, gpu: VirtualGpu) -> None:
        self.gpu = gpu
        self.at_s = float("nan")

    def record(self) -> None:
        self.at_s = max(self.gpu.idle_at_s, self.gpu.host_s)

    def query(self) -> bool:
        return self.at_s <= self.gpu.host_s

    def elapsed_time(self, later: Event) -> float:
        """Milliseconds, as CUDA answers."""
        return (later.at_s - self.at_s) * 1e3


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualGpu]:
    device = VirtualGpu()
    cuda = SimpleNamespace(Event=device.event, _sleep=device.sleep, synchronize=device.synchronize)
    monkeypatch.setattr(clock.torch, "cuda", cuda)
    monkeypatch.setattr(clock, "perf_counter_ns", lambda: round(device.host_s * 1e9))
    monkeypatch.setattr(clock, "thread_time_ns", lambda: round((device.host_s - device.stalled_s) * 1e9))
    yield device
