"""Scores of the lightning indexer: logit[i, j] = k_scale[j] * sum over heads h of weights[i, h] * relu(q[i, h] . k[j]).

Keys stand on the long side of the product and (query, head) pairs on the other, so that the head sum stays inside a
thread's row; k_scale is positive and is applied once, after that sum.
Source: the DSA section of the DeepSeek-V3.2 report; k_scale outside the sum as in DeepGEMM's fp8_mqa_logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor
from mlaprof.kernels.tiles import IndexLogitsTiles, padded_heads

KEY_BLOCKS_PER_PROGRAM = 4  # enough for loads to run ahead of the products, few enough for a short row to fill the GPU


@triton.jit
def head_sums(keys, q, weights, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr, HEADS: tl.constexpr):
    """[BLOCK_N, BLOCK_Q]: sum over heads of weight * relu(key . q), from the BLOCK_Q * HEADS rows of q and weights."""
    dots = tl.maximum(tl.dot(keys, tl.trans(q)), 0.0) * weights[None, :]
    return tl.sum(tl.reshape(dots, [BLOCK_N, BLOCK_Q, HEADS]), 2)


@triton.jit(do_not_specialize=["n"])  # one compiled kernel for every token count
def index_logits_kernel(
    q_ptr,  # [n, num_heads, DIM] e4m3
    k_ptr,  # [m, DIM] e4m3
    k_scale_ptr,  # [m] fp32
    weights_ptr,  # [n, num_heads] fp32
    ks_ptr,  # [n] int32
    ke_ptr,  # [n] int32
    logits_ptr,  # [n, m] fp32
    n,
    m,
    num_heads,
    q_stride_n,
    q_stride_h,
    k_stride,
    weights_stride,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,  # num_heads, padded to a power of two of at least 16
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPAN: tl.constexpr,  # keys a program covers, a multiple of BLOCK_N
):
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    first = tl.program_id(1) * SPAN
    past = tl.minimum(first + SPAN, m)
    keys = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, DIM)
    is_row = rows < n

    ks = tl.load(ks_ptr + rows, mask=is_row, other=m)
    ke = tl.load(ke_ptr + rows, mask=is_row, other=0)
    # Only blocks that some row of this tile can see are computed; the rest are filled.
    lo = tl.minimum(tl.maximum(tl.min(ks, 0), first), past)
    lo = first + (lo - first) // BLOCK_N * BLOCK_N
    hi = tl.maximum(tl.minimum(tl.max(ke, 0), past), lo)
    hi = lo + (hi - lo + BLOCK_N - 1) // BLOCK_N * BLOCK_N

    pairs = tl.arange(0, BLOCK_Q * HEADS)
    pair_row = tl.program_id(0) * BLOCK_Q + pairs // HEADS
    pair_head = pairs % HEADS
    is_pair = (pair_row < n) & (pair_head < num_heads)
    q_rows = q_ptr + pair_row.to(tl.int64) * q_stride_n + pair_head * q_stride_h
    q = tl.load(q_rows[:, None] + dims[None, :], mask=is_pair[:, None], other=0.0)
    weights = tl.load(weights_ptr + pair_row.to(tl.int64) * weights_stride + pair_head, mask=is_pair, other=0.0)

    out_rows = logits_ptr + rows.to(tl.int64)[None, :] * m
    nothing = tl.full([BLOCK_N, BLOCK_Q], float("-inf"), tl.float32)
    for start in range(first, lo, BLOCK_N):
        position = start + keys
        tl.store(out_rows + position[:, None], nothing, mask=is_row[None, :] & (position < past)[:, None])
    for start in range(lo, hi, BLOCK_N):
        position = start + keys
        is_key = position < m
        k_rows = k_ptr + position.to(tl.int64)[:, None] * k_stride
        k = tl.load(k_rows + dims[None, :], mask=is_key[:, None], other=0.0)
        k_scale = tl.load(k_scale_ptr + position, mask=is_key, other=0.0)
        sums = head_sums(k, q, weights, BLOCK_N, BLOCK_Q, HEADS) * k_scale[:, None]
        seen = (position[:, None] >= ks[None, :]) & (position[:, None] < ke[None, :])
        sums = tl.where(seen, sums, float("-inf"))
        tl.store(out_rows + position[:, None], sums, mask=is_row[None, :] & (position < past)[:, None])
    for start in range(hi, past, BLOCK_N):
        position = start + keys
        tl.store(out_rows + position[:, None], nothing, mask=is_row[None, :] & (position < past)[:, None])


def index_logits(
    q: Tensor, k: Tensor, k_scale: Tensor, weights: Tensor, ks: Tensor, ke: Tensor, tiles: IndexLogitsTiles
) -> Tensor:
    """Indexer score of every key for every query [n, m] fp32; -inf outside the query's own keys.

    q        [n, num_heads, 128] e4m3
    k        [m, 128]            e4m3
    k_scale  [m]                 fp32   positive
    weights  [n, num_heads]      fp32   carries q's own scale
    ks, ke   [n]                 int32  a query sees keys ks .. ke-1

    Raises ValueError on a wrong shape, dtype or device.
    """
    n, num_heads = check_tensor("q", q, shape=("n", "H", 128), dtype=torch.float8_e4m3fn)
    (m,) = check_tensor("k", k, shape=("m", 128), dtype=torch.float8_e4m3fn, device=q.device)
    check_tensor("k_scale", k_scale, shape=(m,), dtype=torch.float32, device=q.device)
    check_tensor("weights", weights, shape=(n, num_heads), dtype=torch.float32, device=q.device)
    check_tensor("ks", ks, shape=(n,), dtype=torch.int32, device=q.device)
    check_tensor("ke", ke, shape=(n,), dtype=torch.int32, device=q.device)
    logits = torch.empty(n, m, dtype=torch.float32, device=q.device)
    if n == 0 or m == 0:
        return logits
    span = tiles.block_n * KEY_BLOCKS_PER_PROGRAM
    grid = (triton.cdiv(n, tiles.block_q), triton.cdiv(m, span))
    index_logits_kernel[grid](
        q,
        k,
        k_scale,
        weights,
        ks,
        ke,
        logits,
        n,
        m,
        num_heads,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        weights.stride(0),
        DIM=128,
        HEADS=padded_heads(num_heads),
        BLOCK_Q=tiles.block_q,
        BLOCK_N=tiles.block_n,
        SPAN=span,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return logits
