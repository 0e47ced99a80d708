"""RMSNorm over whole rows, alone or with the quantisation of the result to e4m3 in groups of 128."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor
from mlaprof.kernels.power_scale import power_scale

GROUP = 128
NUM_WARPS = 8


@triton.jit
def rmsnorm_kernel(
    x_ptr,  # [num_rows, GROUPS * 128] bf16
    weight_ptr,  # [GROUPS * 128] bf16
    out_ptr,  # [num_rows, GROUPS * 128] bf16 or e4m3
    scale_ptr,  # [num_rows, GROUPS] fp32
    eps,
    x_stride,
    GROUPS: tl.constexpr,
    GROUPS_PADDED: tl.constexpr,
    QUANTISE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    groups = tl.arange(0, GROUPS_PADDED)
    cells = groups[:, None] * 128 + tl.arange(0, 128)[None, :]
    seen = (groups < GROUPS)[:, None]
    x = tl.load(x_ptr + row * x_stride + cells, mask=seen, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + cells, mask=seen, other=0.0).to(tl.float32)
    mean_square = tl.sum(tl.sum(x * x, 1), 0) * (1.0 / (GROUPS * 128))
    normed = (x * tl.rsqrt(mean_square + eps) * weight).to(tl.bfloat16)
    out = out_ptr + row * (GROUPS * 128) + cells
    if QUANTISE:
        wide = normed.to(tl.float32)
        scale, inverse = power_scale(tl.max(tl.abs(wide), 1))
        tl.store(out, (wide * inverse[:, None]).to(tl.float8e4nv), mask=seen)
        tl.store(scale_ptr + row * GROUPS + groups, scale, mask=groups < GROUPS)
    else:
        tl.store(out, normed, mask=seen)


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [num_rows, width] bf16, rows at any stride, over its rows' root mean squares, times weight [width] bf16.

    width is a multiple of 128. Returns a new tensor. Raises ValueError on a wrong shape, dtype or device.
    """
    num_rows, groups = _check_rows(x, weight)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if num_rows:
        rmsnorm_kernel[(num_rows,)](
            x, weight, out, None, eps, x.stride(0),
            GROUPS=groups, GROUPS_PADDED=triton.next_power_of_2(groups), QUANTISE=False, num_warps=NUM_WARPS,
        )  # fmt: skip
    return out


def rmsnorm_quant(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`rmsnorm`, rounded to bf16, quantised to e4m3 in groups of 128 with power-of-two scales (as `act_quant`).

    Returns codes [num_rows, width] e4m3 and scales [num_rows, width / 128] fp32. Raises ValueError as `rmsnorm` does.
    """
    num_rows, groups = _check_rows(x, weight)
    codes = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(num_rows, groups, dtype=torch.float32, device=x.device)
    if num_rows:
        rmsnorm_kernel[(num_rows,)](
            x, weight, codes, scale, eps, x.stride(0),
            GROUPS=groups, GROUPS_PADDED=triton.next_power_of_2(groups), QUANTISE=True, num_warps=NUM_WARPS,
        )  # fmt: skip
    return codes, scale


def _check_rows(x: Tensor, weight: Tensor) -> tuple[int, int]:
    """(rows, groups of 128 a row)."""
    (width,) = check_tensor("weight", weight, shape=("width",), dtype=torch.bfloat16)
    if width == 0 or width % GROUP:
        raise ValueError(f"weight: expected a multiple of {GROUP} columns, got {width}")
    (num_rows,) = check_tensor("x", x, shape=("num_rows", width), dtype=torch.bfloat16, device=weight.device)
    return num_rows, width // GROUP
