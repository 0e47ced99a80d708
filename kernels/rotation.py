"""What kernels share that rotate: reading rows of the cosine and sine table, and turning pairs of values.

The products are rounded one by one, as torch does: kernels that rotate are launched without contraction to fused
multiply-adds, and so agree with `rotate()` of the layer bit by bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor

ROPE = 64  # rotated dimensions of a head: DeepSeek-V3.2 and GLM-5


@triton.jit
def load_angles(cos_sin_ptr, positions, max_positions, HALF: tl.constexpr):
    """(cosines, sines) [n, HALF] fp32 of n positions; one outside the table takes its nearest row."""
    inside = tl.minimum(tl.maximum(positions, 0), max_positions - 1)
    cells = inside[:, None] * (2 * HALF) + tl.arange(0, HALF)[None, :]
    return tl.load(cos_sin_ptr + cells), tl.load(cos_sin_ptr + HALF + cells)


@triton.jit
def turn(first, second, cos, sin):
    """The pair (first, second) turned by its angle; fp32 inside, rounded to bf16."""
    a = (first * cos - second * sin).to(tl.bfloat16)
    b = (second * cos + first * sin).to(tl.bfloat16)
    return a, b


@triton.jit
def split_pairs(x, ROWS: tl.constexpr, HALF: tl.constexpr):
    """[ROWS, 2 * HALF] to its even and its odd columns, fp32."""
    even, odd = tl.split(tl.reshape(x, (ROWS, HALF, 2)))
    return even.to(tl.float32), odd.to(tl.float32)


@triton.jit
def join_pairs(even, odd, ROWS: tl.constexpr, HALF: tl.constexpr):
    """The inverse of split_pairs, in the dtype given."""
    return tl.reshape(tl.join(even, odd), (ROWS, 2 * HALF))


def check_angles(num_tokens: int, cos_sin: Tensor, positions: Tensor, device: torch.device) -> int:
    """The positions that cos_sin [max_positions, 2, 32] fp32 has, once it and positions [num_tokens] int64 are right.

    Raises ValueError as check_tensor does, and for an empty table.
    """
    (max_positions,) = check_tensor(
        "cos_sin", cos_sin, shape=("max_positions", 2, ROPE // 2), dtype=torch.float32, device=device, contiguous="all"
    )
    if max_positions == 0:
        raise ValueError("cos_sin: expected at least one position, got none")
    check_tensor("positions", positions, shape=(num_tokens,), dtype=torch.int64, device=device)
    return max_positions
