"""Runs with planted numbers, for tests of everything downstream of a Run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from mlaprof.facts import (
    Check,
    GateFacts,
    GraphFacts,
    KernelResources,
    Ledger,
    MemoryUse,
    NodeCounts,
    SizeFacts,
    StepCounts,
    Timing,
)
from mlaprof.kernels.tiles import label
from mlaprof.records import Device, Environment, Gpu, Kind, Manifest, Measurement, Outcome, Point, Run, work
from mlaprof.study import (
    BOUNDARIES,
    BOUNDED_MODES,
    DEFAULT_MODES,
    MODES,
    PR_BOUNDARY,
    Boundary,
    Mode,
    Phase,
    TileChoice,
)

MIB = 2**20
H100 = Gpu(
    name="NVIDIA H100 80GB HBM3",
    uuid="GPU-0",
    driver="580.1",
    compute_capability="9.0",
    memory_bytes=80 * 2**30,
    power_limit_w=700.0,
    sm_clock_max_hz=1.98e9,
)
STUDY_YAML = "name: fake\nlayer:\n  preset: v3.2-tp8\n  num_layers: 1\nmeasure:\n  cache: cold\n"


def tile(**values: int) -> TileChoice:
    return TileChoice(kernel="sparse_attn", values=values)


def point(mode: Mode = "full", num_tokens: int = 64, **changes: object) -> Point:
    fields = {"preset": "v3.2-tp8", "phase": "prefill", "context_len": 0, "mode": mode, "num_tokens": num_tokens}
    return Point.model_validate({**fields, **changes})


def samples(median_s: float, n: int = 50, spread: float = 0.002, seed: int = 0) -> tuple[float, ...]:
    """n samples whose median is median_s, their logs spread evenly on either side in a random order.

    The second half mirrors the first, so that the rounds of two series have the ratio of the medians for their median.
    """
    rng = np.random.default_rng(seed)
    half = rng.permutation(np.linspace(-1, 1, n)[: n // 2]) * rng.choice([-1, 1], n // 2)
    logs = spread * np.concatenate([half, np.zeros(n % 2), -half[::-1]])
    return tuple((median_s * np.exp(logs)).tolist())


def timing(
    at: Point,
    median_s: float,
    median_submit_s: float = 20e-6,
    *,
    emulated: bool = False,
    n: int = 50,
    **changes: object,
) -> Measurement:
    """A timing that went well; the seed follows from the key, so that two arms are independent."""
    seed = sum(at.key.encode())
    on_gpu = not emulated
    series = {
        "device_s": samples(median_s, n, seed=seed),
        "submit_s": samples(median_submit_s, n, seed=seed + 1),
        "sm_clock_hz": (1.95e9,) * n if on_gpu else (),
        "power_w": (420.0,) * n if on_gpu else (),
        "temperature_c": (48.0,) * n if on_gpu else (),
        "clock_event_reasons": (0,) * n if on_gpu else (),
        "cache": "cold",
        "clock": "cuda_event" if on_gpu else "perf_counter",
        "warmup_s": 0.2,
        "first_call_s": 1.5,
    }
    return Measurement(
        point=at,
        kind="timing",
        outcome=Outcome(status="ok"),
        emulated=emulated,
        recorded_at="2026-01-02T03:04:05Z",
        timing=Timing.model_validate({**series, **changes}),
        graph=GraphFacts(
            captured_segments=0 if "eager" in at.mode else 1,
            eager_segments=1 if "eager" in at.mode else 0,
            graph_launches=0 if "eager" in at.mode else 1,
            graph_nodes=0 if "eager" in at.mode else 30,
            capture_s=0.05,
            padded_tokens=at.num_tokens,
        ),
        checks=(Check(name="replay equals eager", value=0.0, limit=0.0),),
    )


def in_process(measurement: Measurement, process: int, factor: float = 1.0, **changes: object) -> Measurement:
    """A timing as another fresh process has it: all its device and submit times longer by a factor."""
    assert measurement.timing
    times = {
        name: tuple(factor * each for each in getattr(measurement.timing, name)) for name in ("device_s", "submit_s")
    }
    timing = measurement.timing.model_copy(update={**times, **changes})
    return measurement.model_copy(update={"process": process, "timing": timing})


def bursts(sustained_s: float, warm_device_s: float, n: int = 8, **changes: object) -> dict[str, object]:
    """The series of a timing that are taken in bursts, as changes of `timing`."""
    return {
        "sustained_s": samples(sustained_s, n, seed=7),
        "warm_device_s": samples(warm_device_s, n, seed=8),
        "burst_steps": 50,
        "stop": "interval",
        **changes,
    }


def ended(at: Point, status: str, reason: str, *, kind: Kind = "timing", stage: str = "measure") -> Measurement:
    """A measurement without numbers."""
    return Measurement(
        point=at,
        kind=kind,
        outcome=Outcome.model_validate({"status": status, "stage": stage, "reason": reason}),
        emulated=False,
        recorded_at="2026-01-02T03:04:05Z",
    )


def memory(at: Point, pool_mib: float, *, peak: bool = True) -> Measurement:
    """peak: the allocator's, as on a GPU; otherwise the resident peak of the process, as on a CPU."""
    parts = {
        "weights_bytes": 150 * MIB,
        "caches_bytes": 80 * MIB,
        "buffers_bytes": int((0.5 + at.num_tokens / 512) * MIB),
        "graph_pool_bytes": int(pool_mib * MIB),
    }
    return Measurement(
        point=at,
        kind="memory",
        outcome=Outcome(status="ok"),
        emulated=not peak,
        recorded_at="2026-01-02T03:04:05Z",
        memory=MemoryUse(
            **parts,
            allocator_peak_bytes=sum(parts.values()) + int(at.num_tokens * 9000) if peak else None,
            host_peak_bytes=None if peak else 700 * MIB,
            nvml_process_bytes=900 * MIB if peak else None,
        ),
    )


def captured(measurement: Measurement, **changes: object) -> Measurement:
    """The timing with its capture told in parts and its gate passed: 40 nodes, 50 + 30 + 20 ms."""
    assert measurement.graph
    if "eager" in measurement.point.mode:
        return measurement.model_copy(
            update={"graph": measurement.graph.model_copy(update={"state": "eager", **changes})}
        )
    facts = {
        "state": "captured",
        "graph_nodes": 40,
        "nodes": NodeCounts(kernel=36, memset=4),
        "prepare_s": 1.5,
        "capture_s": 0.05,
        "instantiate_s": 0.03,
        "first_replay_s": 0.02,
        "hold": "strong",
        **changes,
    }
    gate = GateFacts(
        sets=("other pages", "other lengths", "fewer tokens"), replays=12, interleaved=(8,), after_timing=True
    )
    return measurement.model_copy(update={"graph": measurement.graph.model_copy(update=facts), "gate": gate})


def counts(at: Point, kernel_launches: int = 20, kernel_nodes: int = 36, **changes: object) -> Measurement:
    """What a step asks of the driver: in eager modes every kernel is launched."""
    eager = "eager" in at.mode
    nodes = NodeCounts() if eager else NodeCounts(kernel=kernel_nodes, memset=4)
    launched = kernel_launches + kernel_nodes if eager else kernel_launches
    fields = {
        "steps": 5,
        "kernels": launched + nodes.kernel,
        "kernel_launches": launched,
        "graph_launches": 0 if eager else 2,
        "nodes": nodes,
        "allocations": 12,
        "complete": True,
        **changes,
    }
    return Measurement(
        point=at,
        kind="counts",
        outcome=Outcome(status="ok"),
        emulated=False,
        recorded_at="2026-01-02T03:04:05Z",
        counts=StepCounts.model_validate(fields),
    )


def ledger(sizes: Iterable[int] = (64, 8), *, residual_mib: float = 1.0, **changes: object) -> Ledger:
    """A GPU's ledger whose parts miss the device's total by residual_mib; each size took 3 MiB of pool, 1 of driver."""
    parts = {
        "context_bytes": 520 * MIB,
        "weights_bytes": 150 * MIB,
        "caches_bytes": 80 * MIB,
        "buffers_bytes": 2 * MIB,
        "workspace_bytes": 32 * MIB,
        "slack_bytes": 5 * MIB,
    }
    rows = tuple(
        SizeFacts(
            num_tokens=tokens,
            state="captured",
            nodes=NodeCounts(kernel=36, memset=4),
            capture_s=0.05,
            instantiate_s=0.03,
            first_replay_s=0.02,
            pool_bytes=3 * MIB,
            driver_bytes=MIB,
            transient_bytes=MIB // 2,
        )
        for tokens in sizes
    )
    total = sum(parts.values()) + 4 * MIB * len(rows) + int(residual_mib * MIB)
    return Ledger.model_validate({"hold": "strong", **parts, "sizes": rows, "device_bytes": total, **changes})


def with_ledger(measurement: Measurement, kept: Ledger) -> Measurement:
    """The memory measurement of a process with this ledger."""
    assert measurement.memory
    return measurement.model_copy(update={"memory": measurement.memory.model_copy(update={"ledger": kept})})


def complete(machine: Machine, boundaries: Iterable[Boundary] = BOUNDARIES) -> list[Measurement]:
    """Every kind of measurement of every way on `machine`: each boundary further in captures more."""
    share = {"proj": 14, "index_quant": 24, "cache_update": 26, "logits": 40}
    gain = {"proj": -6e-6, "index_quant": 0.0, "cache_update": 2e-6, "logits": 12e-6}
    every = tuple(boundaries)
    timings: list[Measurement] = []
    others: list[Measurement] = []
    for mode in machine.modes:
        for boundary in every if mode in BOUNDED_MODES else (PR_BOUNDARY,):
            graph_kernels = 0 if "eager" in mode else 56 if mode == "full" else share[boundary]
            sizes = sorted(machine.sizes, reverse=True)
            kept = ledger(sizes if graph_kernels else (), residual_mib=6.5 if mode == "breakable" else 0.5)
            for place, tokens in enumerate(sizes):
                at = point(mode, tokens, boundary=boundary)
                device_s = machine.device_s(mode, tokens) - gain[boundary]
                submit_s = machine.submit_s(mode, tokens) - 3 * gain[boundary]
                measured = timing(at, device_s, submit_s, emulated=machine.emulated)
                timings.append(captured(measured, graph_nodes=graph_kernels + 4 if graph_kernels else 0))
                pool = 0 if "eager" in mode else 3 * (place + 1) + graph_kernels / 16
                others.append(with_ledger(memory(at, pool, peak=not machine.emulated), kept))
                others.append(counts(at, 56 - graph_kernels if graph_kernels else 20, graph_kernels or 36))
    timings.sort(key=lambda each: -each.point.num_tokens)
    return [*timings, *others]


def compiled(at: Point, registers: int = 128, shared_bytes: int = 98_304) -> Measurement:
    return Measurement(
        point=at,
        kind="compile",
        outcome=Outcome(status="compiled"),
        emulated=False,
        recorded_at="2026-01-02T03:04:05Z",
        resources=tuple(
            KernelResources(
                kernel=choice.kernel,
                tiles=label(choice.kernel, choice.values),
                target="sm_90",
                registers=registers,
                stack_bytes=0,
                shared_bytes=shared_bytes,
            )
            for choice in at.tiles
        ),
    )


def environment(**changes: object) -> Environment:
    fields = {
        "gpus": (H100,),
        "nvml": "12.580.1",
        "cpu": "AMD EPYC 9554",
        "cpu_count": 16,
        "memory_bytes": 128 * 2**30,
        "os": "Linux 6.1",
        "python": "3.12.3",
        "packages": {"torch": "2.11.0", "triton": "3.6.0"},
        "kernel_source_sha256": "ab" * 32,
        "git_commit": "0123abc",
        "git_dirty": False,
    }
    return Environment.model_validate({**fields, **changes})


def make_run(
    measurements: Iterable[Measurement],
    *,
    planned: Iterable[str] | None = None,
    device: Device = "cuda",
    run_id: str = "20260102-030405-fake",
    study_yaml: str = STUDY_YAML,
    **environment_changes: object,
) -> Run:
    """A Run of these measurements, all of them planned unless said otherwise."""
    rows = tuple(measurements)
    if device == "cpu":
        environment_changes = {"gpus": (), "nvml": "absent: no driver", **environment_changes}
    return Run(
        manifest=Manifest(
            schema_version=1,
            run_id=run_id,
            created_at="2026-01-02T03:04:05Z",
            mlaprof_version="0.1.0",
            command=("mlaprof", "sweep", "configs/fake.yaml"),
            device=device,
            study_yaml=study_yaml,
            environment=environment(**environment_changes),
            planned=tuple(planned)
            if planned is not None
            else tuple(work(m.kind, m.point.key, m.process) for m in rows),
        ),
        measurements=rows,
    )


@dataclass(frozen=True)
class Machine:
    """A plausible machine: device and submit seconds of a mode at a token count."""

    device_s: Callable[[Mode, int], float]
    submit_s: Callable[[Mode, int], float]
    emulated: bool = False
    modes: tuple[Mode, ...] = MODES
    sizes: tuple[int, ...] = tuple(2**power for power in range(14))
    tiles: tuple[TileChoice, ...] = ()
    tile_modes: tuple[Mode, ...] = ("full",)
    tile_factor: Callable[[TileChoice, int], float] = field(default=lambda choice, tokens: 1.0)


def _h100_device(mode: Mode, tokens: int) -> float:
    work = 75e-6 + 0.55e-6 * tokens + 2e-11 * tokens**2
    gap = {
        "monolithic_eager": 33e-6,
        "monolithic_piecewise": 21e-6,
        "split_eager": 36e-6,
        "split_piecewise": 9e-6,
        "breakable": 7e-6,
        "full": 0.0,
    }[mode]
    return work + gap * max(0.2, 1 - tokens / 4096)


def _h100_submit(mode: Mode, tokens: int) -> float:
    return {
        "monolithic_eager": 610e-6,
        "monolithic_piecewise": 330e-6,
        "split_eager": 640e-6,
        "split_piecewise": 150e-6,
        "breakable": 95e-6,
        "full": 21e-6,
    }[mode] + 1e-9 * tokens


def h100(**changes: object) -> Machine:
    return Machine(device_s=_h100_device, submit_s=_h100_submit, **changes)  # type: ignore[arg-type]


def laptop(**changes: object) -> Machine:
    def device(mode: Mode, tokens: int) -> float:
        return 2e-3 + 9e-5 * tokens + (4e-4 if "eager" in mode else 2e-4)

    settings: dict[str, object] = {"modes": DEFAULT_MODES, "sizes": (1, 8, 32, 64), **changes}
    return Machine(device_s=device, submit_s=device, emulated=True, **settings)  # type: ignore[arg-type]


def sweep(machine: Machine, phase: Phase = "prefill", context_len: int = 0) -> list[Measurement]:
    """Every measurement of a sweep on `machine`, in the order of a plan: largest first, then the memory jobs."""
    rows: list[Measurement] = []
    place = {"phase": phase, "context_len": context_len}
    for tokens in sorted(machine.sizes, reverse=True):
        for mode in machine.modes:
            device_s = machine.device_s(mode, tokens)
            at = point(mode, tokens, **place)
            rows.append(timing(at, device_s, machine.submit_s(mode, tokens), emulated=machine.emulated))
            for choice in machine.tiles if mode in machine.tile_modes else ():
                tiled = point(mode, tokens, tiles=(choice,), **place)
                factor = machine.tile_factor(choice, tokens)
                rows.append(
                    compiled(tiled)
                    if machine.emulated
                    else timing(tiled, device_s * factor, machine.submit_s(mode, tokens))
                )
    for mode in machine.modes:
        pool = 0.0
        for tokens in sorted(machine.sizes, reverse=True):
            if "eager" not in mode:
                share = {"monolithic_piecewise": 0.6, "split_piecewise": 0.8, "breakable": 0.9}.get(mode, 1.0)
                pool = max(pool, share * (2 + tokens / 128)) + 0.1
            rows.append(memory(point(mode, tokens, **place), pool, peak=not machine.emulated))
    return rows
