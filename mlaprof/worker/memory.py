"""A memory job: one way of running in a fresh process, all its sizes, largest first: its pool is weighed as an engine
uses it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from mlaprof.facts import Ledger, MemoryUse, SizeFacts
from mlaprof.machine.nvml import Nvml
from mlaprof.measure.memory import CpuMeter, CudaMeter, DeviceReading, MemoryMeter, weigh_capture
from mlaprof.records import Outcome
from mlaprof.worker.arms import Arm
from mlaprof.worker.events import ContextLost, Event, failure, measurement, recover, started
from mlaprof.worker.mark import Mark
from mlaprof.worker.prepare import Prepared, capture_size, graph_facts, not_captured, passes_over
from mlaprof.worker.rig import Rig

EAGER_STEPS = 2  # a size, before the base is read: libraries load their kernels at first use


def memory_job(rig: Rig, mark: Mark | None = None) -> Iterator[Event]:
    """Capture every size under a scale, then weigh a step of each Point. Every Measurement carries the whole ledger.

    Raises ContextLost where a size broke it: the others need a pool that it was never in.
    """
    job, mark = rig.job, mark or Mark()
    meter: MemoryMeter = CudaMeter() if job.device == "cuda" else CpuMeter()
    broken: dict[int, Exception] = {}
    yield started(job, job.points[0], "capture")
    try:
        arm = rig.arm(job.points[0])
        ledger = _ledger(rig, arm, meter, broken, mark)
    except Exception as error:
        for point in mark.among(job.points):
            yield failure(job, point, "capture", error)
        raise ContextLost from error
    with Nvml() as nvml:
        for point in job.points:
            yield started(job, point, "measure")
            try:
                if point.num_tokens in broken:
                    raise broken[point.num_tokens]
                with rig.group.together():
                    event = _weigh(rig, arm.at(point), meter, nvml, ledger)
            except Exception as error:
                yield failure(job, point, "capture" if point.num_tokens in broken else "measure", error)
                recover(job, error)
                continue
            yield event


def _ledger(rig: Rig, arm: Arm, meter: MemoryMeter, broken: dict[int, Exception], mark: Mark) -> Ledger:
    """What is there before the first capture, and what each size adds. Sizes that fail are told, and put in broken
    where the Point of that many tokens cannot be run without."""
    sizes = rig.capture_sizes(arm.point)
    keys = {point.num_tokens: point.key for point in rig.job.points}
    for size in sizes:
        mark(keys.get(size, ""))
        _run_eagerly(rig, arm, size)
    base = meter.reading()
    facts: list[SizeFacts] = []
    pool_bytes = 0
    for size in sizes if arm.graphs is not None else ():
        mark(keys.get(size, ""))
        try:
            with weigh_capture(meter) as weight:
                found = capture_size(rig, arm, size)
        except Exception as error:
            if not passes_over(rig, arm.point):
                broken[size] = error
            facts.append(not_captured(size, error))
            recover(rig.job, error)
            continue
        assert arm.graphs is not None
        before, pool_bytes = pool_bytes, arm.graphs.pool_bytes()
        grown = {"pool_bytes": pool_bytes - before, **vars(weight)}
        facts.append(found.model_copy(update=grown))
    after = meter.reading()
    ours = {name: getattr(rig, name) for name in ("weights_bytes", "caches_bytes", "buffers_bytes")}
    return Ledger(
        hold=arm.hold,
        **ours,
        **({} if base is None else _base(base, sum(ours.values()))),
        sizes=tuple(facts),
        device_bytes=None if after is None else after.device_bytes,
    )


def _base(reading: DeviceReading, ours_bytes: int) -> dict[str, int]:
    return {
        "context_bytes": reading.outside_bytes,
        "workspace_bytes": reading.default_allocated_bytes - ours_bytes,
        "slack_bytes": reading.slack_bytes,
    }


def _run_eagerly(rig: Rig, arm: Arm, size: int) -> None:
    try:
        rig.load(size)
    except ValueError:
        return  # a bucket without a batch: its capture will say so
    with arm.context, rig.kept_caches():
        for _ in range(EAGER_STEPS):
            arm.stack(*rig.buffers.slice(size))


def _weigh(rig: Rig, arm: Arm, meter: MemoryMeter, nvml: Nvml, ledger: Ledger) -> Event:
    num_tokens = arm.point.num_tokens
    rig.load(num_tokens)
    with arm.context:
        arm.runner.run(num_tokens)
        meter.begin()
        arm.runner.run(num_tokens)
        peak_bytes = meter.peak_bytes()
    cuda = rig.device.type == "cuda"
    memory = MemoryUse(
        weights_bytes=rig.weights_bytes,
        caches_bytes=rig.caches_bytes,
        buffers_bytes=rig.buffers_bytes,
        graph_pool_bytes=arm.graphs.pool_bytes() if arm.graphs is not None else 0,
        allocator_peak_bytes=peak_bytes if cuda else None,
        host_peak_bytes=None if cuda else peak_bytes,
        nvml_process_bytes=_process_bytes(nvml) if cuda else None,
        ledger=ledger,
    )
    graph = graph_facts(Prepared(arm, prepare_s=None))
    return measurement(rig.job, arm.point, Outcome(status="ok"), memory=memory, graph=graph)


def _process_bytes(nvml: Nvml) -> int | None:
    index = nvml.cuda_index()
    return None if index is None else nvml.process_memory_bytes(os.getpid(), index)
