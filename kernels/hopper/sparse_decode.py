"""Absorbed attention of few heads over selected cache rows on Hopper: one warp group gathers, one attends.

With 16 heads the layer's decode step is bound by memory, so what counts is how many rows are on their way at any time.
Keys take the long side of both products (64 of them against the heads, then 512 latent values against the heads): no
lane computes for padding, and both products read a block where the copies left it. Rows of a packed cache are decoded
by the group that gathers (packed_rows).
"""

from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from mlaprof.kernels.hopper.packed_rows import decode_rows, packed_views
from mlaprof.kernels.hopper.renamed import copy_async, meet
from mlaprof.kernels.sparse_combine import combine, scratch
from mlaprof.kernels.tiles.hopper_sparse_decode import KEYS as BLOCK
from mlaprof.kernels.tiles.hopper_sparse_decode import LATENT_DIM, HopperSparseDecodeTiles

LOG2_E = 1.4426950408889634
LN_2 = gl.constexpr(0.6931471805599453)
# Of a thread, (all, gathering), by heads of a program: no spills, and what is left lets the joining launch take its
# place early.
REGISTERS = {16: (128, 56), 32: (168, 56), 64: (168, 56)}
PACKED_REGISTERS = {16: (136, 104), 32: (168, 112), 64: (168, 104)}
HALF = gl.constexpr(256)  # the latent part arrives, is used and is given back in two halves
ROPE = gl.constexpr(64)
KEYS = gl.constexpr(BLOCK)  # rows of a block
GATHER_WARPS = gl.constexpr(4)


@gluon.jit
def _copy(smem, rows, there, first: gl.constexpr, width: gl.constexpr, layout: gl.constexpr):
    """Columns first .. first + width - 1 of these rows; zeros where a row is not there, and nothing is read."""
    column = first + gl.arange(0, width, gl.SliceLayout(0, layout))
    mask = there[:, None] & (column >= 0)[None, :]
    copy_async(smem, rows[:, None] + column[None, :], mask=mask)


@gluon.jit
def _bring_queries(q_ptr, first_head, num_heads, q_stride_h, HEADS: gl.constexpr, q_l, q_r, q_p, q_ready):
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [GATHER_WARPS, 1], [1, 0])
    heads = first_head + gl.arange(0, HEADS, gl.SliceLayout(1, layout))
    q_rows = q_ptr + heads * q_stride_h
    _copy(q_l, q_rows, heads < num_heads, 0, HALF, layout)
    _copy(q_r, q_rows, heads < num_heads, HALF, HALF, layout)
    _copy(q_p, q_rows, heads < num_heads, 2 * HALF, ROPE, layout)
    async_copy.mbarrier_arrive(q_ready, increment_count=False)


@gluon.jit
def _gather(
    q_ptr, cache_ptr, indices_ptr, first_head, begin, end, num_heads, num_rows, q_stride_h, cache_stride,
    HEADS: gl.constexpr, q_l, q_r, q_p, k_l, k_r, k_p, q_ready, ready_l, ready_r, free_l, free_r,
):  # fmt: skip
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [GATHER_WARPS, 1], [1, 0])
    slot = gl.arange(0, KEYS, gl.SliceLayout(1, layout))
    index = gl.load(indices_ptr + begin + slot, mask=begin + slot < end, other=-1)
    _bring_queries(q_ptr, first_head, num_heads, q_stride_h, HEADS, q_l, q_r, q_p, q_ready)
    for turn in range(gl.cdiv(end - begin, KEYS)):
        start = begin + turn * KEYS
        at = turn & 1
        lap = (turn >> 1) & 1
        there = (index >= 0) & (index < num_rows)
        rows = cache_ptr + gl.where(there, index, 0).to(gl.int64) * cache_stride
        # Row numbers are read one block ahead of the rows.
        following = start + KEYS + slot
        index = gl.load(indices_ptr + following, mask=following < end, other=-1)
        mbarrier.wait(free_l.index(at), lap ^ 1)
        _copy(k_l.index(at), rows, there, 0, HALF, layout)
        async_copy.mbarrier_arrive(ready_l.index(at), increment_count=False)
        mbarrier.wait(free_r.index(at), lap ^ 1)
        _copy(k_r.index(at), rows, there, HALF, HALF, layout)
        _copy(k_p.index(at), rows, there, 2 * HALF, ROPE, layout)
        async_copy.mbarrier_arrive(ready_r.index(at), increment_count=False)


@gluon.jit
def _decode(
    q_ptr, indices_ptr, first_head, begin, end, num_heads, q_stride_h,
    HEADS: gl.constexpr, q_l, q_r, q_p, q_ready, to_decode,
):  # fmt: skip
    _bring_queries(q_ptr, first_head, num_heads, q_stride_h, HEADS, q_l, q_r, q_p, q_ready)
    decode_rows(to_decode, indices_ptr, begin, end, begin - begin)


@gluon.jit
def _attend(
    indices_ptr, out_ptr, lse_ptr, max_ptr, first_head, begin, end, num_heads, num_rows, scale_log2, out_stride_h,
    HEADS: gl.constexpr, STATS: gl.constexpr, PACKED: gl.constexpr,
    q_l, q_r, q_p, k_l, k_r, k_p, biases, p, q_ready, ready_l, ready_r, free_l, free_r,
):  # fmt: skip
    """Of a packed cache biases say which slots are empty; otherwise this group reads the row numbers itself."""
    # Warp groups share the scores by heads, the mixed values by latent columns.
    groups: gl.constexpr = gl.num_warps() // 4
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, groups], [16, HEADS // groups, 16])
    mixed: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4 * groups, 1], [16, HEADS, 16])
    by_head: gl.constexpr = gl.SliceLayout(0, layout)
    mixed_by_head: gl.constexpr = gl.SliceLayout(0, mixed)
    slot = gl.arange(0, KEYS, gl.SliceLayout(1, layout))
    if not PACKED:
        index = gl.load(indices_ptr + begin + slot, mask=begin + slot < end, other=-1)
    peak = gl.full([HEADS], float("-inf"), gl.float32, by_head)
    totals = gl.zeros([KEYS, HEADS], gl.float32, layout)  # of each key's place, summed over places at the end
    left = gl.zeros([HALF, HEADS], gl.float32, mixed)
    right = gl.zeros([HALF, HEADS], gl.float32, mixed)
    mbarrier.wait(q_ready, 0)

    for turn in range(gl.cdiv(end - begin, KEYS)):
        start = begin + turn * KEYS
        at = turn & 1
        lap = (turn >> 1) & 1
        if not PACKED:
            bias = gl.where((index >= 0) & (index < num_rows), 0.0, float("-inf"))
            following = start + KEYS + slot
            index = gl.load(indices_ptr + following, mask=following < end, other=-1)
        scores = gl.zeros([KEYS, HEADS], gl.float32, layout)
        mbarrier.wait(ready_l.index(at), lap)
        fence_async_shared()
        scores = warpgroup_mma(k_l.index(at), q_l.permute((1, 0)), scores, use_acc=False, is_async=True)
        mbarrier.wait(ready_r.index(at), lap)
        fence_async_shared()
        scores = warpgroup_mma(k_r.index(at), q_r.permute((1, 0)), scores, is_async=True)
        scores = warpgroup_mma(k_p.index(at), q_p.permute((1, 0)), scores, is_async=True)
        scores = warpgroup_mma_wait(0, deps=(scores,))
        if PACKED:
            bias = biases.index(at).load(gl.SliceLayout(1, layout))
        scores = scores * scale_log2 + bias[:, None]

        new_peak = gl.maximum(peak, gl.max(scores, 0))
        # While every slot so far is empty the peak is -inf, and -inf - -inf is NaN.
        pivot = gl.where(new_peak == float("-inf"), 0.0, new_peak)
        shrink = gl.exp2(peak - pivot)
        weights = gl.exp2(scores - pivot[None, :])
        p.store(weights.to(gl.bfloat16))
        fence_async_shared()
        meet()
        shrink_mixed = gl.convert_layout(shrink, mixed_by_head)[None, :]
        left = left * shrink_mixed
        right = right * shrink_mixed
        left = warpgroup_mma(k_l.index(at).permute((1, 0)), p, left, is_async=True)
        right = warpgroup_mma(k_r.index(at).permute((1, 0)), p, right, is_async=True)
        totals = totals * shrink[None, :] + weights
        peak = new_peak
        left, right = warpgroup_mma_wait(1, deps=(left, right))
        meet()
        mbarrier.arrive(free_l.index(at), count=1)
        left, right = warpgroup_mma_wait(0, deps=(left, right))
        meet()
        mbarrier.arrive(free_r.index(at), count=1)

    total = gl.sum(totals, 0)
    inverse = gl.where(total == 0, 0.0, 1.0 / total)
    heads = first_head + gl.arange(0, HEADS, by_head)
    is_head = heads < num_heads
    if STATS >= 1:
        gl.store(lse_ptr + heads, (peak + gl.log2(total)) * LN_2, mask=is_head)
    if STATS >= 2:
        gl.store(max_ptr + heads, peak * LN_2, mask=is_head)
    heads = first_head + gl.arange(0, HEADS, mixed_by_head)
    column = gl.arange(0, HALF, gl.SliceLayout(1, mixed))
    places = out_ptr + (heads * out_stride_h)[None, :] + column[:, None]
    mask = (column >= 0)[:, None] & (heads < num_heads)[None, :]
    inverse = gl.convert_layout(inverse, mixed_by_head)[None, :]
    gl.store(places, (left * inverse).to(out_ptr.dtype.element_ty), mask=mask)
    gl.store(places + HALF, (right * inverse).to(out_ptr.dtype.element_ty), mask=mask)


@gluon.jit(do_not_specialize=["blocks_per_split", "num_splits", "num_head_blocks"])
def sparse_decode_kernel(
    q_ptr,  # [num_tokens, num_heads, 576] bf16
    cache_ptr,  # [num_rows, 576] bf16, or with PACKED [num_rows, 656] uint8
    indices_ptr,  # [num_tokens, topk] int32
    out_ptr,  # [num_tokens, num_heads, 512] bf16, or [num_tokens, num_splits, num_heads, 512] fp32
    lse_ptr,  # [num_tokens, num_splits, num_heads] fp32
    max_ptr,  # like lse_ptr
    scale_log2,  # softmax scale * log2(e)
    num_heads,
    num_rows,
    topk,
    num_splits,
    num_head_blocks,
    blocks_per_split,
    q_stride_t,
    q_stride_h,
    cache_stride,
    indices_stride,
    out_stride_t,
    out_stride_s,
    out_stride_h,
    HEADS: gl.constexpr,
    STATS: gl.constexpr,  # 0: none are written, 1: lse, 2: both
    PACKED: gl.constexpr,
    GATHER_REGISTERS: gl.constexpr,
):
    # The launch that joins the splits may take its place early: it waits there for this one to end.
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; mov.u32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    gate: gl.constexpr = mbarrier.MBarrierLayout()
    q_l = gl.allocate_shared_memory(gl.bfloat16, [HEADS, HALF], swizzled)
    q_r = gl.allocate_shared_memory(gl.bfloat16, [HEADS, HALF], swizzled)
    q_p = gl.allocate_shared_memory(gl.bfloat16, [HEADS, ROPE], swizzled)
    k_l = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, HALF], swizzled)
    k_r = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, HALF], swizzled)
    k_p = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, ROPE], swizzled)
    p = gl.allocate_shared_memory(gl.bfloat16, [KEYS, HEADS], gl.NVMMASharedLayout(2 * HEADS, 16))
    q_ready = gl.allocate_shared_memory(gl.int64, [1], gate)
    ready_l = gl.allocate_shared_memory(gl.int64, [2, 1], gate)
    ready_r = gl.allocate_shared_memory(gl.int64, [2, 1], gate)
    free_l = gl.allocate_shared_memory(gl.int64, [2, 1], gate)
    free_r = gl.allocate_shared_memory(gl.int64, [2, 1], gate)
    # Every thread that gathers arrives once its copies have landed; of those that decode one does, for all.
    arrivals: gl.constexpr = 1 if PACKED else 32 * GATHER_WARPS
    mbarrier.init(q_ready, count=32 * GATHER_WARPS)
    for i in gl.static_range(2):
        mbarrier.init(ready_l.index(i), count=arrivals)
        mbarrier.init(free_l.index(i), count=1)
        mbarrier.init(ready_r.index(i), count=arrivals)
        mbarrier.init(free_r.index(i), count=1)
    meet()

    # Programs that read the same rows are neighbours, so that all but the first find them in L2.
    first_head = gl.program_id(0) % num_head_blocks * HEADS
    part = (gl.program_id(0) // num_head_blocks).to(gl.int64)
    token = part // num_splits
    split = (part % num_splits).to(gl.int32)
    begin = split * (blocks_per_split * KEYS)
    end = gl.minimum(begin + blocks_per_split * KEYS, topk)
    indices = indices_ptr + token * indices_stride
    out = out_ptr + token * out_stride_t + split * out_stride_s
    lse = lse_ptr + part * num_heads
    largest = max_ptr + part * num_heads
    q = q_ptr + token * q_stride_t
    if PACKED:
        line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
        biases = gl.allocate_shared_memory(gl.float32, [2, KEYS], line)
        scales = gl.allocate_shared_memory(gl.float32, [4, KEYS], line)
        to_decode = (
            cache_ptr, num_rows, cache_stride, packed_views(k_l), packed_views(k_r), k_p, scales, biases,
            ready_l, ready_r, free_l, free_r,
        )  # fmt: skip
        gl.warp_specialize(
            [
                (
                    _attend,
                    (indices, out, lse, largest, first_head, begin, end, num_heads, num_rows, scale_log2, out_stride_h,
                     HEADS, STATS, PACKED, q_l, q_r, q_p, k_l, k_r, k_p, biases, p, q_ready,
                     ready_l, ready_r, free_l, free_r),
                ),
                (
                    _decode,
                    (q, indices, first_head, begin, end, num_heads, q_stride_h,
                     HEADS, q_l, q_r, q_p, q_ready, to_decode),
                ),
            ],
            [GATHER_WARPS],
            [GATHER_REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (
                    _attend,
                    (indices, out, lse, largest, first_head, begin, end, num_heads, num_rows, scale_log2, out_stride_h,
                     HEADS, STATS, PACKED, q_l, q_r, q_p, k_l, k_r, k_p, p, p, q_ready,
                     ready_l, ready_r, free_l, free_r),
                ),
                (
                    _gather,
                    (q, cache_ptr, indices, first_head, begin, end, num_heads, num_rows, q_stride_h, cache_stride,
                     HEADS, q_l, q_r, q_p, k_l, k_r, k_p, q_ready, ready_l, ready_r, free_l, free_r),
                ),
            ],
            [GATHER_WARPS],
            [GATHER_REGISTERS],
        )  # fmt: skip


def launch(
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    scale: float,
    tiles: HopperSparseDecodeTiles,
    *,
    out: Tensor,
    lse: Tensor | None,
    max_logits: Tensor | None,
) -> None:
    """sparse_attn of checked operands: 512 and 64 dimensions, one token and one head at least.

    The rows of q and of a bf16 cache start at multiples of 16 elements, those of a packed one at multiples of 16 bytes.
    """
    num_tokens, num_heads, _ = q.shape
    topk = indices.shape[1]
    num_blocks = triton.cdiv(topk, BLOCK)
    blocks_per_split = max(1, triton.cdiv(num_blocks, tiles.num_splits))
    num_splits = max(1, triton.cdiv(num_blocks, blocks_per_split))
    stats = 2 if max_logits is not None else int(lse is not None or num_splits > 1)
    if num_splits == 1:
        if stats == 2 and lse is None:
            lse = torch.empty((num_tokens, num_heads), dtype=torch.float32, device=q.device)
        places: tuple[Any, ...] = (out, lse, max_logits)
        strides: tuple[int, ...] = (out.stride(0), 0, out.stride(1))
    else:
        places = scratch(q, num_splits, LATENT_DIM, with_max=max_logits is not None)
        strides = places[0].stride()[:3]
    num_head_blocks = triton.cdiv(num_heads, tiles.block_h)
    packed = cache.dtype == torch.uint8
    registers, gather_registers = (PACKED_REGISTERS if packed else REGISTERS)[tiles.block_h]
    sparse_decode_kernel[(num_tokens * num_splits * num_head_blocks,)](
        q,
        cache,
        indices,
        *(out if place is None else place for place in places),  # out stands in for what is not written
        scale * LOG2_E,
        num_heads,
        cache.shape[0],
        topk,
        num_splits,
        num_head_blocks,
        blocks_per_split,
        q.stride(0),
        q.stride(1),
        cache.stride(0),
        indices.stride(0),
        *strides,
        HEADS=tiles.block_h,
        STATS=stats,
        PACKED=packed,
        GATHER_REGISTERS=gather_registers,
        num_warps=tiles.num_warps,
        maxnreg=registers,
    )
    if num_splits > 1:
        combine(*places, out=out, lse=lse, max_logits=max_logits, overlap=True)
