"""Kernels of other projects, where their packages are installed: found at run time, never required.

One module a package, one function a kernel. A function takes the operands as this project's launcher of that kernel
does and returns the call to time, whose result is what the launcher returns. What an engine makes once a model or once
once a step (layouts, metadata, schedules, padding) is made before, and outputs too where a caller may give them.
Raises Unavailable where the package is absent or does not serve such a shape or GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from mlaprof.peers import deep_gemm, flash_mla, flashinfer, sglang, vllm
from mlaprof.peers.package import Package, Prepared, Unavailable

__all__ = ["PEERS", "Package", "Prepared", "Unavailable", "adapter", "versions"]

PEERS: dict[str, ModuleType] = {
    "deep_gemm": deep_gemm,
    "flash_mla": flash_mla,
    "flashinfer": flashinfer,
    "sglang": sglang,
    "vllm": vllm,
}


def adapter(provider: str, kernel: str) -> Callable[..., Prepared]:
    """What prepares a provider's call of a kernel. Raises Unavailable for one it does not have."""
    found: Callable[..., Prepared] | None = getattr(PEERS[provider], kernel, None)
    if found is None:
        raise Unavailable(f"{provider} has no {kernel}")
    return found


def versions() -> dict[str, str]:
    """Distribution and version of every peer that is installed."""
    found = {name: module.PACKAGE.version() for name, module in PEERS.items()}
    return {name: version for name, version in found.items() if version is not None}
