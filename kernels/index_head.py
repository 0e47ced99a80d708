"""One 128-wide index head in four 32-wide pieces: the two that turn against each other, and the two that stay.

In four equal pieces the rotation needs no exchange between threads, and one reduction over 32 columns serves all 128.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mlaprof.kernels.power_scale import power_scale
from mlaprof.kernels.rotation import join_pairs, load_angles, split_pairs, turn


@triton.jit
def load_head(rows_ptr, is_row, ROWS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Columns of ROWS heads as four [ROWS, 32] fp32: the pairs' first and second members, then the rest likewise.

    rows_ptr [ROWS] points at column 0. Pairs are (2i, 2i + 1) when INTERLEAVED, else (i, i + 32), of columns 0..63.
    """
    if INTERLEAVED:
        cols = tl.arange(0, 64)[None, :]
        turned = tl.load(rows_ptr[:, None] + cols, mask=is_row[:, None], other=0.0)
        still = tl.load(rows_ptr[:, None] + 64 + cols, mask=is_row[:, None], other=0.0)
        a, b = split_pairs(turned, ROWS, 32)
        c, d = split_pairs(still, ROWS, 32)
    else:
        cols = tl.arange(0, 32)[None, :]
        a = tl.load(rows_ptr[:, None] + cols, mask=is_row[:, None], other=0.0).to(tl.float32)
        b = tl.load(rows_ptr[:, None] + 32 + cols, mask=is_row[:, None], other=0.0).to(tl.float32)
        c = tl.load(rows_ptr[:, None] + 64 + cols, mask=is_row[:, None], other=0.0).to(tl.float32)
        d = tl.load(rows_ptr[:, None] + 96 + cols, mask=is_row[:, None], other=0.0).to(tl.float32)
    return a, b, c, d


@triton.jit
def store_codes(codes_ptr, is_row, a, b, c, d, ROWS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The inverse of load_head for e4m3 codes; codes_ptr [ROWS] points at column 0."""
    if INTERLEAVED:
        cols = tl.arange(0, 64)[None, :]
        tl.store(codes_ptr[:, None] + cols, join_pairs(a, b, ROWS, 32), mask=is_row[:, None])
        tl.store(codes_ptr[:, None] + 64 + cols, join_pairs(c, d, ROWS, 32), mask=is_row[:, None])
    else:
        cols = tl.arange(0, 32)[None, :]
        tl.store(codes_ptr[:, None] + cols, a, mask=is_row[:, None])
        tl.store(codes_ptr[:, None] + 32 + cols, b, mask=is_row[:, None])
        tl.store(codes_ptr[:, None] + 64 + cols, c, mask=is_row[:, None])
        tl.store(codes_ptr[:, None] + 96 + cols, d, mask=is_row[:, None])


@triton.jit
def rotate_and_quantise(
    a, b, c, d, codes_ptr, is_row, positions, cos_sin_ptr, max_positions, ROWS: tl.constexpr, INTERLEAVED: tl.constexpr
):
    """Turn the pairs (a, b), round to bf16, store 128 e4m3 codes a row and return the scales [ROWS] fp32.

    c and d hold bf16 values already.
    """
    cos, sin = load_angles(cos_sin_ptr, positions, max_positions, 32)
    first, second = turn(a, b, cos, sin)
    a, b = first.to(tl.float32), second.to(tl.float32)
    amax = tl.max(tl.maximum(tl.maximum(tl.abs(a), tl.abs(b)), tl.maximum(tl.abs(c), tl.abs(d))), 1)
    scale, inverse = power_scale(amax)
    inverse = inverse[:, None]
    # The cast saturates, so that nothing needs clamping.
    codes = tl.float8e4nv
    store_codes(
        codes_ptr,
        is_row,
        (a * inverse).to(codes),
        (b * inverse).to(codes),
        (c * inverse).to(codes),
        (d * inverse).to(codes),
        ROWS,
        INTERLEAVED,
    )
    return scale
