"""FlashInfer: top-k and RMSNorm, compiled just in time."""

from __future__ import annotations

import torch
from torch import Tensor

from mlaprof.peers.package import Package, Prepared, need_cuda

PACKAGE = Package(
    "flashinfer",
    modules=("flashinfer",),
    distributions=("flashinfer-python", "flashinfer"),
    remedy="pip install flashinfer-python",
)


def topk(logits: Tensor, ends: Tensor, k: int) -> Prepared:
    """top_k_ragged_transform without an offset: positions in the row, -1 behind the last."""
    select = PACKAGE.function("top_k_ragged_transform")
    need_cuda(PACKAGE.name, logits.device)
    offsets = torch.zeros_like(ends)
    return lambda: select(logits, offsets, ends, k)


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Prepared:
    """rmsnorm into a given output."""
    norm = PACKAGE.function("rmsnorm", submodule="norm")
    need_cuda(PACKAGE.name, x.device)
    out = torch.empty_like(x)

    def run() -> Tensor:
        norm(x, weight, eps, out)
        return out

    return run
