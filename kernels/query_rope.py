"""The rotary part of the absorbed query: rotated out of the projected q, into its place beside the latent part."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor
from mlaprof.kernels.rotation import ROPE, check_angles, join_pairs, load_angles, split_pairs, turn

ROWS_PER_PROGRAM = 32
NUM_WARPS = 4


@triton.jit(do_not_specialize=["num_tokens"])  # one compiled kernel for every token count
def query_rope_kernel(
    q_pe_ptr,  # [num_tokens, HEADS, ROPE] bf16, strided
    cos_sin_ptr,  # [max_positions, 2, ROPE / 2] fp32
    positions_ptr,  # [num_tokens] int64
    out_ptr,  # [num_tokens, HEADS, ROPE] bf16, strided
    num_tokens,
    max_positions,
    q_stride_t,
    q_stride_h,
    out_stride_t,
    out_stride_h,
    HEADS: tl.constexpr,
    ROPE: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, head = rows // HEADS, rows % HEADS
    is_row = token < num_tokens
    cols = tl.arange(0, ROPE)[None, :]
    positions = tl.load(positions_ptr + token, mask=is_row, other=0)
    q_rows = q_pe_ptr + token * q_stride_t + head * q_stride_h
    q_pe = tl.load(q_rows[:, None] + cols, mask=is_row[:, None], other=0.0)
    cos, sin = load_angles(cos_sin_ptr, positions, max_positions, ROPE // 2)
    even, odd = split_pairs(q_pe, ROWS, ROPE // 2)
    even, odd = turn(even, odd, cos, sin)
    out_rows = out_ptr + token * out_stride_t + head * out_stride_h
    tl.store(out_rows[:, None] + cols, join_pairs(even, odd, ROWS, ROPE // 2), mask=is_row[:, None])


def query_rope(q_pe: Tensor, cos_sin: Tensor, positions: Tensor, out: Tensor) -> None:
    """Rotate the rotary part of every query head into out.

    q_pe       [num_tokens, num_heads, 64]  bf16   tokens and heads at any stride
    cos_sin    [max_positions, 2, 32]       fp32
    positions  [num_tokens]                 int64  outside the table: its nearest row
    out        [num_tokens, num_heads, 64]  bf16   may be q_pe itself; tokens and heads at any stride
    Pairs are (2i, 2i + 1). Raises ValueError on a wrong shape, dtype or device.
    """
    num_tokens, heads = check_tensor("q_pe", q_pe, shape=("num_tokens", "num_heads", ROPE), dtype=torch.bfloat16)
    check_tensor("out", out, shape=(num_tokens, heads, ROPE), dtype=torch.bfloat16, device=q_pe.device)
    max_positions = check_angles(num_tokens, cos_sin, positions, q_pe.device)
    if num_tokens * heads == 0:
        return
    query_rope_kernel[(triton.cdiv(num_tokens * heads, ROWS_PER_PROGRAM),)](
        q_pe, cos_sin, positions, out, num_tokens, max_positions,
        q_pe.stride(0), q_pe.stride(1), out.stride(0), out.stride(1),
        HEADS=heads, ROPE=ROPE, ROWS=ROWS_PER_PROGRAM, num_warps=NUM_WARPS, enable_fp_fusion=False,
    )  # fmt: skip
