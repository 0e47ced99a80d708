"""Kernels that no GPU survives: a store to where nothing is, a store across a boundary, a wait for what never comes."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

NOWHERE = 64  # in the first page, which no process has; where a host's own pages serve a GPU, others may be there


@triton.jit
def store_kernel(address):  # type: ignore[no-untyped-def]
    tl.store(address.to(tl.int64).to(tl.pointer_type(tl.int32)), 1)


@triton.jit
def wait_kernel(flag):  # type: ignore[no-untyped-def]
    seen = tl.load(flag, volatile=True)
    while seen == 0:
        seen = tl.load(flag, volatile=True)
    tl.store(flag, seen)


def launch(fault: str) -> None:
    """One launch, asynchronous; whoever waits for the device next meets what comes of it."""
    room = torch.zeros(4, dtype=torch.int32, device="cuda")
    kernel: Any = wait_kernel if fault == "endless_kernel" else store_kernel
    argument = {"illegal_address": NOWHERE, "misaligned_address": room.data_ptr() + 2}.get(fault, room)
    kernel[(1,)](argument)
