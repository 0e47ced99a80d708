"""Indexer scores over the paged cache on Hopper: warp-group products on pages that arrive by asynchronous copies.

The pages of all requests, one request after the other, are dealt to the programs in equal contiguous shares. What lies
where follows from kv_lens alone, so every program finds its own share and none waits for another. Copies run
STAGES - 1 pages ahead of the products.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from mlaprof.kernels.hopper.renamed import copy_async
from mlaprof.kernels.tiles.hopper_paged_index_logits import HopperPagedIndexLogitsTiles
from mlaprof.kernels.tiles.limits import padded_heads

DIM = gl.constexpr(128)
PAGE = gl.constexpr(64)  # tokens a block of the cache
PAGE_BYTES = gl.constexpr(64 * 132)


@gluon.jit
def add(a, b):
    return a + b


@gluon.jit
def pages_of(kv_len, max_len):
    """Pages that hold the positions of a request below max_len."""
    return (gl.minimum(gl.maximum(kv_len, 0), max_len) + PAGE - 1) // PAGE


@gluon.jit
def share_of(kv_lens_ptr, batch, max_len, BATCH: gl.constexpr):
    """This program's share of all pages: first request, first page in it, number of pages."""
    # Every warp holds all requests, so that no sum leaves a warp.
    layout: gl.constexpr = gl.BlockedLayout([BATCH // 32], [32], [gl.num_warps()], [0])
    requests = gl.arange(0, BATCH, layout)
    pages = pages_of(gl.load(kv_lens_ptr + requests, mask=requests < batch, other=0), max_len)
    ends = gl.associative_scan(pages, 0, add)
    total = gl.sum(pages, 0)
    each = gl.cdiv(total, gl.num_programs(0))
    begin = gl.minimum(gl.program_id(0) * each, total)
    before = ends <= begin
    request = gl.sum(before.to(gl.int32), 0)
    page = begin - gl.max(gl.where(before, ends, 0), 0)
    return request, page, gl.minimum(each, total - begin)


@gluon.jit
def block_of(table, page, past, max_blocks, num_blocks):
    """The block of a page, -1 where there is none to read."""
    # The table is read wherever it is wide enough, so that this load need not wait for the length.
    block = gl.load(table + page, mask=page < max_blocks, other=-1)
    return gl.where((page < past) & (block >= 0) & (block < num_blocks), block, -1)


@gluon.jit
def fetch(codes_ptr, scales_ptr, block, keys, scales):
    """Start copying a block's codes and scales to shared memory; zeros where there is no block."""
    warps: gl.constexpr = gl.num_warps()
    tile: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [warps, 1], [1, 0])
    line: gl.constexpr = gl.BlockedLayout([4], [32], [warps], [0])
    start = gl.maximum(block, 0).to(gl.int64) * PAGE_BYTES
    token = gl.arange(0, PAGE, gl.SliceLayout(1, tile))
    dim = gl.arange(0, DIM, gl.SliceLayout(0, tile))
    codes = codes_ptr + start + (token[:, None] * DIM + dim[None, :])
    copy_async(keys, codes, mask=gl.full([PAGE, DIM], True, gl.int1, tile) & (block >= 0))
    tail = scales_ptr + (start + PAGE * DIM) // 4 + gl.arange(0, PAGE, line)
    copy_async(scales, tail, mask=gl.full([PAGE], True, gl.int1, line) & (block >= 0))
    async_copy.commit_group()


@gluon.jit(do_not_specialize=["batch", "max_len", "max_blocks", "num_blocks", "table_stride"])
def paged_index_logits_hopper_kernel(
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
    NEXT_N: gl.constexpr,
    HEADS: gl.constexpr,  # num_heads, padded to a power of two of at least 16
    BATCH: gl.constexpr,  # 1 for one request, else batch padded to a power of two of at least 32
    STAGES: gl.constexpr,
):
    warps: gl.constexpr = gl.num_warps()
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, HEADS, 32])
    tile: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [warps, 1], [1, 0])
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 8, 2)
    queries = gl.allocate_shared_memory(gl.float8e4nv, [NEXT_N, HEADS, DIM], swizzled)
    keys = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, PAGE, DIM], swizzled)
    scales = gl.allocate_shared_memory(gl.float32, [STAGES, PAGE], gl.SwizzledSharedLayout(1, 1, 1, [0]))

    token = gl.arange(0, PAGE, gl.SliceLayout(1, mma))
    head = gl.arange(0, HEADS, gl.SliceLayout(0, mma))
    q_head = gl.arange(0, HEADS, gl.SliceLayout(1, tile))
    q_dim = gl.arange(0, DIM, gl.SliceLayout(0, tile))
    is_q = (q_head < num_heads)[:, None] & (q_dim < DIM)[None, :]
    nothing = gl.zeros([PAGE, HEADS], gl.float32, mma)

    if BATCH == 1:
        # Pages are dealt like cards: which one comes first does not depend on the length, which is still on its way.
        request = gl.to_tensor(0)
        first = gl.program_id(0)
        stride = gl.num_programs(0)
        left = 1
    else:
        request, first, left = share_of(kv_lens_ptr, batch, max_len, BATCH)
        stride = 1
    while left > 0:
        table = block_table_ptr + request.to(gl.int64) * table_stride
        kv_len = gl.load(kv_lens_ptr + request)
        past = pages_of(kv_len, max_len)
        if BATCH == 1:
            left = 0
        else:
            past = gl.minimum(past, first + left)
            left -= past - first
        row = request.to(gl.int64) * NEXT_N
        weights = ()
        q_tiles = ()
        for j in gl.static_range(NEXT_N):
            heads = weights_ptr + (row + j) * weights_stride + head
            weights += (gl.load(heads, mask=head < num_heads, other=0.0),)  # type: ignore[assignment]
            q_rows = q_ptr + request.to(gl.int64) * q_stride_b + j * q_stride_j + q_head * q_stride_h
            q_tiles += (gl.load(q_rows[:, None] + q_dim[None, :], mask=is_q, other=0.0),)  # type: ignore[assignment]
        # All blocks of the first stages are looked up before any is used: one wait instead of one a stage.
        blocks = ()
        for stage in gl.static_range(STAGES):
            blocks += (block_of(table, first + stage * stride, past, max_blocks, num_blocks),)  # type: ignore[assignment]
        for stage in gl.static_range(STAGES - 1):
            fetch(codes_ptr, scales_ptr, blocks[stage], keys.index(stage), scales.index(stage))
        for j in gl.static_range(NEXT_N):
            queries.index(j).store(q_tiles[j])

        stage = 0
        ahead = first + (STAGES - 1) * stride
        block_ahead = blocks[STAGES - 1]  # type: ignore[var-annotated]
        for page in range(first, past, stride):
            async_copy.wait_group(STAGES - 2)
            fence_async_shared()
            q_t = queries.index(0).permute([1, 0])
            dots = warpgroup_mma(keys.index(stage), q_t, nothing, use_acc=False, is_async=True)
            k_scale = scales.index(stage).load(gl.SliceLayout(1, mma))
            # The stage that the previous turn read is free: all warps have passed this turn's barrier.
            free = gl.where(stage == 0, STAGES - 1, stage - 1)
            fetch(codes_ptr, scales_ptr, block_ahead, keys.index(free), scales.index(free))
            ahead += stride
            block_ahead = block_of(table, ahead, past, max_blocks, num_blocks)
            block = block_of(table, page, past, max_blocks, num_blocks)
            position = page * PAGE + token
            for j in gl.static_range(NEXT_N):
                dots = warpgroup_mma_wait(0, [dots])
                sums = gl.sum(gl.maximum(dots, 0.0) * weights[j][None, :], 1) * k_scale
                if j + 1 < NEXT_N:
                    q_t = queries.index(j + 1).permute([1, 0])
                    dots = warpgroup_mma(keys.index(stage), q_t, nothing, use_acc=False, is_async=True)
                sums = gl.where(block >= 0, sums, float("-inf"))
                end = gl.minimum(kv_len - (NEXT_N - 1 - j), max_len)
                gl.store(logits_ptr + (row + j) * max_len + position, sums, mask=position < end)
            stage = gl.where(stage == STAGES - 1, 0, stage + 1)
        async_copy.wait_group(0)
        request += 1
        first = first * 0


def launch(
    grid: tuple[int],
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    kv_lens: Tensor,
    block_table: Tensor,
    logits: Tensor,
    tiles: HopperPagedIndexLogitsTiles,
) -> None:
    """Score into logits [batch * next_n, max_len]; operands as paged_logits.paged_index_logits has checked them."""
    batch, next_n, num_heads, _ = q.shape
    paged_index_logits_hopper_kernel[grid](
        q,
        cache.view(torch.float8_e4m3fn),
        cache.view(torch.float32),
        weights,
        kv_lens,
        block_table,
        logits,
        batch,
        num_heads,
        logits.shape[1],
        block_table.shape[1],
        cache.shape[0],
        q.stride(0),
        q.stride(1),
        q.stride(2),
        weights.stride(0),
        block_table.stride(0),
        NEXT_N=next_n,
        HEADS=padded_heads(num_heads),
        BATCH=1 if batch == 1 else triton.next_power_of_2(max(batch, 32)),
        STAGES=tiles.num_stages,
        num_warps=tiles.num_warps,
    )
