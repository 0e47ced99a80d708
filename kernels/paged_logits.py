"""Scores of the lightning indexer over the paged cache, for the rows of a decode step.

The positions of all requests, one request after the other, are dealt to the programs in equal contiguous shares: the
lengths are on the device, so every program finds its own share from them, and a wide result costs no idle program.
Keys stand on the long side of the product and heads on the other, so that the head sum stays inside a thread's row;
k_scale is positive and is applied once, after that sum.
Source: the DSA section of the DeepSeek-V3.2 report; k_scale outside the sum as in DeepGEMM's fp8_paged_mqa_logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor
from mlaprof.kernels.device import is_hopper
from mlaprof.kernels.tiles import hopper_paged_index_logits as hopper_tiles
from mlaprof.kernels.tiles import padded_heads
from mlaprof.kernels.tiles import paged_index_logits as portable_tiles
from mlaprof.kernels.tiles.hopper_paged_index_logits import HopperPagedIndexLogitsTiles
from mlaprof.kernels.tiles.limits import NUM_SMS
from mlaprof.kernels.tiles.paged_index_logits import PagedIndexLogitsTiles

TOKENS_PER_BLOCK = 64
LEAST_BATCH = 32  # batches are padded to powers of two from here: one compiled kernel for several


@triton.jit
def blocks_of(kv_len, max_len, BLOCK_N: tl.constexpr):
    """Blocks of BLOCK_N positions that hold the positions of a request below max_len."""
    return (tl.minimum(tl.maximum(kv_len, 0), max_len) + BLOCK_N - 1) // BLOCK_N


@triton.jit
def share_of(kv_lens_ptr, batch, max_len, BATCH: tl.constexpr, BLOCK_N: tl.constexpr):
    """This program's share of all blocks: first request, first block in it, number of blocks."""
    requests = tl.arange(0, BATCH)
    kv_lens = tl.load(kv_lens_ptr + requests, mask=requests < batch, other=0)
    blocks = blocks_of(kv_lens, max_len, BLOCK_N)
    ends = tl.cumsum(blocks, 0)
    total = tl.sum(blocks, 0)
    each = tl.cdiv(total, tl.num_programs(0))
    begin = tl.minimum(tl.program_id(0) * each, total)
    before = ends <= begin
    request = tl.sum(before.to(tl.int32), 0)
    block = begin - tl.max(tl.where(before, ends, 0), 0)
    return request, block, tl.minimum(each, total - begin)


@triton.jit
def scales_at(scales_ptr, block, slot, num_blocks, PAGE: tl.constexpr, DIM: tl.constexpr):
    """The scale of each slot of its block; 0 where there is no such block."""
    rows = scales_ptr + block * (PAGE * (DIM + 4) // 4) + PAGE * DIM // 4
    return tl.load(rows + slot, mask=(block >= 0) & (block < num_blocks), other=0.0)


@triton.jit(do_not_specialize=["batch", "max_len", "max_blocks", "num_blocks", "table_stride"])
def paged_index_logits_kernel(
    q_ptr,  # [batch, NEXT_N, num_heads, DIM] e4m3
    codes_ptr,  # the cache as e4m3
    scales_ptr,  # the cache as fp32
    weights_ptr,  # [batch * NEXT_N, num_heads] fp32
    kv_lens_ptr,  # [batch] int32
    block_table_ptr,  # [batch, max_blocks] int32
    logits_ptr,  # [batch * NEXT_N, max_len] fp32
    batch,
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
    PAGE: tl.constexpr,  # tokens a block of the cache
    NEXT_N: tl.constexpr,
    HEADS: tl.constexpr,  # num_heads, padded to a power of two of at least 16
    BATCH: tl.constexpr,  # batch, padded to a power of two
    BLOCK_N: tl.constexpr,
):
    keys = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, DIM)
    heads = tl.arange(0, HEADS)
    is_head = heads < num_heads

    request, first, left = share_of(kv_lens_ptr, batch, max_len, BATCH, BLOCK_N)
    while left > 0:
        kv_len = tl.load(kv_lens_ptr + request)
        past = tl.minimum(first + left, blocks_of(kv_len, max_len, BLOCK_N))
        left -= past - first
        row = request.to(tl.int64) * NEXT_N
        queries = ()
        weights = ()
        for j in tl.static_range(NEXT_N):
            q_rows = q_ptr + request.to(tl.int64) * q_stride_b + j * q_stride_j + heads * q_stride_h
            head_weights = weights_ptr + (row + j) * weights_stride + heads
            queries += (tl.load(q_rows[:, None] + dims[None, :], mask=is_head[:, None], other=0.0),)  # type: ignore[assignment]
            weights += (tl.load(head_weights, mask=is_head, other=0.0),)  # type: ignore[assignment]
        # Blocks and scales are read one turn ahead: the compiler runs ahead with the codes alone.
        table = block_table_ptr + request.to(tl.int64) * table_stride
        table_len = tl.minimum(blocks_of(kv_len, max_len, PAGE), max_blocks)
        position = first * BLOCK_N + keys
        block = tl.load(table + position // PAGE, mask=position // PAGE < table_len, other=-1).to(tl.int64)
        k_scale = scales_at(scales_ptr, block, position % PAGE, num_blocks, PAGE, DIM)
        for turn in range(first, past):
            position = turn * BLOCK_N + keys
            known = (block >= 0) & (block < num_blocks)
            codes = codes_ptr + (block * (PAGE * (DIM + 4)) + position % PAGE * DIM)[:, None]
            k = tl.load(codes + dims[None, :], mask=known[:, None], other=0.0)
            ahead = position + BLOCK_N
            there = (turn + 1 < past) & (ahead // PAGE < table_len)
            block = tl.load(table + ahead // PAGE, mask=there, other=-1).to(tl.int64)
            next_scale = scales_at(scales_ptr, block, ahead % PAGE, num_blocks, PAGE, DIM)
            for j in tl.static_range(NEXT_N):
                dots = tl.maximum(tl.dot(k, tl.trans(queries[j])), 0.0)
                sums = tl.sum(dots * weights[j][None, :], 1) * k_scale
                sums = tl.where(known, sums, float("-inf"))
                end = tl.minimum(kv_len - (NEXT_N - 1 - j), max_len)
                tl.store(logits_ptr + (row + j) * max_len + position, sums, mask=position < end)
            k_scale = next_scale
        request += 1
        first *= 0


def paged_index_logits(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    kv_lens: Tensor,
    block_table: Tensor,
    max_len: int,
    tiles: PagedIndexLogitsTiles | HopperPagedIndexLogitsTiles | None = None,
) -> Tensor:
    """Indexer score of every cached position [batch * next_n, max_len] fp32.

    q            [batch, next_n, num_heads, 128] e4m3
    cache        [num_blocks, 64 * 132]          uint8  a block is 64 x 128 e4m3 codes, then 64 fp32 scales
    weights      [batch * next_n, num_heads]     fp32
    kv_lens      [batch]                         int32  length with the new tokens; query j ends at kv_len - next_n + j
    block_table  [batch, max_blocks]             int32  entries beyond the length are never followed
    max_len                                      width of the result
    tiles        None: chosen by shape, of the Hopper form on Hopper

    Positions beyond a row's own end are NEVER WRITTEN. Inside it, those whose block is missing from the table or is not
    one of the cache's (negative, num_blocks or more) are -inf.
    Raises ValueError on a wrong shape, dtype or device, and for Hopper tiles with more heads than they take.
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
    fits = hopper_tiles.fits(next_n, num_heads) and cache.data_ptr() % 16 == 0
    if tiles is None:
        tiles = (hopper_tiles if fits and is_hopper(q.device) else portable_tiles).choose(batch, max_len)
    if isinstance(tiles, HopperPagedIndexLogitsTiles):
        if not fits:
            raise ValueError(
                f"tiles: the Hopper form takes {hopper_tiles.MAX_PAIRS} pairs of query and head a request and a cache "
                f"at a 16-byte place, got {next_n} x {num_heads} pairs; use the portable form"
            )
        from mlaprof.kernels.hopper.paged_logits import launch  # Gluon is of no use elsewhere

        launch(
            _grid(batch, max_len, TOKENS_PER_BLOCK, tiles.programs),
            q,
            cache,
            weights,
            kv_lens,
            block_table,
            logits,
            tiles,
        )
        return logits
    grid = _grid(batch, max_len, tiles.block_n, tiles.programs)
    paged_index_logits_kernel[grid](
        q,
        cache.view(torch.float8_e4m3fn),
        cache.view(torch.float32),
        weights,
        kv_lens,
        block_table,
        logits,
        batch,
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
        NEXT_N=next_n,
        HEADS=padded_heads(num_heads),
        BATCH=triton.next_power_of_2(max(batch, LEAST_BATCH)),
        BLOCK_N=tiles.block_n,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return logits


def _grid(batch: int, max_len: int, block_n: int, programs: int) -> tuple[int]:
    """As many programs as fit the GPU at once, but no more than the widest step has blocks."""
    return (min(programs * NUM_SMS, batch * triton.cdiv(max_len, block_n)),)
