"""A dispatch job: what the dispatcher charges for each registered operator, whatever the operator does."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mlaprof.facts import DispatchTax
from mlaprof.measure.dispatch import dispatch_tax
from mlaprof.records import Job, Outcome
from mlaprof.worker.events import Event, failure, measurement, started

CALLS = 2000


def dispatch_job(job: Job) -> Iterator[Event]:
    """One Measurement for each Point: operators that its step dispatches differ, their price does not."""
    point = job.points[0]
    yield started(job, point, "measure")
    try:
        with torch.inference_mode():
            found = dispatch_tax(torch.device(job.device), calls=CALLS)
    except Exception as error:
        for each in job.points:
            yield failure(job, each, "measure", error)
        return
    for each in job.points:
        # Op 1 and Op 2 a layer, or the one monolithic operator.
        ops = job.layer.num_layers * (1 if each.mode.startswith("monolithic") else 2)
        tax = DispatchTax(
            bare_s=found.bare_s,
            define_s=found.define_s,
            custom_op_s=found.custom_op_s,
            calls=CALLS,
            ops_per_step=ops,
        )
        yield measurement(job, each, Outcome(status="ok"), dispatch=tax)
