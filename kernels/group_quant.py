"""Quantisation of activations to e4m3 in groups of 128 along a row (1x128), the form that block_gemm reads.

The scale of a group is amax / 448, or with ue8m0 the power of two at or above it; amax is floored at 1e-10. A code is
e4m3(x * (1 / scale)), both quotients rounded to nearest. Scales are stored column by column, so that the tokens of a
tile lie side by side.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor

GROUP = 128
SCALE_ALIGNMENT = 4  # columns of scales start at multiples of 16 bytes


@triton.jit(do_not_specialize=["m"])
def group_quant_kernel(
    x_ptr,  # [m, k] bf16
    codes_ptr,  # [m, k] e4m3
    scale_ptr,  # [m, k / 128] fp32, column-major
    m,
    x_stride,
    codes_stride,
    scale_stride,
    UE8M0: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    first = tl.program_id(0) * GROUPS
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = first * 128 + tl.arange(0, GROUPS * 128)
    is_row = rows < m
    far = rows.to(tl.int64)
    x = tl.load(x_ptr + far[:, None] * x_stride + cols[None, :], mask=is_row[:, None], other=0.0).to(tl.float32)
    x = tl.reshape(x, [ROWS, GROUPS, 128])
    amax = tl.maximum(tl.max(tl.abs(x), 2), 1e-10)
    if UE8M0:
        bits = amax.to(tl.int32, bitcast=True)
        exponent = (bits >> 23) - 8 + ((bits & 0x7FFFFF) > 0x600000).to(tl.int32)
        scale = (exponent << 23).to(tl.float32, bitcast=True)
        inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    else:
        scale = tl.div_rn(amax, 448.0)
        inverse = tl.div_rn(1.0, scale)
    codes = tl.minimum(tl.maximum(x * inverse[:, :, None], -448.0), 448.0).to(tl.float8e4nv)
    codes = tl.reshape(codes, [ROWS, GROUPS * 128])
    tl.store(codes_ptr + far[:, None] * codes_stride + cols[None, :], codes, mask=is_row[:, None])
    groups = first + tl.arange(0, GROUPS)
    tl.store(scale_ptr + groups[None, :] * scale_stride + rows[:, None], scale, mask=is_row[:, None])


def empty_scales(m: int, groups: int, device: torch.device) -> Tensor:
    """Room for scales [m, groups] fp32, column-major, every column at a multiple of 16 bytes."""
    height = -(-m // SCALE_ALIGNMENT) * SCALE_ALIGNMENT
    return torch.empty(groups, height, dtype=torch.float32, device=device).T[:m]


def group_quant(x: Tensor, ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """Quantise activations to e4m3 with one fp32 scale per 128 values of a row.

    x      [m, k] bf16, finite; k a multiple of 128, rows at any stride
    ue8m0  scales are rounded up to powers of two

    Returns codes [m, k] e4m3 and scale [m, k / 128] fp32, stored column by column: stride(0) is 1, stride(1) a multiple
    of 4. Raises ValueError on a wrong shape, dtype or stride.
    """
    m, k = check_tensor("x", x, shape=("m", "k"), dtype=torch.bfloat16)
    if k % GROUP:
        raise ValueError(f"x: expected a multiple of {GROUP} columns, got {k}")
    codes = torch.empty(m, k, dtype=torch.float8_e4m3fn, device=x.device)
    scale = empty_scales(m, k // GROUP, x.device)
    if m == 0 or k == 0:
        return codes, scale
    rows, groups, num_warps = (1, 4, 1) if m < 32 else (8, 1, 2) if m < 512 else (16, 1, 4)
    if k // GROUP % groups:
        groups = 1
    group_quant_kernel[(k // GROUP // groups, triton.cdiv(m, rows))](
        x, codes, scale, m, x.stride(0), k, scale.stride(1), UE8M0=ue8m0, ROWS=rows, GROUPS=groups, num_warps=num_warps
    )
    return codes, scale
