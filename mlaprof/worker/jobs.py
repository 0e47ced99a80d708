"""The three kinds of job: timing, memory, compile. Each yields Started events and one Measurement a Point."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mlaprof.records import Job
from mlaprof.worker.compiling import compile_job
from mlaprof.worker.events import Event
from mlaprof.worker.memory import memory_job
from mlaprof.worker.timing import timing_job


def run_job(job: Job) -> Iterator[Event]:
    """Do job. Raises ContextLost after the Measurement of the Point that broke the CUDA context."""
    if job.kind == "compile":
        yield from compile_job(job)
        return
    with torch.inference_mode():
        yield from (timing_job(job) if job.kind == "timing" else memory_job(job))
