"""Quantisation of rows of 128 values to e4m3 with one power-of-two scale a row (1x128, ue8m0, rounded up).

448, the largest e4m3 value, is 1.75 * 2**8; so ceil(log2(amax / 448)) is amax's exponent less 8, plus one when its
mantissa exceeds 1.75. Integer arithmetic on the bits: no logarithm, no division, and exact powers stay exact.
Source: the index quantiser of DeepSeek-V3.2, amax floored at 1e-4.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor

ROWS_PER_PROGRAM = 8


@triton.jit(do_not_specialize=["num_rows"])  # one compiled kernel for every token count
def act_quant_kernel(
    x_ptr,  # [num_rows / inner, inner, DIM] bf16 or fp32
    codes_ptr,  # [num_rows, DIM] e4m3
    scale_ptr,  # [num_rows] fp32
    num_rows,
    inner,
    x_stride_outer,
    x_stride_inner,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    is_row = rows < num_rows

    x_rows = x_ptr + rows // inner * x_stride_outer + rows % inner * x_stride_inner
    x = tl.load(x_rows[:, None] + dims[None, :], mask=is_row[:, None], other=0.0).to(tl.float32)
    amax = tl.maximum(tl.max(tl.abs(x), 1), 1e-4)
    bits = amax.to(tl.int32, bitcast=True)
    exponent = (bits >> 23) - 8 + ((bits & 0x7FFFFF) > 0x600000).to(tl.int32)
    scale = (exponent << 23).to(tl.float32, bitcast=True)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)  # 1 / scale, exact
    codes = tl.minimum(tl.maximum(x * inverse[:, None], -448.0), 448.0).to(tl.float8e4nv)
    tl.store(codes_ptr + rows[:, None] * DIM + dims[None, :], codes, mask=is_row[:, None])
    tl.store(scale_ptr + rows, scale, mask=is_row)


def act_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise rows of 128 to e4m3 codes with one power-of-two scale a row (ue8m0, rounded up).

    x [..., 128], two dimensions or more, bf16 or fp32, finite, rows at any stride. Returns codes [..., 128] e4m3 and
    scale [..., 1] fp32: scale = 2 ** ceil(log2(max(amax, 1e-4) / 448)).

    Raises ValueError on a wrong shape or dtype.
    """
    rows = x[:, None] if x.dim() == 2 else x.flatten(0, -3) if x.dim() > 3 else x
    n, inner = check_tensor("x", rows, shape=("n", "heads", 128), dtype=(torch.bfloat16, torch.float32))
    codes = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
    num_rows = n * inner
    if num_rows == 0:
        return codes, scale
    act_quant_kernel[(triton.cdiv(num_rows, ROWS_PER_PROGRAM),)](
        rows, codes, scale, num_rows, inner, rows.stride(0), rows.stride(1), DIM=128, ROWS=ROWS_PER_PROGRAM
    )
    return codes, scale
