"""The index queries after their projection: rotated, quantised, and their scales folded into the head weights.

One launch for what would be a rotation, a concatenation, a 1x128 quantiser and two products. Several heads a program:
a head is 256 bytes, too little to keep a program busy. Source: the lightning indexer of DeepSeek-V3.2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor
from mlaprof.kernels.index_head import load_head, rotate_and_quantise
from mlaprof.kernels.rotation import check_angles

HEADS_PER_PROGRAM = 16
NUM_WARPS = 4


@triton.jit(do_not_specialize=["num_tokens"])  # one compiled kernel for every token count
def index_query_kernel(
    q_ptr,  # [num_tokens, HEADS, 128] bf16
    weights_ptr,  # [num_tokens, HEADS] fp32
    cos_sin_ptr,  # [max_positions, 2, 32] fp32
    positions_ptr,  # [num_tokens] int64
    codes_ptr,  # [num_tokens, HEADS, 128] e4m3
    folded_ptr,  # [num_tokens, HEADS] fp32
    num_tokens,
    max_positions,
    weight_scale,
    q_stride,
    weights_stride,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, head = rows // HEADS, rows % HEADS
    is_row = token < num_tokens

    positions = tl.load(positions_ptr + token, mask=is_row, other=0)
    weights = tl.load(weights_ptr + token * weights_stride + head, mask=is_row, other=0.0).to(tl.float32)
    a, b, c, d = load_head(q_ptr + token * q_stride + head * 128, is_row, ROWS, INTERLEAVED)
    scale = rotate_and_quantise(
        a, b, c, d, codes_ptr + rows * 128, is_row, positions, cos_sin_ptr, max_positions, ROWS, INTERLEAVED
    )
    tl.store(folded_ptr + rows, weights * scale * weight_scale, mask=is_row)


def index_query(
    q: Tensor, weights: Tensor, cos_sin: Tensor, positions: Tensor, weight_scale: float, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """Rotate and quantise index queries, and fold their scales into the head weights.

    q          [num_tokens, num_heads * 128]  bf16   not rotated
    weights    [num_tokens, num_heads]        fp32   as projected; may be a slice of wider rows
    cos_sin    [max_positions, 2, 32]         fp32
    positions  [num_tokens]                   int64  one outside the table takes its nearest row
    Columns 0..63 of a head turn in pairs (2i, 2i + 1) when interleaved, else (i, i + 32), and are rounded to bf16.

    Returns codes [num_tokens, num_heads, 128] e4m3 and weights * scale * weight_scale [num_tokens, num_heads] fp32,
    where scale is the power of two that `act_quant` gives a head. Raises ValueError on a wrong shape, dtype or device.
    """
    num_tokens, heads = check_tensor("weights", weights, shape=("num_tokens", "num_heads"), dtype=torch.float32)
    check_tensor("q", q, shape=(num_tokens, heads * 128), dtype=torch.bfloat16, device=weights.device)
    max_positions = check_angles(num_tokens, cos_sin, positions, q.device)
    codes = torch.empty(num_tokens, heads, 128, dtype=torch.float8_e4m3fn, device=q.device)
    folded = torch.empty(num_tokens, heads, dtype=torch.float32, device=q.device)
    if folded.numel() == 0:
        return codes, folded
    index_query_kernel[(triton.cdiv(num_tokens * heads, HEADS_PER_PROGRAM),)](
        q,
        weights,
        cos_sin,
        positions,
        codes,
        folded,
        num_tokens,
        max_positions,
        weight_scale,
        q.stride(0),
        weights.stride(0),
        HEADS=heads,
        ROWS=HEADS_PER_PROGRAM,
        INTERLEAVED=interleaved,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
    return codes, folded
