"""The clocks: one step alone on the device, its submission, one isolated step, and many in a row."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mlaprof.measure import clock as clocks
from mlaprof.measure.clock import CpuClock, CudaClock, last_level_cache_bytes

# CUDA clock on a virtual device


def test_device_time_counts_no_launch_gaps(gpu):
    """30 kernels of 4 us that each take 30 us to launch: 120 us of device time, 900 us of submission."""
    clock = CudaClock(cold=False, l2_bytes=0)
    found = clock.sample(gpu.step(kernels=30, device_s=4e-6, submit_s=30e-6))
    assert found.device_s == pytest.approx(120e-6)
    assert found.submit_s == found.submit_cpu_s == pytest.approx(900e-6)
    assert found.filled


def test_latency_is_one_step_from_idle_to_idle(gpu):
    """Every gap counts, and the last kernel's time; a spin does not."""
    found = CudaClock(cold=False, l2_bytes=0).sample(gpu.step(kernels=30, device_s=4e-6, submit_s=30e-6))
    assert found.latency_s == pytest.approx(30 * 30e-6 + 4e-6)


def test_a_thread_that_is_put_off_its_cpu_shows_in_submit_time_alone(gpu):
    """Submission took 5 ms, the thread worked 20 us of it."""

    def step() -> None:
        gpu.launch(device_s=4e-6, submit_s=20e-6)
        gpu.stall(5e-3)

    found = CudaClock(cold=False, l2_bytes=0).sample(step)
    assert (found.submit_s, found.submit_cpu_s) == pytest.approx((5.02e-3, 20e-6))


@pytest.mark.parametrize(
    ("submit_s", "sustained_s"),
    [(30e-6, 30 * 30e-6), (1e-6, 30 * 4e-6)],
    ids=["the host sets the pace", "the device sets the pace"],
)
def test_a_burst_takes_what_service_sees(gpu, submit_s, sustained_s):
    """30 kernels of 4 us; the larger of submission and device time, but for the first launch of the burst."""
    burst = CudaClock(cold=False, l2_bytes=0).burst(gpu.step(kernels=30, device_s=4e-6, submit_s=submit_s), 50)
    assert burst.sustained_s == pytest.approx(sustained_s, rel=1e-2)
    assert burst.sustained_s > sustained_s
    assert burst.warm_device_s == pytest.approx(120e-6)


def test_a_burst_is_long_in_steps_and_in_time(gpu):
    """What is submitted before the device is busy must not count: 50 steps at least, and 50 ms."""
    clock = CudaClock(cold=False, l2_bytes=0)
    assert [clock.burst_steps(step_s) for step_s in (10e-3, 1e-3, 100e-6, 0.0)] == [50, 50, 500, 50]


def test_a_spin_that_was_too_short_is_taken_again_longer(gpu):
    """A step that takes 8 ms to submit outlasts the 5 ms spin; the sample kept is the one without gaps."""
    clock = CudaClock(cold=False, l2_bytes=0, delay_s=0.005)
    gpu.spins_s.clear()
    found = clock.sample(gpu.step(kernels=100, device_s=4e-6, submit_s=80e-6))
    assert (found.device_s, found.submit_s, found.filled) == (pytest.approx(400e-6), pytest.approx(8e-3), True)
    assert gpu.spins_s == pytest.approx([0.005, 0.024])


def test_the_next_spin_has_room_for_the_last_submit_time_of_the_same_step(gpu):
    """One retake teaches the clock; a quick step beside it keeps the short spin."""
    clock = CudaClock(cold=False, l2_bytes=0)
    slow = gpu.step(kernels=100, device_s=4e-6, submit_s=80e-6)
    quick = gpu.step(kernels=1, device_s=4e-6, submit_s=20e-6)
    clock.sample(slow)
    gpu.spins_s.clear()
    for step in (quick, slow, quick, slow):
        clock.sample(step)
    assert gpu.spins_s == pytest.approx([0.005, 0.024, 0.005, 0.024])


def test_a_step_that_synchronises_is_timed_without_a_spin_and_counted(gpu):
    """No endless retakes; the spin is in neither time."""
    clock = CudaClock(cold=False, l2_bytes=0)
    gpu.spins_s.clear()
    found = clock.sample(gpu.step(kernels=10, device_s=50e-6, submit_s=20e-6, waits=True))
    assert found.device_s == pytest.approx(20e-6 + 10 * 50e-6)  # the first launch is a gap
    assert found.submit_s == pytest.approx(20e-6 + 10 * 50e-6)
    assert len(gpu.spins_s) == 2
    assert not found.filled


def test_spins_are_bounded(gpu):
    """A step that takes a second to submit would ask for a spin of three."""
    clock = CudaClock(cold=False, l2_bytes=0)
    gpu.spins_s.clear()
    step = gpu.step(kernels=1, device_s=1e-6, submit_s=1.2)
    clock.sample(step)
    clock.sample(step)
    assert max(gpu.spins_s) == pytest.approx(clocks.MAX_DELAY_S)


def test_a_clock_rate_that_rises_after_calibration_does_not_let_gaps_in(gpu):
    """Spins count cycles: at three times the rate they last a third, and the retake makes up for it."""
    clock = CudaClock(cold=False, l2_bytes=0)
    gpu.cycles_per_s *= 3
    found = clock.sample(gpu.step(kernels=30, device_s=4e-6, submit_s=100e-6))
    assert (found.device_s, found.filled) == (pytest.approx(120e-6), True)


@pytest.fixture
def flushes(gpu, monkeypatch):
    """The sizes of the buffers written on the virtual device, 50 us each."""
    written = []

    def empty(nbytes, *, dtype, device):
        assert (dtype, device) == (torch.uint8, "cuda")

        def zero() -> None:
            written.append(nbytes)
            gpu.launch(device_s=50e-6)

        return SimpleNamespace(zero_=zero)

    monkeypatch.setattr(clocks.torch, "empty", empty)
    return written


def test_cold_writes_twice_the_l2_before_each_call_of_a_sample(gpu, flushes):
    """The flush ends before either clock starts and is not counted."""
    clock = CudaClock(cold=True, l2_bytes=50 * 2**20)
    found = clock.sample(gpu.step(kernels=3, device_s=4e-6, submit_s=10e-6))
    assert (found.device_s, found.latency_s) == pytest.approx((12e-6, 34e-6))
    assert flushes == [100 * 2**20] * 2


def test_a_burst_flushes_nothing(gpu, flushes):
    burst = CudaClock(cold=True, l2_bytes=50 * 2**20).burst(gpu.step(kernels=3, device_s=4e-6, submit_s=1e-6), 50)
    assert burst.warm_device_s == pytest.approx(12e-6)
    assert flushes == []


def test_the_flush_hides_no_launch_of_a_step_that_synchronises(gpu, flushes):
    """Without a spin, a flush still running would cover the first launch: cold would look quicker than warm."""
    step = gpu.step(kernels=10, device_s=50e-6, submit_s=20e-6, waits=True)
    cold = CudaClock(cold=True, l2_bytes=1).sample(step)
    warm = CudaClock(cold=False, l2_bytes=0).sample(step)
    assert (cold.device_s, cold.submit_s, cold.latency_s) == pytest.approx(
        (warm.device_s, warm.submit_s, warm.latency_s)
    )


def test_events_that_run_backwards_are_an_error_not_a_latency(gpu):
    clock = CudaClock(cold=False, l2_bytes=0)

    def step() -> None:
        gpu.idle_at_s -= 0.001

    with pytest.raises(RuntimeError, match="backwards"):
        clock.sample(step)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"cold": True, "l2_bytes": 0}, "l2_bytes: expected a positive size"),
        ({"cold": False, "l2_bytes": 0, "delay_s": 0.0}, "delay_s: expected"),
        ({"cold": False, "l2_bytes": 0, "delay_s": 1.5}, "delay_s: expected"),
        ({"cold": False, "l2_bytes": 0, "delay_s": float("nan")}, "delay_s: expected"),
    ],
    ids=["no L2", "no delay", "a delay without bound", "delay that is no number"],
)
def test_a_clock_that_could_not_work_is_refused(gpu, arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        CudaClock(**arguments)


# CPU clock


@pytest.mark.parametrize("cold", [True, False], ids=["cold", "warm"])
def test_the_cpu_clock_calls_the_step_once_and_has_one_time(cold, monkeypatch):
    monkeypatch.setattr(clocks, "last_level_cache_bytes", lambda: 2**20)
    calls = []
    clock = CpuClock(cold=cold)
    found = clock.sample(lambda: calls.append(1))
    clock.settle()
    assert calls == [1]
    assert found.device_s == found.submit_s == found.latency_s > 0.0


def test_the_cpu_clock_agrees_with_a_known_sleep():
    """A step that sleeps takes no less by any clock, and its thread is on no CPU meanwhile."""
    clock = CpuClock(cold=False)
    found, burst = clock.sample(lambda: time.sleep(0.02)), clock.burst(lambda: time.sleep(0.02), 3)
    assert min(found.device_s, burst.sustained_s, burst.warm_device_s) >= 0.02
    assert found.submit_cpu_s < found.submit_s


def test_a_cold_cpu_sample_writes_more_than_the_last_level_cache_first(monkeypatch):
    """The step finds the whole buffer freshly written."""
    monkeypatch.setattr(clocks, "last_level_cache_bytes", lambda: 4096)
    clock = CpuClock(cold=True)
    clock._scratch.zero_()
    seen = []
    clock.sample(lambda: seen.append(int(clock._scratch.sum())))
    assert seen[0] == clock._scratch.numel() > 4096


def test_the_last_level_cache_is_the_largest_one(tmp_path: Path):
    for index, size in enumerate(["48K", "32K", "2048K", "33M", "odd", ""]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert last_level_cache_bytes(tmp_path) == 33 * 2**20


def test_a_cpu_that_does_not_tell_its_caches_gets_a_plain_guess(tmp_path: Path):
    assert last_level_cache_bytes(tmp_path / "absent") == clocks.FALLBACK_CACHE_BYTES


# A real GPU


@pytest.mark.gpu
@pytest.mark.parametrize("cold", [True, False], ids=["cold", "warm"])
def test_a_real_device_fills_its_queue(cold):
    """Small eager kernels, launched far slower than they run, are all queued before the first one starts."""
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    clock = CudaClock(cold=cold, l2_bytes=l2_bytes)
    x = torch.randn(1024, device="cuda")

    def step() -> None:
        for _ in range(30):
            x.add_(1.0)

    step()
    samples = [clock.sample(step) for _ in range(10)]
    burst = clock.burst(step, 50)
    assert all(each.filled for each in samples)
    # Submission and latency are of two calls: either may be the longer where the host sets the pace.
    assert all(0.0 < each.device_s < min(each.submit_s, each.latency_s) for each in samples[1:])
    assert 0.0 < burst.warm_device_s < burst.sustained_s


@pytest.mark.gpu
def test_a_real_step_that_synchronises_is_counted():
    clock = CudaClock(cold=False, l2_bytes=0)
    x = torch.randn(1024, device="cuda")
    found = clock.sample(lambda: x.sum().item())
    assert not found.filled
    assert 0.0 < found.submit_s < clock._delay_s  # no spin in it
    assert found.device_s > 0.0


@pytest.mark.gpu
def test_a_real_graph_is_sampled_on_the_current_stream():
    """Flush, spin, events and step share whatever stream is current; a sample is two calls."""
    x = torch.zeros(257, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.add_(1.0)
    with torch.cuda.stream(torch.cuda.Stream()):
        clock = CudaClock(cold=False, l2_bytes=0)
        samples = [clock.sample(graph.replay) for _ in range(3)]
    assert x[0].item() == 6
    assert all(each.filled for each in samples)
