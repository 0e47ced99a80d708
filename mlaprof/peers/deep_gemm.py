"""DeepGEMM: fp8 products and the indexer's logits, compiled just in time (its first call of a shape takes seconds).

The package has had several homes and two generations of names; both are accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlaprof.peers.package import Package, Prepared, need, need_hopper

PACKAGE = Package(
    "deep_gemm",
    modules=("deep_gemm",),
    distributions=("sgl-deep-gemm", "deep-gemm", "tokenspeed-deepgemm"),
    remedy="pip install sgl-deep-gemm, or build github.com/deepseek-ai/DeepGEMM",
)
VENDORED = Package(
    "vllm's deep_gemm",
    modules=("vllm.third_party.deep_gemm",),
    distributions=("vllm",),
    remedy="pip install vllm",
)
TOKENS_PER_BLOCK, ROW_BYTES = 64, 132
INDEX_HEADS = (32, 64)


def index_logits(
    q: Tensor, k: Tensor, k_scale: Tensor, weights: Tensor, ks: Tensor, ke: Tensor, *, package: Package = PACKAGE
) -> Prepared:
    """fp8_mqa_logits: scores outside a row's [ks, ke) are not written."""
    logits, as_query = _either_generation(package, "mqa_logits")
    need_hopper(package.name, q.device)
    _need_heads(package, q)
    operands = (as_query(q), (k, k_scale), weights, ks, ke)
    return lambda: logits(*operands, clean_logits=False)


def paged_index_logits(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    kv_lens: Tensor,
    block_table: Tensor,
    max_len: int,
    *,
    package: Package = PACKAGE,
) -> Prepared:
    """fp8_paged_mqa_logits with a schedule made once, as one step's layers share it."""
    logits, as_query = _either_generation(package, "paged_mqa_logits")
    schedule_of = package.function("get_paged_mqa_logits_metadata")
    num_sms = package.function("get_num_sms")
    need_hopper(package.name, q.device)
    _need_heads(package, q)
    next_n = q.shape[1]
    # A query's own end, one row a request: [batch, next_n].
    new = torch.arange(1 - next_n, 1, dtype=torch.int32, device=q.device)
    ends = (kv_lens[:, None] + new).contiguous()
    schedule = schedule_of(ends, TOKENS_PER_BLOCK, num_sms())
    pages = cache.view(cache.shape[0], TOKENS_PER_BLOCK, 1, ROW_BYTES)
    operands = (as_query(q), pages, weights, ends, block_table, schedule, max_len)
    return lambda: logits(*operands, clean_logits=False)


def block_gemm(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, *, package: Package = PACKAGE) -> Prepared:
    """fp8_gemm_nt with fp32 scales: 1x128 of a, 128x128 of b."""
    gemm = package.function("fp8_gemm_nt", "gemm_fp8_fp8_bf16_nt")
    need_hopper(package.name, a.device)
    out = torch.empty(a.shape[0], b.shape[0], dtype=torch.bfloat16, device=a.device)
    left, right = (a, a_scale), (b, b_scale)

    def run() -> Tensor:
        gemm(left, right, out)
        return out

    return run


def _either_generation(package: Package, name: str) -> tuple[Callable[..., Any], Callable[[Tensor], Any]]:
    """The fp8 logits function, and how it wants the query: the newer one takes fp4 too, with a scale beside it."""
    found = package.function(f"fp8_{name}", f"fp8_fp4_{name}")
    old = getattr(package.load(), f"fp8_{name}", None) is not None
    return found, (lambda q: q) if old else (lambda q: (q, None))


def _need_heads(package: Package, q: Tensor) -> None:
    heads = q.shape[-2]
    need(heads in INDEX_HEADS, f"{package.name} has no logits of {heads} index heads", "use 32 or 64")
