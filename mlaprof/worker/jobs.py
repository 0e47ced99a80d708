"""The kinds of job. Each yields Started events and one Measurement a Point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch

from mlaprof.records import AnyJob, Event, Job, KernelJob, Kind, SearchJob
from mlaprof.worker.compiling import compile_job
from mlaprof.worker.counting import counts_job
from mlaprof.worker.dispatching import dispatch_job
from mlaprof.worker.events import ContextLost, failure, fault_of, recover, started
from mlaprof.worker.group import RankPlace, group_of
from mlaprof.worker.kernels import kernel_job
from mlaprof.worker.mark import Mark
from mlaprof.worker.memory import memory_job
from mlaprof.worker.noise import noise_job
from mlaprof.worker.rig import Rig, cells
from mlaprof.worker.searching import search_job
from mlaprof.worker.timing import timing_job
from mlaprof.worker.tracing import trace_job

WITHOUT_A_LAYER: dict[Kind, Callable[[Job], Iterator[Event]]] = {"compile": compile_job, "dispatch": dispatch_job}
WITH_A_LAYER: dict[Kind, Callable[[Rig, Mark], Iterator[Event]]] = {
    "timing": timing_job,
    "memory": memory_job,
    "counts": lambda rig, mark: counts_job(rig),
    "noise": lambda rig, mark: noise_job(rig),
    "trace": lambda rig, mark: trace_job(rig),
}


def run_job(job: AnyJob, mark: Mark | None = None, place: RankPlace | None = None) -> Iterator[Event]:
    """Do job. Where its layer cannot be built, every Point fails in stage `build`; where memory is too small for it
    or the GPU is lost, only those of the largest cell.

    mark    shows whose turn it is inside a stage that Points share
    place    of another rank than the first of a tensor parallel layer; the first starts the others

    Raises ContextLost after the Measurement of the Point that broke the CUDA context.
    """
    mark = mark or Mark()
    if isinstance(job, KernelJob):
        yield from kernel_job(job, mark)
        return
    if isinstance(job, SearchJob):
        yield from search_job(job)
        return
    if job.kind in WITHOUT_A_LAYER:
        yield from WITHOUT_A_LAYER[job.kind](job)
        return
    with ExitStack() as opened, torch.inference_mode():
        yield started(job, job.points[0], "build")
        try:
            group = opened.enter_context(group_of(job, place))
            with group.together():
                rig = Rig(job, group)
                rig.settle()
        except Exception as error:
            largest = cells(job.points)[0]
            short = fault_of(error) in ("device_oom", "host_oom", "gpu_lost") and len(largest) < len(job.points)
            for point in largest if short else job.points:
                yield failure(job, point, "build", error)
            recover(job)
            if short:  # what was allocated so far goes with the process, as a lost GPU does
                raise ContextLost from error
            return
        yield from WITH_A_LAYER[job.kind](rig, mark)
