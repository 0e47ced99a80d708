"""Absorbed attention over selected cache rows on Hopper, for many tokens: warp groups with a role each.

Source: FlashMLA's sparse prefill for the shape of a tile (64 heads of a token, two blocks of 64 rows in flight, rows
by 16-byte asynchronous copies); the division of roles is our own (sparse_roles). The online softmax is
FlashAttention's, in base 2, with a reference that follows the maximum only when it must, as FlashAttention 4's.
Where tokens are few, a token's rows are shared out in lists, and a second launch joins their results.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from mlaprof.kernels.hopper.packed_rows import packed_views
from mlaprof.kernels.hopper.renamed import meet
from mlaprof.kernels.hopper.sparse_roles import HALF, HEADS, KEYS, ROPE, accumulate, decode, gather, score
from mlaprof.kernels.sparse_combine import combine, scratch
from mlaprof.kernels.tiles.hopper_sparse_attn import BLOCK_H, KV_LORA_RANK, HopperSparseAttnTiles

LOG2_E = 1.4426950408889634
# Of a thread. The pair that accumulates gets what these leave of 480, of 512 without the second group that scores, and
# needs 160.
SCORE_REGISTERS = gl.constexpr(64)
GATHER_REGISTERS = gl.constexpr(32)
DECODE_REGISTERS = gl.constexpr(104)


@gluon.jit(do_not_specialize=["num_tiles", "num_groups", "num_rows"])
def sparse_attn_hopper_kernel(
    q_ptr,  # [num_tokens, num_heads, 576] bf16
    cache_ptr,  # [num_rows, 576] bf16, or with PACKED [num_rows, 656] uint8
    indices_ptr,  # [num_tokens, LISTS * list_rows] int32
    out_ptr,  # [num_tokens, num_heads, 512] bf16, or [num_tokens * LISTS, num_heads, 512] fp32
    lse_ptr,  # [num_tokens * LISTS, num_heads] fp32, only with STATS
    max_ptr,  # like lse_ptr
    scale_log2,  # softmax scale * log2(e)
    num_tiles,  # num_tokens * LISTS * num_groups
    num_groups,  # of 64 heads
    num_heads,
    num_rows,
    list_rows,
    q_stride_t,
    q_stride_h,
    cache_stride,
    indices_stride,
    out_stride_t,
    out_stride_h,
    LISTS: gl.constexpr,
    STATS: gl.constexpr,  # 0: none are written, 1: lse, 2: both
    PACKED: gl.constexpr,
):
    tile: gl.constexpr = gl.NVMMASharedLayout(128, 16)
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    gate: gl.constexpr = mbarrier.MBarrierLayout()
    q_l = gl.allocate_shared_memory(gl.bfloat16, [1, HEADS, HALF], tile)
    q_r = gl.allocate_shared_memory(gl.bfloat16, [1, HEADS, HALF], tile)
    q_p = gl.allocate_shared_memory(gl.bfloat16, [1, HEADS, ROPE], tile)
    k_l = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, HALF], tile)
    k_r = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, HALF], tile)
    k_p = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, ROPE], tile)
    pivots = gl.allocate_shared_memory(gl.float32, [2, HEADS], line)
    shrinks = gl.allocate_shared_memory(gl.float32, [2, HEADS], line)
    totals = gl.allocate_shared_memory(gl.float32, [2, HEADS], line)
    last_pivots = gl.allocate_shared_memory(gl.float32, [2, HEADS], line)
    peaks = gl.allocate_shared_memory(gl.float32, [2, HEADS], line)
    q_ready = gl.allocate_shared_memory(gl.int64, [1], gate)
    q_free = gl.allocate_shared_memory(gl.int64, [1], gate)
    l_ready = gl.allocate_shared_memory(gl.int64, [2, 1], gate)
    r_ready = gl.allocate_shared_memory(gl.int64, [2, 1], gate)
    l_free = gl.allocate_shared_memory(gl.int64, [2, 1], gate)
    r_free = gl.allocate_shared_memory(gl.int64, [2, 1], gate)
    shrink_ready = gl.allocate_shared_memory(gl.int64, [2, 1], gate)
    p_ready = gl.allocate_shared_memory(gl.int64, [2, 1], gate)
    total_ready = gl.allocate_shared_memory(gl.int64, [1], gate)
    total_free = gl.allocate_shared_memory(gl.int64, [1], gate)
    # Every gathering thread arrives once its copies have landed; of the other roles one thread does, and of the
    # scoring groups one each.
    scorers: gl.constexpr = 1 if PACKED else 2
    arrivals: gl.constexpr = 1 if PACKED else 128
    mbarrier.init(q_ready, count=128)
    mbarrier.init(q_free, count=scorers)
    mbarrier.init(total_ready, count=scorers)
    mbarrier.init(total_free, count=1)
    for slot in gl.static_range(2):
        mbarrier.init(l_ready.index(slot), count=arrivals)
        mbarrier.init(r_ready.index(slot), count=arrivals)
        mbarrier.init(l_free.index(slot), count=1)
        mbarrier.init(r_free.index(slot), count=1)
        mbarrier.init(shrink_ready.index(slot), count=1)
        mbarrier.init(p_ready.index(slot), count=1)
    meet()
    to_accumulate = (
        out_ptr, lse_ptr, max_ptr, num_tiles, num_groups, num_heads, list_rows, out_stride_t, out_stride_h,
        k_l, k_r, k_p, shrinks, totals, last_pivots, peaks,
        l_free, r_free, shrink_ready, p_ready, total_ready, total_free,
    )  # fmt: skip
    if PACKED:
        biases = gl.allocate_shared_memory(gl.float32, [2, KEYS], line)
        scales = gl.allocate_shared_memory(gl.float32, [4, KEYS], line)
    else:
        biases = pivots  # stands in for what is not read
    to_score = (
        indices_ptr, num_tiles, num_groups, num_rows, list_rows, indices_stride, scale_log2,
        q_l, q_r, q_p, k_l, k_r, k_p, biases, pivots, shrinks, totals, last_pivots, peaks,
        q_ready, q_free, l_ready, r_ready, shrink_ready, p_ready, total_ready, total_free,
    )  # fmt: skip
    if PACKED:
        to_bring = (
            q_ptr, indices_ptr, num_tiles, num_groups, num_heads, list_rows, q_stride_t, q_stride_h, indices_stride,
            q_l, q_r, q_p, q_ready, q_free,
        )  # fmt: skip
        to_decode = (
            cache_ptr, num_rows, cache_stride, packed_views(k_l), packed_views(k_r), k_p, scales, biases,
            l_ready, r_ready, l_free, r_free,
        )  # fmt: skip
        gl.warp_specialize(
            [
                (accumulate, (to_accumulate, STATS, PACKED)),
                (score, (to_score, gl.constexpr(0), LISTS, STATS, PACKED)),
                (decode, (to_bring, to_decode, LISTS)),
            ],
            [4, 4],
            [SCORE_REGISTERS, DECODE_REGISTERS],
        )
    else:
        to_gather = (
            q_ptr, cache_ptr, indices_ptr, num_tiles, num_groups, num_heads, num_rows, list_rows,
            q_stride_t, q_stride_h, cache_stride, indices_stride,
            q_l, q_r, q_p, k_l, k_r, k_p, q_ready, q_free, l_ready, r_ready, l_free, r_free,
        )  # fmt: skip
        gl.warp_specialize(
            [
                (accumulate, (to_accumulate, STATS, PACKED)),
                (score, (to_score, gl.constexpr(0), LISTS, STATS, PACKED)),
                (score, (to_score, gl.constexpr(1), LISTS, STATS, PACKED)),
                (gather, (to_gather, LISTS)),
            ],
            [4, 4, 4],
            [SCORE_REGISTERS, SCORE_REGISTERS, GATHER_REGISTERS],
        )


def launch(
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    scale: float,
    tiles: HopperSparseAttnTiles,
    *,
    out: Tensor,
    lse: Tensor | None,
    max_logits: Tensor | None,
) -> None:
    """sparse_attn of checked operands: 512 and 64 dimensions, one token and one head at least.

    The rows of q and of a bf16 cache start at multiples of 16 elements, those of a packed one at multiples of 16 bytes.
    Raises ValueError where the lists of tiles do not share the selected rows evenly.
    """
    num_tokens, num_heads, _ = q.shape
    topk = indices.shape[1]
    if topk % tiles.lists:
        raise ValueError(f"lists: {tiles.lists} do not share {topk} rows evenly; use a divisor")
    shared = scratch(q, tiles.lists, KV_LORA_RANK, with_max=max_logits is not None) if tiles.lists > 1 else None
    to, to_lse, to_max = shared or (out, lse, max_logits)
    if to_lse is None and to_max is not None:
        to_lse = torch.empty_like(to_max)
    stats = 2 if to_max is not None else int(to_lse is not None)
    strides = (out.stride(0), out.stride(1)) if shared is None else (num_heads * KV_LORA_RANK, KV_LORA_RANK)
    num_groups = -(-num_heads // BLOCK_H)
    num_tiles = num_tokens * tiles.lists * num_groups
    sparse_attn_hopper_kernel[(tiles.programs(num_tiles),)](
        q,
        cache,
        indices,
        to,
        *(out if place is None else place for place in (to_lse, to_max)),  # out stands in for what is not written
        scale * LOG2_E,
        num_tiles,
        num_groups,
        num_heads,
        cache.shape[0],
        topk // tiles.lists,
        q.stride(0),
        q.stride(1),
        cache.stride(0),
        indices.stride(0),
        *strides,
        LISTS=tiles.lists,
        STATS=stats,
        PACKED=cache.dtype == torch.uint8,
        num_warps=tiles.num_warps,
    )
    if shared is not None:
        combine(*shared, out=out, lse=lse, max_logits=max_logits)
