"""Two kernels that show whether Triton's interpreter converts and multiplies correctly. Run by the child only."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def cast_kernel(x_ptr, codes_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=0.0)
    tl.store(codes_ptr + at, x.to(tl.float8e4nv), mask=at < n)


@triton.jit
def dot_kernel(a_ptr, b_ptr, c_ptr):
    at = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(c_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


def cast_to_e4m3(x: Tensor) -> Tensor:
    codes = torch.empty(x.shape, dtype=torch.float8_e4m3fn)
    cast_kernel[(triton.cdiv(x.numel(), 1024),)](x, codes, x.numel(), BLOCK=1024)
    return codes


def dot(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of two [16, 16] tensors, in fp32."""
    c = torch.empty(16, 16)
    dot_kernel[(1,)](a, b, c)
    return c
