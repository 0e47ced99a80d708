"""What a worker says of a Point, and what it does when one goes wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import torch

from mlaprof.capture.graphs import CaptureError
from mlaprof.facts import Check
from mlaprof.faults import Fault, fault_in
from mlaprof.records import AnyJob, Job, Measurement, Outcome, Point, Stage, Started
from mlaprof.verify import NON_FINITE

Event = Started | Measurement


class ContextLost(Exception):
    """The process must end, and what is left needs a fresh one: a CUDA error that every later call would meet again,
    or memory that is no clean slate any more."""


class NvmlGone(Exception):
    """NVML answered when the cell began, and does not any more."""


class RankFailed(Exception):
    """A rank could not do what the ranks of a tensor parallel layer do together: all of them meet it, as this."""


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

    Memory that ran out during a capture, or a kernel that broke it, is no verdict on the mode, so that is `failed`.
    """
    if isinstance(error, CaptureError) and fault_of(error) == "error":
        return measurement(job, point, Outcome(status="skipped", stage=stage, reason=str(error)))
    return measurement(job, point, failed(stage, error))


def failed(stage: Stage, error: Exception) -> Outcome:
    return Outcome(status="failed", stage=stage, reason=reason_of(error), fault=fault_of(error))


def reason_of(error: Exception) -> str:
    """The error in one line; of a lost context what it was lost by."""
    cause = error.__cause__ if isinstance(error, ContextLost) and error.__cause__ else error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:2000]


def fault_of(error: BaseException) -> Fault:
    """The first fault that the error or one of its causes tells of; `error` where none does."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.OutOfMemoryError):
            return "device_oom"
        if isinstance(cause, MemoryError):
            return "host_oom"
        if isinstance(cause, NvmlGone):
            return "nvml_gone"
        if said := fault_in(str(cause)):
            return said
        if type(cause).__module__.split(".")[0] == "triton":
            return "compiler"
        cause = cause.__cause__
    return "error"


def wrong(checks: Sequence[Check]) -> Outcome:
    """The outcome of a Point that failed these checks."""
    reason = "; ".join(f"{check.name} {check.value:.3g}, limit {check.limit:g}" for check in checks)
    nan = any(check.name.endswith(NON_FINITE) or not math.isfinite(check.value) for check in checks)
    return Outcome(status="incorrect", stage="verify", reason=reason, fault="not_finite" if nan else "")


def recover(job: AnyJob, error: Exception | None = None) -> None:
    """After a failed Point: give memory back.

    Raises ContextLost where the CUDA context did not survive, or where `error` says that NVML did not: what is left
    shall not be measured without it. A group of ranks ends with what failed in it, as nobody knows what each survived.
    """
    if isinstance(error, NvmlGone | RankFailed):
        raise ContextLost from error
    if job.device != "cuda":
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        raise ContextLost from error
