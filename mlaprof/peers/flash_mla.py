"""FlashMLA: sparse attention of 64 or 128 heads, prefill on a bf16 cache and decode on the 656-byte fp8 cache.

Fewer heads are padded to 64 and the padding's output dropped, as engines do; that is its price at 16 heads. An index
below zero other than -1 is not looked for by the decode kernel, nor one beyond the cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlaprof.peers.package import Package, Prepared, need, need_hopper

PACKAGE = Package(
    "flash_mla",
    modules=("flash_mla",),
    distributions=("sgl-flash-mla", "flash-mla", "tokenspeed-flashmla"),
    remedy="pip install sgl-flash-mla, or build github.com/deepseek-ai/FlashMLA",
)
SGL_KERNEL = Package(
    "sglang",
    modules=("sgl_kernel.flash_mla",),
    distributions=("sglang-kernel", "sgl-kernel"),
    remedy="pip install sglang-kernel",
)
HEADS = (64, 128)
TOPK_MULTIPLE = 128
TOKENS_PER_BLOCK, FP8_ROW_BYTES = 64, 656
VALUE_DIM = 512


def sparse_attn(
    q: Tensor, cache: Tensor, indices: Tensor, scale: float, *, next_n: int = 1, package: Package = PACKAGE
) -> Prepared:
    """flash_mla_sparse_fwd on a bf16 cache, flash_mla_with_kvcache on an fp8 one."""
    is_fp8 = cache.dtype == torch.uint8
    name = "flash_mla_with_kvcache" if is_fp8 else "flash_mla_sparse_fwd"
    forward = _hopper_form(package, package.function(name))
    check_shape(package, q, indices)
    padded = pad_heads(q)
    if not is_fp8:
        return _prefill(forward, padded, cache, indices, scale, heads=q.shape[1])
    metadata = package.function("get_mla_metadata")
    return _decode(forward, metadata, padded, cache, indices, scale, heads=q.shape[1], next_n=next_n)


def check_shape(package: Package, q: Tensor, indices: Tensor) -> None:
    """Raise Unavailable for what FlashMLA's Hopper kernels do not serve."""
    need_hopper(package.name, q.device)
    need(q.shape[1] <= max(HEADS), f"{package.name} attends with at most {max(HEADS)} heads, not {q.shape[1]}")
    topk = indices.shape[1]
    need(
        topk % TOPK_MULTIPLE == 0 and topk > 0,
        f"{package.name} selects a multiple of {TOPK_MULTIPLE} rows, not {topk}",
        f"use a topk that {TOPK_MULTIPLE} divides",
    )


def pad_heads(q: Tensor) -> Tensor:
    """q with zero heads appended up to the next number that FlashMLA takes; q itself where none is missing."""
    heads = next(heads for heads in HEADS if q.shape[1] <= heads)
    if heads == q.shape[1]:
        return q
    padded = q.new_zeros(q.shape[0], heads, q.shape[2])
    padded[:, : q.shape[1]] = q
    return padded


def _prefill(
    forward: Callable[..., Any], q: Tensor, cache: Tensor, indices: Tensor, scale: float, *, heads: int
) -> Prepared:
    rows, picked = cache[:, None], indices[:, None]

    def run() -> Tensor:
        out: Tensor = forward(q, rows, picked, scale, VALUE_DIM)[0]
        return out[:, :heads]

    return run


def _decode(
    forward: Callable[..., Any],
    metadata: Callable[..., Any],
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    scale: float,
    *,
    heads: int,
    next_n: int,
) -> Prepared:
    num_tokens, topk = indices.shape
    batch = num_tokens // next_n
    pages = cache.view(-1, TOKENS_PER_BLOCK, 1, FP8_ROW_BYTES)
    query, picked = q.view(batch, next_n, *q.shape[1:]), indices.view(batch, next_n, topk)
    # Lengths and table are read by the dense form only, but the first releases ask for them.
    lengths = torch.full((batch,), topk, dtype=torch.int32, device=q.device)
    table = torch.zeros(batch, 1, dtype=torch.int32, device=q.device)
    asked = (lengths, next_n * q.shape[1], 1, q.shape[1], True, topk) if _needs_arguments(metadata) else ()
    schedule, splits = metadata(*asked)

    def run() -> Tensor:
        out: Tensor = forward(
            q=query,
            k_cache=pages,
            block_table=table,
            cache_seqlens=lengths,
            head_dim_v=VALUE_DIM,
            tile_scheduler_metadata=schedule,
            num_splits=splits,
            softmax_scale=scale,
            causal=False,
            is_fp8_kvcache=True,
            indices=picked,
        )[0]
        return out.view(num_tokens, -1, VALUE_DIM)[:, :heads]

    run()  # later releases make an empty schedule and fill it in at the first call
    return run


def _needs_arguments(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(
        p.default is p.empty and p.kind is not p.VAR_POSITIONAL and p.kind is not p.VAR_KEYWORD for p in parameters
    )


def _hopper_form(package: Package, forward: Callable[..., Any]) -> Callable[..., Any]:
    """The form with Hopper's kernels, which one distribution keeps behind an argument."""
    if "use_legacy" not in inspect.signature(forward).parameters:
        return forward
    has_legacy = package.function("has_legacy")
    need(has_legacy(), f"{package.version()} was built without its Hopper kernels", package.remedy)
    return lambda *args, **kwargs: forward(*args, **kwargs, use_legacy=True)
