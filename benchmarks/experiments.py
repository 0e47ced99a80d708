"""The experiments that settle how mlaprof measures. Each runs in a process of its own and answers with plain numbers.

Seconds unless a name says otherwise. They use the clock, the rounds and the layer of mlaprof itself, on a CUDA GPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from mlaprof.config.load import load_study
from mlaprof.machine.nvml import Nvml
from mlaprof.measure.clock import CudaClock
from mlaprof.measure.rounds import Limits, Rounds, sample_rounds
from mlaprof.plan import expand
from mlaprof.worker.prepare import prepare
from mlaprof.worker.rig import Rig
from mlaprof.worker.timing import step_of

NODES = "/sys/devices/system/node"
STUDY = Path(__file__).with_name("protocol.yaml")
Step = Callable[[], object]
Steps = dict[str, Step]


class Layer:
    """The layer of STUDY and its steps by mode, of one token count at a time."""

    def __init__(self, sizes: tuple[int, ...] = (), modes: tuple[str, ...] = ()) -> None:
        axes = {"num_tokens": ",".join(map(str, sizes))} if sizes else {}
        axes |= {"mode": ",".join(modes)} if modes else {}
        jobs = expand(load_study(STUDY, axes=axes), "cuda").jobs
        self.job = next(job for job in jobs if job.kind == "timing")
        self.rig = Rig(self.job)
        points = [point for point in self.job.points if not point.twin]
        self._arms = {(point.num_tokens, point.mode): prepare(self.rig, point).arm for point in points}

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.rig.sizes

    def steps(self, num_tokens: int) -> Steps:
        self.rig.load(num_tokens)
        return {mode: step_of(arm) for (size, mode), arm in self._arms.items() if size == num_tokens}


def l2_bytes() -> int:
    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def sampled(arms: Steps, clock: CudaClock, rounds: int, *, seed: int = 0, warmup_s: float = 0.2) -> dict[str, Any]:
    """Device times by arm, `rounds` of each, interleaved."""
    limits = Limits(min_samples=rounds, max_samples=rounds, ci_half_width=1e-9, warmup_s=warmup_s)
    found: Rounds[object] = sample_rounds(arms, clock, limits, seed=seed, reading=lambda: None, bursts=False)
    return {name: [float(each) for each in arm.device_s] for name, arm in found.arms.items()}


def order(process: int) -> dict[str, Any]:
    """Every mode at every size twice under two names: interleaved in random order, and one window after the other."""
    layer, clock, rounds = Layer(), CudaClock(cold=True, l2_bytes=l2_bytes()), 20
    found: dict[str, Any] = {}
    for size in layer.sizes:
        steps = layer.steps(size)
        twins = {f"{mode}{twin}": step for mode, step in steps.items() for twin in ("", "/aa")}
        interleaved = sampled(twins, clock, rounds, seed=process)
        windows = {name: sampled({name: step}, clock, rounds)[name] for name, step in twins.items()}
        found[str(size)] = {"interleaved": interleaved, "sequential": windows}
    return found


def delay(process: int) -> dict[str, Any]:
    """Device time of one cold step behind spins of several lengths; 0 is none."""
    layer, clock = Layer((64,), ("monolithic_eager", "full")), CudaClock(cold=True, l2_bytes=l2_bytes())
    found: dict[str, Any] = {}
    for mode, step in layer.steps(64).items():
        sampled({mode: step}, clock, 20)
        by_delay = {}
        for delay_s in (0.0, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02):
            tries = [clock._attempt(step, delay_s, flush=True) for _ in range(30)]
            by_delay[str(delay_s)] = {
                "device_s": median(each.device_s for each in tries),
                "filled": sum(each.filled for each in tries) / len(tries),
                "submit_s": median(each.submit_s for each in tries),
            }
        found[mode] = by_delay
    return found


def flush(process: int) -> dict[str, Any]:
    """Device time of one step behind flushes of several sizes, by how many L2 are written; 0 is none."""
    layer = Layer((64, 1024), ("full",))
    found: dict[str, Any] = {"l2_bytes": l2_bytes()}
    for size in layer.sizes:
        steps = layer.steps(size)
        found[str(size)] = {
            str(factor): median(
                sampled(steps, CudaClock(cold=factor > 0, l2_bytes=int(factor * l2_bytes() / 2)), 40)["full"]
            )
            for factor in (0.0, 0.5, 1.0, 2.0, 4.0)
        }
    return found


def warm_up(process: int) -> dict[str, Any]:
    """Drift of the first 50 samples behind 3 s of idling and warm-ups of several lengths: first ten over last ten.

    A warm-up is of plain steps, as mlaprof's, or of samples, flush and spin included.
    """
    layer, clock = Layer((1024,), ("full",)), CudaClock(cold=True, l2_bytes=l2_bytes())
    steps = layer.steps(1024)
    found: dict[str, Any] = {}
    for of, warmup_s in (("steps", 0.025), ("steps", 0.2), ("steps", 1.0), ("samples", 0.2), ("samples", 1.0)) * 2:
        torch.cuda.synchronize()
        time.sleep(3.0)
        begin_s = time.perf_counter()
        while of == "samples" and time.perf_counter() - begin_s < warmup_s:
            clock.sample(steps["full"])
        times_s = sampled(steps, clock, 50, warmup_s=warmup_s if of == "steps" else 0.0)["full"]
        found.setdefault(f"{of} {warmup_s}", []).append(median(times_s[:10]) / median(times_s[-10:]) - 1)
    return found


def pinned(process: int) -> dict[str, Any]:
    """An eager step and its graph in eight processes: four on a quarter of the CPUs each, four on all of them."""
    cpus = sorted(os.sched_getaffinity(0))
    quarter = len(cpus) // 4
    if process < 4 and quarter:
        os.sched_setaffinity(0, cpus[process * quarter : (process + 1) * quarter])
    layer, clock = Layer((16,), ("monolithic_eager", "full")), CudaClock(cold=True, l2_bytes=l2_bytes())
    times_s = sampled(layer.steps(16), clock, 40)
    return {
        "cpus": sorted(os.sched_getaffinity(0)),
        "nodes": {each.name: (each / "cpulist").read_text().strip() for each in Path(NODES).glob("node[0-9]*")},
        **{mode: median(each) for mode, each in times_s.items()},
    }


def cpus(process: int) -> dict[str, Any]:
    """An eager step and its graph in one process whose thread moves from CPU to CPU, twice around."""
    layer, clock = Layer((16,), ("monolithic_eager", "full")), CudaClock(cold=True, l2_bytes=l2_bytes())
    steps = layer.steps(16)
    every = sorted(os.sched_getaffinity(0))
    found: dict[str, Any] = {}
    for cpu in every * 2:
        os.sched_setaffinity(0, [cpu])
        times_s = sampled(steps, clock, 15, warmup_s=0.05)
        found.setdefault(str(cpu), []).append({mode: median(each) for mode, each in times_s.items()})
    return found


def streams(process: int) -> dict[str, Any]:
    """An eager step and its graph in one process, on the default stream and on eight others, cold and warm."""
    layer = Layer((16,), ("monolithic_eager", "full"))
    steps = layer.steps(16)
    cold, warm = CudaClock(cold=True, l2_bytes=l2_bytes()), CudaClock(cold=False, l2_bytes=0)
    found: dict[str, Any] = {}
    for number in range(9):
        stream = torch.cuda.Stream() if number else torch.cuda.default_stream()
        with torch.cuda.stream(stream):
            found[str(number)] = {
                name: {mode: median(each) for mode, each in sampled(steps, clock, 15, warmup_s=0.05).items()}
                for name, clock in (("cold", cold), ("warm", warm))
            }
    return found


def bursts(process: int) -> dict[str, Any]:
    """Time a step of bursts of several lengths, and of one step on the device, warm."""
    layer, clock = Layer((64, 4096)), CudaClock(cold=False, l2_bytes=0)
    found: dict[str, Any] = {}
    for size in layer.sizes:
        for mode, step in layer.steps(size).items():
            sampled({mode: step}, clock, 5)
            warm_device_s = [clock.sample(step).device_s for _ in range(20)]
            found[f"t{size}/{mode}"] = {
                "warm_device_s": median(warm_device_s),
                "sustained_s": {
                    str(steps): median(clock.burst(step, steps).sustained_s for _ in range(5))
                    for steps in (1, 5, 10, 20, 50, 100, 200)
                },
            }
    return found


def one_kernel(process: int) -> dict[str, Any]:
    """One elementwise kernel of about 5, 50 and 500 us: by events, eager and as a graph; by events while CUPTI watches;
    and by CUPTI itself."""
    found: dict[str, Any] = {}
    for name, numbers in (("5us", 2_000_000), ("50us", 25_000_000), ("500us", 260_000_000)):
        x = torch.randn(numbers, device="cuda", dtype=torch.float32)
        graph = torch.cuda.CUDAGraph()
        x.mul_(1.0001)
        with torch.cuda.graph(graph):
            x.mul_(1.0001)

        def eager(x: torch.Tensor = x) -> object:
            return x.mul_(1.0001)

        clock = CudaClock(cold=True, l2_bytes=l2_bytes())
        times_s = sampled({"eager": eager, "graph": graph.replay}, clock, 60)
        with _watched() as kernels_s:
            while_watched_s = sampled({"eager": eager}, clock, 60)["eager"]
        found[name] = {
            "events_eager_s": median(times_s["eager"]),
            "events_graph_s": median(times_s["graph"]),
            "events_while_profiled_s": median(while_watched_s),
            "cupti_s": median(kernels_s[-60:]),
        }
        del x, graph
    return found


@contextmanager
def _watched() -> Iterator[list[float]]:
    """CUPTI's durations of the elementwise kernels inside the block, once it is left."""
    kernels_s: list[float] = []
    with profile(activities=[ProfilerActivity.CUDA]) as session:
        yield kernels_s
    assert session.profiler is not None and session.profiler.kineto_results is not None
    events = [
        each
        for each in session.profiler.kineto_results.events()
        if "elementwise" in each.name() and "Mul" in each.name()
    ]
    kernels_s += [each.duration_ns() * 1e-9 for each in sorted(events, key=lambda each: each.start_ns())]


def clocks_under_load(process: int) -> dict[str, Any]:
    """What NVML says beside the samples of the largest step: SM clocks, power, reasons."""
    layer, clock = Layer((4096,), ("full",)), CudaClock(cold=True, l2_bytes=l2_bytes())
    limits = Limits(min_samples=100, max_samples=100, ci_half_width=1e-9, warmup_s=1.0)
    with Nvml() as nvml:
        index = nvml.cuda_index()
        found = sample_rounds(
            layer.steps(4096),
            clock,
            limits,
            seed=0,
            reading=lambda: None if index is None else nvml.reading(index),
            bursts=False,
        )
    readings = [each for each in found.arms["full"].readings if each is not None]
    return {
        "sm_clock_hz": sorted({each.sm_clock_hz for each in readings}, key=str),
        "power_w": [min(each.power_w or 0 for each in readings), max(each.power_w or 0 for each in readings)],
        "temperature_c": sorted({each.temperature_c for each in readings}, key=str),
        "event_reasons": sorted({each.event_reasons for each in readings}, key=str),
        "compute_pids": len(Nvml().compute_pids(0)),
    }


EXPERIMENTS: dict[str, tuple[Callable[[int], dict[str, Any]], int]] = {  # name -> experiment, fresh processes
    "order": (order, 5),
    "delay": (delay, 1),
    "flush": (flush, 1),
    "warm_up": (warm_up, 1),
    "pinned": (pinned, 8),
    "cpus": (cpus, 2),
    "streams": (streams, 4),
    "bursts": (bursts, 1),
    "one_kernel": (one_kernel, 1),
    "clocks_under_load": (clocks_under_load, 1),
}
