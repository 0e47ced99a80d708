"""What a worker says of a Point, and what it does when one goes wrong."""

from __future__ import annotations

from datetime import UTC, datetime

import torch

from mlaprof.capture.graphs import CaptureError
from mlaprof.records import AnyJob, Job, Measurement, Outcome, Point, Stage, Started

Event = Started | Measurement


class ContextLost(Exception):
    """A CUDA error that every later call would meet again; the process must end."""


def started(job: Job, point: Point, stage: Stage) -> Started:
    return Started(kind=job.kind, key=point.key, stage=stage)


def measurement(job: Job, point: Point, outcome: Outcome, **found: object) -> Measurement:
    return Measurement.model_validate(
        {
            "point": point,
            "kind": job.kind,
            "process": job.process,
            "outcome": outcome,
            "emulated": job.device == "cpu",
            "recorded_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **found,
        }
    )


def failure(job: Job, point: Point, stage: Stage, error: Exception) -> Measurement:
    """What went wrong, as data. A mode that this batch cannot be captured in is `skipped`, anything else `failed`.

    Memory that ran out during a capture is no verdict on the mode, so that is `failed`.
    """
    if isinstance(error, CaptureError) and not _out_of_memory(error):
        return measurement(job, point, Outcome(status="skipped", stage=stage, reason=str(error)))
    return measurement(job, point, Outcome(status="failed", stage=stage, reason=reason_of(error)))


def reason_of(error: Exception) -> str:
    """The error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:2000]


def _out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__cause__
    return False


def recover(job: AnyJob) -> None:
    """After a failed Point: give memory back. Raises ContextLost where the CUDA context did not survive."""
    if job.device != "cuda":
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        raise ContextLost from error
