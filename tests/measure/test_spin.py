"""A spin of known length behind a step."""

from __future__ import annotations

from statistics import median
from time import perf_counter_ns

import pytest
import torch

from mlaprof.measure.clock import CudaClock
from mlaprof.measure.spin import CpuSpin, CudaSpin

FIXED_S = 1.25e-6  # of a kernel of the virtual device
PACE_S = 1.75e-6  # at which it can launch them


@pytest.fixture
def slow_launches(gpu, monkeypatch: pytest.MonkeyPatch):
    """The virtual device with kernels that cost something before they count their first cycle."""

    def sleep(cycles: int) -> None:
        gpu.launch(max(PACE_S, FIXED_S + cycles / gpu.cycles_per_s), submit_s=10e-6)

    monkeypatch.setattr(torch.cuda, "_sleep", sleep)
    return gpu


@pytest.mark.parametrize("added_s", [1.76e-6, 7.3e-6, 211e-6])
def test_a_spin_takes_what_was_asked_with_the_cost_of_its_kernel_in_it(slow_launches, added_s: float) -> None:
    spin = CudaSpin()
    slow_launches.synchronize()
    begin_s = slow_launches.idle_at_s = slow_launches.host_s
    spin.behind(slow_launches.step(kernels=1, device_s=500e-6, submit_s=0.0), added_s)()

    assert slow_launches.idle_at_s - begin_s == pytest.approx(500e-6 + added_s, abs=2e-9)
    assert spin.measured_s(added_s) == pytest.approx(added_s, abs=2e-9)


@pytest.mark.parametrize("added_s", [1.7e-6, 0.0, -1e-6])
def test_a_spin_shorter_than_a_kernel_is_refused(slow_launches, added_s: float) -> None:
    """A kernel would be launched all the same, and more be added than was asked."""
    spin = CudaSpin()

    assert spin.least_s == pytest.approx(PACE_S)
    for ask in (spin.measured_s, lambda added_s: spin.behind(lambda: None, added_s)):
        with pytest.raises(ValueError, match="the cost of a kernel"):
            ask(added_s)


def test_the_spin_runs_behind_the_step_and_answers_what_the_step_answers(gpu) -> None:
    calls = []
    slowed = CudaSpin().behind(lambda: calls.append(len(gpu.spins_s)) or "result", 5e-6)
    before = len(gpu.spins_s)

    assert (slowed(), calls, len(gpu.spins_s)) == ("result", [before], before + 1)


def test_a_host_too_slow_to_queue_a_bracket_waits_longer_then_gives_up(gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bracket that the device reaches before it is queued has gaps in it, and would calibrate them."""
    slow_s = {"launch": 200e-6}  # 64 of them are 12.8 ms, beyond the first delay of 5 ms
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: gpu.launch(cycles / 2e9, submit_s=slow_s["launch"]))

    assert CudaSpin().measured_s(7e-6) == pytest.approx(7e-6, rel=1e-3)
    slow_s["launch"] = 2e-3
    with pytest.raises(RuntimeError, match="could not be queued"):
        CudaSpin()


def test_on_a_cpu_the_call_itself_is_longer() -> None:
    """A lower bound alone: another process may take the core at any time."""
    slowed = CpuSpin().behind(lambda: "result", 3e-4)
    begin_ns = perf_counter_ns()

    assert slowed() == "result"
    assert (perf_counter_ns() - begin_ns) * 1e-9 >= 3e-4
    assert CpuSpin().measured_s(3e-4) >= 3e-4
    with pytest.raises(ValueError, match="positive"):
        CpuSpin().behind(lambda: None, 0.0)


@pytest.mark.gpu
@pytest.mark.parametrize("added_s", [4e-6, 13e-6, 57e-6])
def test_on_a_gpu_the_clock_sees_what_was_added(added_s: float) -> None:
    """By itself, and behind a spin of another length: the first launch behind another kernel has a cost of its own,
    which depends on that kernel and the card. Small kernels: what draws much power takes now less, now more."""
    x = torch.randn(1024, device="cuda")
    clock = CudaClock(cold=False, l2_bytes=0)

    def step() -> None:
        for _ in range(8):
            x.add_(1.0)

    for _ in range(50):
        step()
    spin = CudaSpin()
    short, long = (spin.behind(step, each_s) for each_s in (4e-6, 4e-6 + added_s))
    differences = [clock.sample(long).device_s - clock.sample(short).device_s for _ in range(101)]

    assert spin.measured_s(added_s) == pytest.approx(added_s, rel=0.02, abs=0.1e-6)
    assert median(differences) == pytest.approx(added_s, abs=0.5e-6)
