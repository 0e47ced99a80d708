"""The clocks and the order of samples."""

from __future__ import annotations

import gc
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mlaprof.measure import timing
from mlaprof.measure.timing import (
    CpuClock,
    CudaClock,
    last_level_cache_bytes,
    quiet_collector,
    sample_rounds,
)


class ScriptedClock:
    """Calls the step and answers a fixed device time an arm; counts what it is asked."""

    name = "perf_counter"

    def __init__(self, device_s: float = 0.001) -> None:
        self.device_s = device_s
        self.settled = 0
        self.sampled = 0

    def sample(self, step):
        step()
        self.sampled += 1
        return self.device_s, self.device_s / 2

    def settle(self) -> None:
        self.settled += 1


def sampled(arms, clock=None, **changes):
    """sample_rounds with plain bounds: three rounds, no warm-up time, no readings."""
    bounds = {"min_samples": 3, "max_samples": 3, "min_time_s": 0.0, "warmup_s": 0.0, "seed": 0}
    return sample_rounds(arms, clock or ScriptedClock(), **{"reading": lambda: None, **bounds, **changes})


def nothing() -> None:
    return None


# Rounds


def test_every_arm_is_sampled_once_a_round():
    """A round holds each arm exactly once, so that entry i of all arms belongs together."""
    calls = []
    arms = {name: lambda name=name: calls.append(name) for name in ("eager", "piecewise", "full")}
    sampled(arms, min_samples=20, max_samples=20)

    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert {frozenset(each) for each in rounds} == {frozenset(arms)}
    assert len(rounds) == timing.WARMUP_CALLS + 20


def test_the_order_within_a_round_is_random_and_belongs_to_the_seed():
    """No arm keeps a fixed neighbour; the same seed gives the same order again."""

    def orders(seed):
        calls = []
        arms = {name: lambda name=name: calls.append(name) for name in "abc"}
        sampled(arms, min_samples=60, max_samples=60, seed=seed)
        timed = calls[3 * timing.WARMUP_CALLS :]
        return [tuple(timed[i : i + 3]) for i in range(0, len(timed), 3)]

    assert set(orders(7)) == set(itertools.permutations("abc"))
    assert orders(7) == orders(7)
    assert orders(7) != orders(8)


def test_rounds_end_at_min_samples_when_time_is_enough():
    assert len(sampled({"a": nothing}, ScriptedClock(1.0), min_samples=5, max_samples=50)["a"].device_s) == 5


def test_rounds_go_on_until_every_arm_has_its_device_time():
    """The quickest arm decides: min_time_s is promised to each."""
    clock = ScriptedClock()
    clock.sample = lambda step: (step(), step())
    arms = {"quick": lambda: 0.25, "slow": lambda: 4.0}
    samples = sampled(arms, clock, min_samples=2, max_samples=100, min_time_s=2.0)
    assert [len(each.device_s) for each in samples.values()] == [8, 8]


def test_rounds_end_at_max_samples_however_short_the_step():
    """A step of no time at all cannot accumulate any, and still ends."""
    samples = sampled({"a": nothing}, ScriptedClock(0.0), min_samples=1, max_samples=9, min_time_s=1.0)
    assert len(samples["a"].device_s) == 9


def test_each_sample_has_its_reading_beside_it():
    """Readings are taken after each sample, one for one, also where there is nothing to read."""
    count = itertools.count()
    clock = ScriptedClock()
    samples = sampled({"a": nothing, "b": nothing}, clock, reading=lambda: (next(count), clock.sampled))
    taken = sorted(samples["a"].readings + samples["b"].readings)
    assert taken == [(i, i + 1) for i in range(6)]

    assert sampled({"a": nothing})["a"].readings == (None, None, None)


def test_device_and_submit_times_are_kept_apart():
    samples = sampled({"a": nothing}, ScriptedClock(0.5))["a"]
    assert (samples.device_s, samples.submit_s) == ((0.5,) * 3, (0.25,) * 3)


def test_the_warm_up_runs_every_arm_at_least_three_times_and_settles():
    """Even a warm-up of no time runs each arm; the device is idle before the first sample."""
    calls = []
    clock = ScriptedClock()
    clock.sample = lambda step: (1.0, 1.0)
    sampled({name: lambda name=name: calls.append(name) for name in "ab"}, clock)
    assert "".join(calls) == "ababab"
    assert clock.settled == 3


def test_the_warm_up_lasts_as_long_as_asked(monkeypatch):
    """Wall time counts, by the host's clock."""
    calls = []
    monkeypatch.setattr(timing, "perf_counter", lambda: 0.125 * len(calls))
    sampled({"a": lambda: calls.append(1)}, warmup_s=1.0, min_samples=1, max_samples=1)
    assert len(calls) == 8 + 1


def test_an_exhausted_budget_ends_the_rounds_but_leaves_one():
    """Out of time from the start: one warm-up rotation, one round, no endless loop and no empty arm."""
    clock = ScriptedClock()
    samples = sampled({"a": nothing, "b": nothing}, clock, min_samples=40, max_samples=50, exhausted=lambda: True)
    assert [len(each.device_s) for each in samples.values()] == [1, 1]
    assert clock.settled == 1


@pytest.mark.parametrize(
    ("arms", "changes", "complaint"),
    [
        ({}, {}, "expected at least one"),
        ({"a": nothing}, {"min_samples": 0}, "1 <= min_samples"),
        ({"a": nothing}, {"min_samples": 4, "max_samples": 3}, "got 4 and 3"),
    ],
    ids=["no arms", "no samples", "bounds crossed"],
)
def test_contradicting_bounds_are_refused(arms, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        sampled(arms, **changes)


# Garbage collector


def test_the_collector_is_off_while_sampling():
    """And what lives already is frozen, so that no later collection has to walk it."""
    states = []
    sampled({"a": lambda: states.append((gc.isenabled(), gc.get_freeze_count() > 0))})
    assert set(states) == {(False, True)}
    assert gc.isenabled()


def test_the_collector_comes_back_when_a_step_raises():
    """An error in the timed region leaves the process as it was."""

    def broken():
        raise RuntimeError("device lost")

    frozen = gc.get_freeze_count()
    with pytest.raises(RuntimeError, match="device lost"):
        sampled({"a": broken})
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with quiet_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_objects_frozen_by_someone_else_stay_frozen():
    gc.freeze()
    try:
        with quiet_collector():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


# CUDA clock on a virtual device


def test_device_time_counts_no_launch_gaps(gpu):
    """30 kernels of 4 us that each take 30 us to launch: 120 us of device time, 900 us of submission."""
    clock = CudaClock(cold=False, l2_bytes=0)
    device_s, submit_s = clock.sample(gpu.step(kernels=30, device_s=4e-6, submit_s=30e-6))
    assert device_s == pytest.approx(120e-6)
    assert submit_s == pytest.approx(900e-6)
    assert clock.unfilled == 0


def test_a_spin_that_was_too_short_is_taken_again_longer(gpu):
    """A step that takes 8 ms to submit outlasts the 5 ms spin; the sample kept is the one without gaps."""
    clock = CudaClock(cold=False, l2_bytes=0, delay_s=0.005)
    gpu.spins_s.clear()
    device_s, submit_s = clock.sample(gpu.step(kernels=100, device_s=4e-6, submit_s=80e-6))
    assert device_s == pytest.approx(400e-6)
    assert submit_s == pytest.approx(8e-3)
    assert gpu.spins_s == pytest.approx([0.005, 0.024])
    assert clock.unfilled == 0


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
    device_s, submit_s = clock.sample(gpu.step(kernels=10, device_s=50e-6, submit_s=20e-6, waits=True))
    assert device_s == pytest.approx(20e-6 + 10 * 50e-6)  # the first launch is a gap
    assert submit_s == pytest.approx(20e-6 + 10 * 50e-6)
    assert len(gpu.spins_s) == 2
    assert clock.unfilled == 1


def test_spins_are_bounded(gpu):
    """A step that takes a second to submit would ask for a spin of three."""
    clock = CudaClock(cold=False, l2_bytes=0)
    gpu.spins_s.clear()
    step = gpu.step(kernels=1, device_s=1e-6, submit_s=1.2)
    clock.sample(step)
    clock.sample(step)
    assert max(gpu.spins_s) == pytest.approx(timing.MAX_DELAY_S)


def test_a_clock_rate_that_rises_after_calibration_does_not_let_gaps_in(gpu):
    """Spins count cycles: at three times the rate they last a third, and the retake makes up for it."""
    clock = CudaClock(cold=False, l2_bytes=0)
    gpu.cycles_per_s *= 3
    device_s, _ = clock.sample(gpu.step(kernels=30, device_s=4e-6, submit_s=100e-6))
    assert device_s == pytest.approx(120e-6)
    assert clock.unfilled == 0


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

    monkeypatch.setattr(timing.torch, "empty", empty)
    return written


def test_cold_writes_twice_the_l2_before_the_spin(gpu, flushes):
    """The flush ends before the start event and is not counted."""
    clock = CudaClock(cold=True, l2_bytes=50 * 2**20)
    device_s, _ = clock.sample(gpu.step(kernels=3, device_s=4e-6, submit_s=10e-6))
    assert device_s == pytest.approx(12e-6)
    assert flushes == [100 * 2**20]


def test_the_flush_hides_no_launch_of_a_step_that_synchronises(gpu, flushes):
    """Without a spin, a flush still running would cover the first launch: cold would look quicker than warm."""
    step = gpu.step(kernels=10, device_s=50e-6, submit_s=20e-6, waits=True)
    cold = CudaClock(cold=True, l2_bytes=1).sample(step)
    warm = CudaClock(cold=False, l2_bytes=0).sample(step)
    assert cold == pytest.approx(warm)


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
    monkeypatch.setattr(timing, "last_level_cache_bytes", lambda: 2**20)
    calls = []
    clock = CpuClock(cold=cold)
    device_s, submit_s = clock.sample(lambda: calls.append(1))
    clock.settle()
    assert calls == [1]
    assert device_s == submit_s > 0.0


def test_a_cold_cpu_sample_writes_more_than_the_last_level_cache_first(monkeypatch):
    """The step finds the whole buffer freshly written."""
    monkeypatch.setattr(timing, "last_level_cache_bytes", lambda: 4096)
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
    assert last_level_cache_bytes(tmp_path / "absent") == timing.FALLBACK_CACHE_BYTES


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

    samples = sampled({"a": step, "b": step}, clock, min_samples=10, max_samples=10)
    assert clock.unfilled == 0
    assert all(seconds > 0.0 for arm in samples.values() for seconds in arm.device_s + arm.submit_s)


@pytest.mark.gpu
def test_a_real_step_that_synchronises_is_counted():
    clock = CudaClock(cold=False, l2_bytes=0)
    x = torch.randn(1024, device="cuda")
    device_s, submit_s = clock.sample(lambda: x.sum().item())
    assert clock.unfilled == 1
    assert 0.0 < submit_s < clock._delay_s  # no spin in it
    assert device_s > 0.0


@pytest.mark.gpu
def test_a_real_graph_is_sampled_on_the_current_stream():
    """Flush, spin, events and step share whatever stream is current."""
    x = torch.zeros(257, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.add_(1.0)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        clock = CudaClock(cold=False, l2_bytes=0)
        samples = sampled({"graph": graph.replay}, clock)
    assert x[0].item() == timing.WARMUP_CALLS + 3
    assert clock.unfilled == 0
    assert len(samples["graph"].device_s) == 3
