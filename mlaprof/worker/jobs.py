"""The kinds of job. Each yields Started events and one Measurement a Point."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from mlaprof.records import AnyJob, Event, Job, KernelJob, Kind, SearchJob
from mlaprof.worker.compiling import compile_job
from mlaprof.worker.counting import counts_job
from mlaprof.worker.dispatching import dispatch_job
from mlaprof.worker.events import failure, recover, started
from mlaprof.worker.kernels import kernel_job
from mlaprof.worker.memory import memory_job
from mlaprof.worker.noise import noise_job
from mlaprof.worker.rig import Rig
from mlaprof.worker.searching import search_job
from mlaprof.worker.timing import timing_job
from mlaprof.worker.tracing import trace_job

WITHOUT_A_LAYER: dict[Kind, Callable[[Job], Iterator[Event]]] = {"compile": compile_job, "dispatch": dispatch_job}
WITH_A_LAYER: dict[Kind, Callable[[Rig], Iterator[Event]]] = {
    "timing": timing_job,
    "memory": memory_job,
    "counts": counts_job,
    "noise": noise_job,
    "trace": trace_job,
}


def run_job(job: AnyJob) -> Iterator[Event]:
    """Do job. Where its layer cannot be built, every Point fails in stage `build`.

    Raises ContextLost after the Measurement of the Point that broke the CUDA context.
    """
    if isinstance(job, KernelJob):
        yield from kernel_job(job)
        return
    if isinstance(job, SearchJob):
        yield from search_job(job)
        return
    if job.kind in WITHOUT_A_LAYER:
        yield from WITHOUT_A_LAYER[job.kind](job)
        return
    with torch.inference_mode():
        yield started(job, job.points[0], "build")
        try:
            rig = Rig(job)
        except Exception as error:
            for point in job.points:
                yield failure(job, point, "build", error)
            recover(job)
            return
        yield from WITH_A_LAYER[job.kind](rig)
