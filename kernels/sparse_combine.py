"""Joining what several programs found for one query over disjoint rows: the second launch of split-KV decode.

Source: the split-KV ("flash decoding") form of FlashAttention: each part is a finished softmax with its log-sum-exp.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
VALUES_PER_PROGRAM = 4096  # of all parts together: 32 a thread


@triton.jit
def sparse_combine_kernel(
    parts_ptr,  # [num_tokens, num_parts, num_heads, DIM] fp32
    part_lse_ptr,  # [num_tokens, num_parts, num_heads] fp32
    part_max_ptr,  # [num_tokens, num_parts, num_heads] fp32, or None
    out_ptr,  # [num_tokens, num_heads, DIM] bf16
    lse_ptr,  # [num_tokens, num_heads] fp32, or None
    max_ptr,  # [num_tokens, num_heads] fp32, or None
    num_heads,
    num_parts,
    out_stride_t,
    out_stride_h,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,  # num_parts rounded up to a power of two
    OVERLAP: tl.constexpr,
):
    chunks: tl.constexpr = DIM // BLOCK_D
    chunk = tl.program_id(0) % chunks
    row = (tl.program_id(0) // chunks).to(tl.int64)
    token, head = row // num_heads, row % num_heads
    column = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    part = tl.arange(0, PARTS)
    is_part = part < num_parts
    place = (token * num_parts + part) * num_heads + head

    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    lse = tl.load(part_lse_ptr + place, mask=is_part, other=float("-inf"))
    values = tl.load(parts_ptr + place[:, None] * DIM + column[None, :], mask=is_part[:, None], other=0.0)
    peak = tl.max(lse, 0)
    # Where every part is empty the peak is -inf, and -inf - -inf is NaN.
    pivot = tl.where(peak == float("-inf"), 0.0, peak)
    weights = tl.exp2((lse - pivot) * LOG2_E)
    total = tl.sum(weights, 0)
    mixed = tl.sum(values * weights[:, None], 0)
    inverse = tl.where(total == 0, 0.0, 1.0 / total)
    out = out_ptr + token * out_stride_t + head * out_stride_h
    tl.store(out + column, (mixed * inverse).to(tl.bfloat16))
    if lse_ptr is not None:
        tl.store(lse_ptr + row, pivot + tl.log2(total) * LN_2, mask=chunk == 0)
    if max_ptr is not None:
        largest = tl.load(part_max_ptr + place, mask=is_part, other=float("-inf"))
        tl.store(max_ptr + row, tl.max(largest, 0), mask=chunk == 0)


def scratch(q: Tensor, num_parts: int, dim: int, *, with_max: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Where num_parts programs leave what they found for queries q [num_tokens, num_heads, *], as combine reads it."""
    shape = (q.shape[0], num_parts, q.shape[1])
    parts = torch.empty((*shape, dim), dtype=torch.float32, device=q.device)
    part_lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    return parts, part_lse, torch.empty_like(part_lse) if with_max else None


def combine(
    parts: Tensor,
    part_lse: Tensor,
    part_max: Tensor | None = None,
    *,
    out: Tensor,
    lse: Tensor | None = None,
    max_logits: Tensor | None = None,
    overlap: bool = False,
) -> None:
    """Join attention results over disjoint rows into the result over all of them; zero where every part is empty.

    parts       [num_tokens, num_parts, num_heads, dim] fp32  each the result over its own rows
    part_lse    [num_tokens, num_parts, num_heads]      fp32  natural log of a part's sum of exp(scores)
    part_max    [num_tokens, num_parts, num_heads]      fp32  its largest score; needed for max_logits
    out         [num_tokens, num_heads, dim]            bf16
    lse         [num_tokens, num_heads]                 fp32  of all rows
    max_logits  [num_tokens, num_heads]                 fp32  of all rows
    overlap     start while the launch ahead still runs, then wait for its end: for Hopper and later

    dim is a power of two. Raises ValueError on a wrong shape, dtype or device.
    """
    num_tokens, num_parts, num_heads, dim = check_tensor(
        "parts", parts, shape=("T", "S", "H", "D"), dtype=torch.float32, contiguous="all"
    )
    shape = (num_tokens, num_parts, num_heads)
    check_tensor("part_lse", part_lse, shape=shape, dtype=torch.float32, device=parts.device, contiguous="all")
    check_tensor("out", out, shape=(num_tokens, num_heads, dim), dtype=torch.bfloat16, device=parts.device)
    if (part_max is None) != (max_logits is None):
        raise ValueError("max_logits: expected together with part_max, got only one of them")
    if num_tokens == 0 or num_heads == 0:
        return
    padded = triton.next_power_of_2(num_parts)
    block_d = max(min(dim, 64), min(dim, VALUES_PER_PROGRAM // padded))
    options = {"launch_pdl": True} if overlap else {}
    sparse_combine_kernel[(num_tokens * num_heads * (dim // block_d),)](
        parts,
        part_lse,
        part_max,
        out,
        lse,
        max_logits,
        num_heads,
        num_parts,
        out.stride(0),
        out.stride(1),
        DIM=dim,
        BLOCK_D=block_d,
        PARTS=padded,
        OVERLAP=overlap,
        num_warps=4,
        **options,
    )
