"""The three kinds of job: timing, memory, compile. Each yields Started events and one Measurement a Point."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mlaprof.records import Job
from mlaprof.worker.compiling import compile_job
from mlaprof.worker.events import Event, failure, recover, started
from mlaprof.worker.memory import memory_job
from mlaprof.worker.rig import Rig
from mlaprof.worker.timing import timing_job


def run_job(job: Job) -> Iterator[Event]:
    """Do job. Where its layer cannot be built, every Point fails in stage `build`.

    Raises ContextLost after the Measurement of the Point that broke the CUDA context.
    """
    if job.kind == "compile":
        yield from compile_job(job)
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
        yield from (timing_job(rig) if job.kind == "timing" else memory_job(rig))
