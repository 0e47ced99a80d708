"""What goes wrong is called by its name: from an error's text, a process's end, an exception and its causes."""

from __future__ import annotations

import pytest
import torch

from mlaprof.capture.graphs import CaptureError
from mlaprof.facts import Check
from mlaprof.faults import fault_in, fault_of_end
from mlaprof.machine.nvml import Reading
from mlaprof.plan import expand
from mlaprof.worker.events import ContextLost, NvmlGone, failure, fault_of, reason_of, recover, wrong
from mlaprof.worker.health import NOTHING, Watch

IMA = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (IMA, "illegal_address"),
        ("CUDA error: misaligned address", "misaligned_address"),
        ("Triton Error [CUDA]: CUDA_ERROR_ILLEGAL_ADDRESS", "illegal_address"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "device_oom"),
        ("CUDA error: out of memory", "device_oom"),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", "host_oom"),
        ("CUDA error: unspecified launch failure", "cuda_error"),
        ("CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx", "cuda_error"),
        ("CUDA error: operation not permitted when stream is capturing", None),
        ("CUDA error: operation failed due to a previous error during capture", None),
        ("KeyError: 'x'", None),
        ("", None),
    ],
)
def test_a_text_tells_of_its_fault(text: str, fault: str | None) -> None:
    """What only says that a step cannot be captured is none."""
    assert fault_in(text) == fault


@pytest.mark.parametrize(
    ("how", "words", "fault"),
    [
        ("killed by SIGABRT", "", "crashed"),
        ("killed by SIGSEGV", "Segmentation fault", "crashed"),
        ("killed by SIGABRT", IMA, "illegal_address"),
        ("exit code 1", IMA, "illegal_address"),
        ("killed by SIGKILL", IMA, "killed"),  # a reason of its own
        ("killed by SIGTERM", "", "killed"),
        ("exit code 3", "", "exited"),
        ("exit code 0", "", "exited"),
        ("did not exit within 30 s", "", "exited"),
    ],
)
def test_an_end_tells_of_its_fault(how: str, words: str, fault: str) -> None:
    """Its last words are believed where it ended by itself."""
    assert fault_of_end(how, words) == fault


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


class PTXASError(Exception):
    """As Triton's own; a test needs no compiler to raise it."""

    __module__ = "triton.runtime.errors"


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (torch.OutOfMemoryError("no"), "device_oom"),
        (MemoryError(), "host_oom"),
        (RuntimeError(IMA), "illegal_address"),
        (PTXASError("ptxas died"), "compiler"),
        (NvmlGone("gone"), "nvml_gone"),
        (ValueError("expected 3, got 4"), "error"),
        (caused(CaptureError("broke at aten.mm"), RuntimeError(IMA)), "illegal_address"),
        (caused(CaptureError("broke"), ValueError("nonzero is data-dependent")), "error"),
        (caused(ContextLost(), RuntimeError(IMA)), "illegal_address"),
    ],
)
def test_an_exception_tells_of_its_fault(error: Exception, fault: str) -> None:
    """The causes are asked, too."""
    assert fault_of(error) == fault


def test_a_kernel_that_breaks_a_capture_is_no_verdict_on_the_mode(tmp_path) -> None:
    """What cannot be captured is skipped; what broke is failed, whoever met it."""
    from mlaprof.config.load import load_study

    (tmp_path / "study.yaml").write_text("name: x\npreset: tiny\nsweep: {num_tokens: 3}\n")
    job = expand(load_study(tmp_path / "study.yaml"), "cpu").jobs[0]

    broken = failure(job, job.points[0], "capture", caused(CaptureError("broke"), RuntimeError(IMA))).outcome
    unfit = failure(job, job.points[0], "capture", CaptureError("nonzero is data-dependent")).outcome

    assert (broken.status, broken.fault) == ("failed", "illegal_address")
    assert (unfit.status, unfit.fault) == ("skipped", "")
    with pytest.raises(ContextLost):
        recover(job, NvmlGone("gone"))  # what is left shall have a worker that sees the clocks
    assert reason_of(caused(ContextLost(), RuntimeError("the cause"))) == "RuntimeError: the cause"


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("own batch: non-finite elements", 3.0, "not_finite"),
        ("row", float("nan"), "not_finite"),
        ("row", 0.5, ""),
    ],
)
def test_a_wrong_output_that_is_not_finite_is_called_so(name: str, value: float, fault: str) -> None:
    outcome = wrong([Check(name=name, value=value, limit=0.0)])

    assert (outcome.status, outcome.fault) == ("incorrect", fault)


class Answers:
    """NVML with these readings, one after another."""

    def __init__(self, *readings: Reading) -> None:
        self.readings = list(readings)

    def reading(self, index: int) -> Reading:
        return self.readings.pop(0)


FINE = Reading(sm_clock_hz=1.98e9, mem_clock_hz=None, power_w=None, temperature_c=None, event_reasons=0)


@pytest.mark.parametrize(
    ("readings", "gone"),
    [
        ((FINE, NOTHING), True),
        ((FINE, NOTHING, FINE), False),
        ((FINE, FINE), False),
        ((NOTHING, NOTHING), False),  # a card that tells nothing, from the beginning
        ((), False),
    ],
)
def test_nvml_that_answered_and_does_not_any_more_is_told(readings: tuple[Reading, ...], gone: bool) -> None:
    """Rounds whose clocks nobody knows must not stand beside those of which they are known."""
    watch = Watch(Answers(*readings), 0)  # type: ignore[arg-type]
    for _ in readings:
        watch.reading()

    if gone:
        with pytest.raises(NvmlGone):
            watch.require_present()
    else:
        watch.require_present()


def test_a_gpu_that_nobody_asks_about_cannot_vanish() -> None:
    watch = Watch(Answers(), None)  # type: ignore[arg-type]

    assert watch.reading() is None
    watch.require_present()
