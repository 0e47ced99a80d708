"""A memory job: one mode in a fresh process, all its sizes, largest first: its pool is weighed as an engine uses it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from time import perf_counter

from mlaprof.machine.nvml import Nvml
from mlaprof.measure.memory import CpuMeter, CudaMeter, MemoryMeter
from mlaprof.records import MemoryUse, Outcome, Point
from mlaprof.worker.events import Event, failure, graph_facts, measurement, recover, started
from mlaprof.worker.rig import Rig


def memory_job(rig: Rig) -> Iterator[Event]:
    job = rig.job
    meter: MemoryMeter = CudaMeter() if job.device == "cuda" else CpuMeter()
    with Nvml() as nvml:
        for point in job.points:
            yield started(job, point, "measure")
            try:
                event = _weigh(rig, point, meter, nvml)
            except Exception as error:
                yield failure(job, point, "measure", error)
                recover(job)
                continue
            yield event


def _weigh(rig: Rig, point: Point, meter: MemoryMeter, nvml: Nvml) -> Event:
    rig.load(point)
    arm = rig.arm(point)
    with arm.context:
        begin_s = perf_counter()
        arm.runner.prepare([point.num_tokens])
        capture_s = perf_counter() - begin_s if arm.graphs is not None else 0.0
        meter.begin()
        arm.runner.run(point.num_tokens)
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
    )
    graph = graph_facts(arm, capture_s)
    return measurement(rig.job, point, Outcome(status="ok"), memory=memory, graph=graph)


def _process_bytes(nvml: Nvml) -> int | None:
    index = nvml.cuda_index()
    return None if index is None else nvml.process_memory_bytes(os.getpid(), index)
