"""Single kernels with inputs of their own: what `mlaprof kernels` times and checks, one builder a kernel.

case = CASES["topk"](shape, seed, device)     # shape: complete, as kernel_shapes.complete() gives it
with poisoned():
    run = case.call("triton", None)           # Unavailable: skip the cell with its reason
    checks = case.check(run())
run()                                         # to be timed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import triton

from mlaprof import kernel_shapes, peers
from mlaprof.cases import (
    block_gemm,
    caches,
    ceilings,
    index_logits,
    paged_index_logits,
    sparse_attn,
    tokenwise,
    topk,
)
from mlaprof.cases.case import Case, Precision, poisoned
from mlaprof.peers import Prepared, Unavailable

__all__ = ["CASES", "Builder", "Case", "Precision", "Prepared", "Unavailable", "poisoned", "version"]


class Builder(Protocol):
    def __call__(self, shape: Mapping[str, int], seed: int, device: torch.device) -> Case: ...


CASES: dict[str, Builder] = {
    "index_logits": index_logits.build,
    "paged_index_logits": paged_index_logits.build,
    "topk": topk.build,
    "sparse_attn": sparse_attn.build,
    "block_gemm": block_gemm.build_gemm,
    "group_quant": block_gemm.build_quant,
    "rmsnorm": tokenwise.build_rmsnorm,
    "rmsnorm_quant": tokenwise.build_rmsnorm_quant,
    "norm_rope": tokenwise.build_norm_rope,
    "index_query": tokenwise.build_index_query,
    "query_rope": tokenwise.build_query_rope,
    "cache_write": caches.build_cache_write,
    "gather_index_cache": caches.build_gather,
    "convert_indices": caches.build_convert,
    "absorb": tokenwise.build_absorb,
    "up_project": tokenwise.build_up_project,
    "copy": ceilings.build_copy,
    "matmul_bf16": ceilings.build_bf16,
    "matmul_fp8": ceilings.build_fp8,
}


def version(provider: str) -> str:
    """The package and version behind a provider; empty where it is not installed."""
    if provider in kernel_shapes.OWN:
        return f"triton {triton.__version__}"
    return f"torch {torch.__version__}" if provider == "torch" else peers.versions().get(provider, "")
