"""What goes wrong, by name: the fault of a failed Measurement, and how an error's text or a process's end shows it."""

from __future__ import annotations

from typing import Literal

Fault = Literal[
    "",  # none, or one that an older mlaprof did not name
    "illegal_address",
    "misaligned_address",
    "cuda_error",  # any other error of the driver or of a library on the GPU
    "gpu_lost",  # it fell off the bus, has memory that cannot be corrected, or CUDA finds it no more
    "device_oom",
    "host_oom",
    "compiler",  # it refused, crashed, or made what the GPU cannot run
    "timeout",  # no sign of life within the stage's limit
    "crashed",  # abort, segmentation fault and their like
    "killed",  # by a signal from outside; the kernel's out-of-memory killer sends SIGKILL, too
    "exited",  # the worker left before it was done
    "rubbish",  # it wrote what is no record
    "not_started",
    "host_lost",  # with the machine that measured it, again and again
    "nvml_gone",  # it answered before, so that clocks and heat beside the samples are unknown from here on
    "not_finite",  # NaN or infinite output
    "error",  # an exception that none of the others names
    "quarantined",  # not tried again: it ended workers before
]

# What took its worker with it, or left one that nobody can trust.
ENDS_THE_WORKER: frozenset[Fault] = frozenset(
    (
        "illegal_address",
        "misaligned_address",
        "cuda_error",
        "gpu_lost",
        "timeout",
        "crashed",
        "killed",
        "exited",
        "rubbish",
    )
)

_GPU_LOST = (
    "GPU is lost",
    "fallen off the bus",
    "uncorrectable ECC error",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "device(s) is/are busy or unavailable",  # cudaErrorDevicesUnavailable
    "cudaErrorDevicesUnavailable",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "No CUDA GPUs are available",
    "no CUDA-capable device is detected",
    "CUDA_ERROR_NO_DEVICE",
)
_BY_TEXT: tuple[tuple[Fault, tuple[str, ...]], ...] = (  # the first whose words are in the text
    ("gpu_lost", _GPU_LOST),
    ("illegal_address", ("illegal memory access", "CUDA_ERROR_ILLEGAL_ADDRESS")),
    ("misaligned_address", ("misaligned address", "CUDA_ERROR_MISALIGNED_ADDRESS")),
    ("device_oom", ("CUDA out of memory", "CUDA error: out of memory", "CUDA_ERROR_OUT_OF_MEMORY")),
    ("host_oom", ("DefaultCPUAllocator: can't allocate memory", "Cannot allocate memory", "std::bad_alloc")),
    ("cuda_error", ("CUDA error", "CUDA_ERROR_", "CUDA driver error", "CUBLAS_STATUS_", "cudaError")),
)
_CRASHES = ("SIGABRT", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS")


def fault_in(text: str) -> Fault | None:
    """The fault that an error message or the last words of a process tell of; None where they tell of none."""
    found = next((fault for fault, words in _BY_TEXT if any(each in text for each in words)), None)
    # "operation not permitted when stream is capturing" and its like: the step cannot be captured; nothing broke.
    return None if found == "cuda_error" and "captur" in text else found


def fault_of_end(how: str, last_words: str) -> Fault:
    """The fault of a process that ended early: `how` as machine.child.ending says it, and what it printed last."""
    said = fault_in(last_words)
    if said is not None and not how.endswith(("SIGKILL", "SIGTERM", "SIGINT")):
        return said
    if how.endswith(_CRASHES):
        return "crashed"
    return "killed" if how.startswith("killed by") else "exited"
