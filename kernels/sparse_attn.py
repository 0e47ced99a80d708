"""Absorbed attention over selected cache rows: a latent row serves all heads, as key (whole) and as value (first part).

Source: the DSA section of the DeepSeek-V3.2 report; the online softmax is FlashAttention's, in base 2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor
from mlaprof.kernels.tiles import SparseAttnTiles

LOG2_E = 1.4426950408889634


@triton.jit
def sparse_attn_kernel(
    q_ptr,  # [num_tokens, num_heads, D_LATENT + D_ROPE] bf16
    cache_ptr,  # [num_rows, D_LATENT + D_ROPE] bf16
    indices_ptr,  # [num_tokens, topk] int32
    out_ptr,  # [num_tokens, num_heads, D_LATENT] bf16
    scale_log2,  # softmax scale * log2(e)
    num_heads,
    num_rows,
    topk,
    q_stride_t,
    q_stride_h,
    cache_stride,
    indices_stride,
    out_stride_t,
    out_stride_h,
    D_LATENT: tl.constexpr,
    D_ROPE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    latent = tl.arange(0, D_LATENT)
    rope = D_LATENT + tl.arange(0, D_ROPE)
    slots = tl.arange(0, BLOCK_N)
    is_head = (heads < num_heads)[:, None]

    q_rows = q_ptr + token * q_stride_t + heads.to(tl.int64)[:, None] * q_stride_h
    q_latent = tl.load(q_rows + latent[None, :], mask=is_head, other=0.0)  # [BLOCK_H, D_LATENT]
    q_rope = tl.load(q_rows + rope[None, :], mask=is_head, other=0.0)  # [BLOCK_H, D_ROPE]

    acc = tl.zeros([BLOCK_H, D_LATENT], tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    peak = tl.full([BLOCK_H], float("-inf"), tl.float32)
    # Row numbers are read one block ahead: a gather that waits for them inside one turn would cost pipeline stages.
    indices = indices_ptr + token * indices_stride + slots
    row = tl.load(indices, mask=slots < topk, other=-1)
    for start in range(BLOCK_N, topk + BLOCK_N, BLOCK_N):
        valid = (row >= 0) & (row < num_rows)
        # Masked, not clamped: memory behind an empty slot may hold NaN, and 0 * NaN is NaN.
        rows = cache_ptr + row.to(tl.int64)[:, None] * cache_stride
        kv = tl.load(rows + latent[None, :], mask=valid[:, None], other=0.0)  # [BLOCK_N, D_LATENT]
        k_rope = tl.load(rows + rope[None, :], mask=valid[:, None], other=0.0)  # [BLOCK_N, D_ROPE]
        row = tl.load(indices + start, mask=start + slots < topk, other=-1)
        scores = tl.dot(q_rope, tl.trans(k_rope))
        scores = tl.dot(q_latent, tl.trans(kv), acc=scores)
        scores = tl.where(valid[None, :], scores * scale_log2, float("-inf"))  # [BLOCK_H, BLOCK_N]

        new_peak = tl.maximum(peak, tl.max(scores, 1))
        # While every slot so far is empty the peak is -inf, and -inf - -inf is NaN.
        pivot = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores - pivot[:, None])
        shrink = tl.exp2(peak - pivot)
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(tl.bfloat16), kv, acc=acc * shrink[:, None])
        peak = new_peak

    acc = acc * tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)[:, None]
    out_rows = out_ptr + token * out_stride_t + heads.to(tl.int64)[:, None] * out_stride_h
    tl.store(out_rows + latent[None, :], acc.to(tl.bfloat16), mask=is_head)


def sparse_attn(
    q: Tensor, cache: Tensor, indices: Tensor, scale: float, tiles: SparseAttnTiles, *, out: Tensor
) -> None:
    """Attend each query to its selected cache rows and write the result to out; zero where it has none.

    q        [num_tokens, num_heads, kv_lora_rank + rope] bf16   absorbed query, rope part last
    cache    [num_rows, kv_lora_rank + rope]              bf16   latent rows, rope part last
    indices  [num_tokens, topk]                           int32  row numbers; outside 0 .. num_rows-1 the slot is empty
    scale                                                 of the scores, before the softmax
    out      [num_tokens, num_heads, kv_lora_rank]        bf16

    kv_lora_rank and rope are powers of two of at least 16. Raises ValueError on a wrong shape, dtype or device.
    """
    num_tokens, num_heads, latent_dim = check_tensor("q", q, shape=("T", "H", "D"), dtype=torch.bfloat16)
    (num_rows,) = check_tensor("cache", cache, shape=("rows", latent_dim), dtype=torch.bfloat16, device=q.device)
    (topk,) = check_tensor("indices", indices, shape=(num_tokens, "topk"), dtype=torch.int32, device=q.device)
    (kv_lora_rank,) = check_tensor(
        "out", out, shape=(num_tokens, num_heads, "kv_lora_rank"), dtype=torch.bfloat16, device=q.device
    )
    if num_tokens == 0 or num_heads == 0:
        return
    grid = (num_tokens, triton.cdiv(num_heads, tiles.block_h))
    sparse_attn_kernel[grid](
        q,
        cache,
        indices,
        out,
        scale * LOG2_E,
        num_heads,
        num_rows,
        topk,
        q.stride(0),
        q.stride(1),
        cache.stride(0),
        indices.stride(0),
        out.stride(0),
        out.stride(1),
        D_LATENT=kv_lora_rank,
        D_ROPE=latent_dim - kv_lora_rank,
        BLOCK_H=tiles.block_h,
        BLOCK_N=tiles.block_n,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
