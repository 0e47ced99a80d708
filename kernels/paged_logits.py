"""Scores of the lightning indexer over the paged cache, for the rows of a decode step.

Keys stand on the long side of the product and (query, head) pairs on the other, so that the head sum stays inside a
thread's row; k_scale is positive and is applied once, after that sum.
Source: the DSA section of the DeepSeek-V3.2 report; k_scale outside the sum as in DeepGEMM's fp8_paged_mqa_logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor
from mlaprof.kernels.tiles import PagedIndexLogitsTiles, padded_heads

TOKENS_PER_BLOCK = 64
KEY_BLOCKS_PER_PROGRAM = 4  # enough for loads to run ahead of the products, few enough for a short row to fill the GPU


@triton.jit
def head_sums(keys, q, weights, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr, HEADS: tl.constexpr):
    """[BLOCK_N, BLOCK_Q]: sum over heads of weight * relu(key . q), from the BLOCK_Q * HEADS rows of q and weights."""
    dots = tl.maximum(tl.dot(keys, tl.trans(q)), 0.0) * weights[None, :]
    return tl.sum(tl.reshape(dots, [BLOCK_N, BLOCK_Q, HEADS]), 2)


@triton.jit
def paged_index_logits_kernel(
    q_ptr,  # [batch, next_n, num_heads, DIM] e4m3
    codes_ptr,  # the cache as e4m3
    scales_ptr,  # the cache as fp32
    weights_ptr,  # [batch * next_n, num_heads] fp32
    kv_lens_ptr,  # [batch] int32
    block_table_ptr,  # [batch, max_blocks] int32
    logits_ptr,  # [batch * next_n, max_len] fp32
    next_n,
    num_heads,
    max_len,
    max_blocks,
    num_blocks,
    q_stride_b,
    q_stride_j,
    q_stride_h,
    weights_stride,
    table_stride,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,  # tokens a block
    HEADS: tl.constexpr,  # num_heads, padded to a power of two of at least 16
    NEXT_N: tl.constexpr,  # next_n, padded to a power of two
    BLOCK_N: tl.constexpr,
    SPAN: tl.constexpr,  # positions a program covers, a multiple of BLOCK_N
):
    request = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * SPAN
    past = tl.minimum(first + SPAN, max_len)
    keys = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, DIM)
    js = tl.arange(0, NEXT_N)
    is_row = js < next_n

    kv_len = tl.load(kv_lens_ptr + request)
    end = tl.minimum(kv_len, max_blocks * PAGE)
    hi = tl.maximum(tl.minimum(end, past), first)
    hi = first + (hi - first + BLOCK_N - 1) // BLOCK_N * BLOCK_N

    pairs = tl.arange(0, NEXT_N * HEADS)
    pair_j = pairs // HEADS
    pair_head = pairs % HEADS
    is_pair = (pair_j < next_n) & (pair_head < num_heads)
    q_rows = q_ptr + request * q_stride_b + pair_j * q_stride_j + pair_head * q_stride_h
    q = tl.load(q_rows[:, None] + dims[None, :], mask=is_pair[:, None], other=0.0)
    weights_rows = weights_ptr + (request * next_n + pair_j) * weights_stride
    weights = tl.load(weights_rows + pair_head, mask=is_pair, other=0.0)

    out_rows = logits_ptr + (request * next_n + js)[None, :] * max_len
    nothing = tl.full([BLOCK_N, NEXT_N], float("-inf"), tl.float32)
    # Block numbers are read one turn ahead: a gather that waits for them inside one turn would cost pipeline stages.
    table = block_table_ptr + request * table_stride
    position = first + keys
    block = tl.load(table + position // PAGE, mask=position < end, other=-1).to(tl.int64)
    for start in range(first, hi, BLOCK_N):
        position = start + keys
        known = (block >= 0) & (block < num_blocks)
        slot = position % PAGE
        codes = codes_ptr + (block * (PAGE * (DIM + 4)) + slot * DIM)[:, None]
        scales = scales_ptr + block * (PAGE * (DIM + 4) // 4) + PAGE * DIM // 4 + slot
        k = tl.load(codes + dims[None, :], mask=known[:, None], other=0.0)
        k_scale = tl.load(scales, mask=known, other=0.0)
        ahead = position + BLOCK_N
        block = tl.load(table + ahead // PAGE, mask=ahead < end, other=-1).to(tl.int64)
        sums = head_sums(k, q, weights, BLOCK_N, NEXT_N, HEADS) * k_scale[:, None]
        seen = known[:, None] & (position[:, None] <= (kv_len - next_n + js)[None, :])
        sums = tl.where(seen, sums, float("-inf"))
        tl.store(out_rows + position[:, None], sums, mask=is_row[None, :] & (position < past)[:, None])
    for start in range(hi, past, BLOCK_N):
        position = start + keys
        tl.store(out_rows + position[:, None], nothing, mask=is_row[None, :] & (position < past)[:, None])


def paged_index_logits(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    kv_lens: Tensor,
    block_table: Tensor,
    max_len: int,
    tiles: PagedIndexLogitsTiles,
) -> Tensor:
    """Indexer score of every cached position [batch * next_n, max_len] fp32; -inf beyond a row's own position.

    q            [batch, next_n, num_heads, 128] e4m3
    cache        [num_blocks, 64 * 132]          uint8  a block is 64 x 128 e4m3 codes, then 64 fp32 scales
    weights      [batch * next_n, num_heads]     fp32
    kv_lens      [batch]                         int32  length with the new tokens; query j ends at kv_len - next_n + j
    block_table  [batch, max_blocks]             int32  entries beyond the length are never followed
    max_len                                      width of the result; the whole width is written

    Raises ValueError on a wrong shape, dtype or device.
    """
    batch, next_n, num_heads = check_tensor("q", q, shape=("B", "next_n", "H", 128), dtype=torch.float8_e4m3fn)
    (num_blocks,) = check_tensor(
        "cache", cache, shape=("num_blocks", 64 * 132), dtype=torch.uint8, device=q.device, contiguous="all"
    )
    check_tensor("weights", weights, shape=(batch * next_n, num_heads), dtype=torch.float32, device=q.device)
    check_tensor("kv_lens", kv_lens, shape=(batch,), dtype=torch.int32, device=q.device)
    (max_blocks,) = check_tensor(
        "block_table", block_table, shape=(batch, "max_blocks"), dtype=torch.int32, device=q.device
    )
    logits = torch.empty(batch * next_n, max_len, dtype=torch.float32, device=q.device)
    if logits.numel() == 0:
        return logits
    span = tiles.block_n * KEY_BLOCKS_PER_PROGRAM
    grid = (batch, triton.cdiv(max_len, span))
    paged_index_logits_kernel[grid](
        q,
        cache.view(torch.float8_e4m3fn),
        cache.view(torch.float32),
        weights,
        kv_lens,
        block_table,
        logits,
        next_n,
        num_heads,
        max_len,
        max_blocks,
        num_blocks,
        q.stride(0),
        q.stride(1),
        q.stride(2),
        weights.stride(0),
        block_table.stride(0),
        DIM=128,
        PAGE=TOKENS_PER_BLOCK,
        HEADS=padded_heads(num_heads),
        NEXT_N=triton.next_power_of_2(next_n),
        BLOCK_N=tiles.block_n,
        SPAN=span,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return logits
