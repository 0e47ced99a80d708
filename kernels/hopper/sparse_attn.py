"""Absorbed attention over selected cache rows on Hopper, for many tokens: warp groups with a role each.

Source: FlashMLA's sparse prefill for the shape of a tile (64 heads of a token, two blocks of 64 rows in flight, rows
by 16-byte asynchronous copies); the division of roles is our own (sparse_roles). The online softmax is
FlashAttention's, in base 2, with a reference that follows the maximum only when it must, as FlashAttention 4's.
"""

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from mlaprof.kernels.checks import check_tensor
from mlaprof.kernels.hopper.renamed import meet
from mlaprof.kernels.hopper.sparse_roles import HALF, HEADS, KEYS, ROPE, accumulate, gather, score
from mlaprof.kernels.tiles.hopper_sparse_attn import BLOCK_H, KV_LORA_RANK, ROPE_DIM, HopperSparseAttnTiles, choose

LOG2_E = 1.4426950408889634
# Of a thread. The pair that accumulates gets what these leave of 480, and needs 160.
SCORE_REGISTERS = gl.constexpr(64)
GATHER_REGISTERS = gl.constexpr(32)


@gluon.jit(do_not_specialize=["num_tiles", "num_groups", "num_rows"])
def sparse_attn_hopper_kernel(
    q_ptr,  # [num_tokens // Q_REPEAT, num_heads, 576] bf16
    cache_ptr,  # [num_rows, 576] bf16
    indices_ptr,  # [num_tokens, topk] int32
    out_ptr,  # [num_tokens, num_heads, 512] bf16 or fp32
    lse_ptr,  # [num_tokens, num_heads] fp32, only with STATS
    max_ptr,  # like lse_ptr
    scale_log2,  # softmax scale * log2(e)
    num_tiles,  # num_tokens * num_groups
    num_groups,  # of 64 heads
    num_heads,
    num_rows,
    topk,
    q_stride_t,
    q_stride_h,
    cache_stride,
    indices_stride,
    out_stride_t,
    out_stride_h,
    Q_REPEAT: gl.constexpr,
    STATS: gl.constexpr,
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
    # Every gathering thread arrives once its copies have landed; of the other roles one thread does, and of both
    # scoring groups one each.
    mbarrier.init(q_ready, count=128)
    mbarrier.init(q_free, count=2)
    mbarrier.init(total_ready, count=2)
    mbarrier.init(total_free, count=1)
    for slot in gl.static_range(2):
        mbarrier.init(l_ready.index(slot), count=128)
        mbarrier.init(r_ready.index(slot), count=128)
        mbarrier.init(l_free.index(slot), count=1)
        mbarrier.init(r_free.index(slot), count=1)
        mbarrier.init(shrink_ready.index(slot), count=1)
        mbarrier.init(p_ready.index(slot), count=1)
    meet()
    to_accumulate = (
        out_ptr, lse_ptr, max_ptr, num_tiles, num_groups, num_heads, topk, out_stride_t, out_stride_h,
        k_l, k_r, k_p, shrinks, totals, last_pivots, peaks,
        l_free, r_free, shrink_ready, p_ready, total_ready, total_free,
    )  # fmt: skip
    to_score = (
        indices_ptr, num_tiles, num_groups, num_rows, topk, indices_stride, scale_log2,
        q_l, q_r, q_p, k_l, k_r, k_p, pivots, shrinks, totals, last_pivots, peaks,
        q_ready, q_free, l_ready, r_ready, shrink_ready, p_ready, total_ready, total_free,
    )  # fmt: skip
    to_gather = (
        q_ptr, cache_ptr, indices_ptr, num_tiles, num_groups, num_heads, num_rows, topk,
        q_stride_t, q_stride_h, cache_stride, indices_stride,
        q_l, q_r, q_p, k_l, k_r, k_p, q_ready, q_free, l_ready, r_ready, l_free, r_free,
    )  # fmt: skip
    gl.warp_specialize(
        [
            (accumulate, (to_accumulate, STATS)),
            (score, (to_score, gl.constexpr(0), STATS)),
            (score, (to_score, gl.constexpr(1), STATS)),
            (gather, (to_gather, Q_REPEAT)),
        ],
        [4, 4, 4],
        [SCORE_REGISTERS, SCORE_REGISTERS, GATHER_REGISTERS],
    )


def sparse_attn(
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    scale: float,
    tiles: HopperSparseAttnTiles | None = None,
    *,
    out: Tensor,
    lse: Tensor | None = None,
    max_logits: Tensor | None = None,
) -> None:
    """Attend each query to its selected cache rows and write the result to out; zero where it has none.

    q           [num_queries, num_heads, 576]  bf16          absorbed query, rope part of 64 last
    cache       [num_rows, 576]                bf16          latent rows, rope part last
    indices     [num_tokens, topk]             int32         row numbers; outside 0 .. num_rows-1 the slot is empty
    scale                                                    of the scores, before the softmax
    tiles                                                    the default for the shape where not given
    out         [num_tokens, num_heads, 512]   bf16 or fp32
    lse         [num_tokens, num_heads]        fp32          natural log of the sum of exponentials; -inf where empty
    max_logits  [num_tokens, num_heads]        fp32          largest scaled score; -inf where empty; goes with lse

    num_tokens is a multiple of num_queries: query i serves that many tokens in a row, as when a query's rows are split
    into lists of their own, to be combined by lse. Needs a GPU of compute capability 9.0; 64 heads a tile, so fewer
    than 33 are better served by the portable form. Raises ValueError on a wrong shape, dtype, device or alignment.
    """
    width = KV_LORA_RANK + ROPE_DIM
    num_queries, num_heads = check_tensor("q", q, shape=("T", "H", width), dtype=torch.bfloat16)
    (num_rows,) = check_tensor("cache", cache, shape=("rows", width), dtype=torch.bfloat16, device=q.device)
    num_tokens, topk = check_tensor("indices", indices, shape=("T", "topk"), dtype=torch.int32, device=q.device)
    out_shape = (num_tokens, num_heads, KV_LORA_RANK)
    check_tensor("out", out, shape=out_shape, dtype=(torch.bfloat16, torch.float32), device=q.device)
    if (lse is None) != (max_logits is None):
        raise ValueError("lse: expected together with max_logits, got one of them")
    for name, x in (("lse", lse), ("max_logits", max_logits)):
        if x is not None:
            check_tensor(name, x, shape=out_shape[:2], dtype=torch.float32, device=q.device, contiguous="all")
    if num_tokens == 0 or num_heads == 0:
        return
    if num_queries == 0 or num_tokens % num_queries:
        raise ValueError(f"indices: expected a multiple of the {num_queries} queries, got {num_tokens} rows")
    for name, x in (("q", q), ("cache", cache)):
        if x.data_ptr() % 16 or any(stride % 16 for stride in x.stride()[:-1]):
            at = f"strides {x.stride()} from address {x.data_ptr():#x}"
            raise ValueError(f"{name}: expected rows at multiples of 16 elements from one of 16 bytes, got {at}")
    num_groups = -(-num_heads // BLOCK_H)
    num_tiles = num_tokens * num_groups
    tiles = tiles or choose(num_tokens, num_heads, topk)
    sparse_attn_hopper_kernel[(tiles.programs(num_tiles),)](
        q,
        cache,
        indices,
        out,
        out if lse is None else lse,
        out if max_logits is None else max_logits,
        scale * LOG2_E,
        num_tiles,
        num_groups,
        num_heads,
        num_rows,
        topk,
        q.stride(0),
        q.stride(1),
        cache.stride(0),
        indices.stride(0),
        out.stride(0),
        out.stride(1),
        Q_REPEAT=num_tokens // num_queries,
        STATS=lse is not None,
        num_warps=tiles.num_warps,
    )
