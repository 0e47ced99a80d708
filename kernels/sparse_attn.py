"""Absorbed attention over selected cache rows: a latent row serves all heads, as key (whole) and as value (first part).

Source: the DSA section of the DeepSeek-V3.2 report; the online softmax is FlashAttention's, in base 2. Where tokens are
few, several programs share a token's rows and a second launch joins them (sparse_combine).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor
from mlaprof.kernels.device import is_hopper
from mlaprof.kernels.sparse_combine import combine, scratch
from mlaprof.kernels.tiles import SparseAttnTiles
from mlaprof.kernels.tiles import hopper_sparse_attn as prefill
from mlaprof.kernels.tiles import hopper_sparse_decode as decode
from mlaprof.kernels.tiles import sparse_attn as plain
from mlaprof.kernels.tiles.hopper_sparse_attn import HopperSparseAttnTiles
from mlaprof.kernels.tiles.hopper_sparse_decode import HopperSparseDecodeTiles

Tiles = SparseAttnTiles | HopperSparseDecodeTiles | HopperSparseAttnTiles
LOG2_E = 1.4426950408889634
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
FP8_GROUP: tl.constexpr = tl.constexpr(128)  # latent values that share a scale in the fp8 cache
FP8_LATENT, FP8_ROPE = 512, 64
FP8_ROW_BYTES = FP8_LATENT + 4 * (FP8_LATENT // 128) + 2 * FP8_ROPE


@triton.jit
def _load_rows(rows, valid, D_LATENT: tl.constexpr, D_ROPE: tl.constexpr, FP8: tl.constexpr):
    """Latent part [BLOCK_N, D_LATENT] and rope part [BLOCK_N, D_ROPE] in bf16 of the rows at these addresses.

    Masked, not clamped: memory behind an empty slot may hold NaN, and 0 * NaN is NaN.
    """
    rope = tl.arange(0, D_ROPE)[None, :]
    if FP8:
        groups: tl.constexpr = D_LATENT // FP8_GROUP
        group = tl.arange(0, groups)
        column = group[None, :, None] * FP8_GROUP + tl.arange(0, FP8_GROUP)[None, None, :]
        codes = tl.load(rows[:, None, None] + column, mask=valid[:, None, None], other=0)
        codes = codes.to(tl.float8e4nv, bitcast=True).to(tl.float32)
        scale_rows = (rows + D_LATENT).to(tl.pointer_type(tl.float32))
        scales = tl.load(scale_rows[:, None] + group[None, :], mask=valid[:, None], other=0.0)
        latent = tl.reshape((codes * scales[:, :, None]).to(tl.bfloat16), [rows.shape[0], D_LATENT])
        rope_rows = (rows + D_LATENT + 4 * groups).to(tl.pointer_type(tl.bfloat16))
    else:
        latent = tl.load(rows[:, None] + tl.arange(0, D_LATENT)[None, :], mask=valid[:, None], other=0.0)
        rope_rows = rows + D_LATENT
    return latent, tl.load(rope_rows[:, None] + rope, mask=valid[:, None], other=0.0)


@triton.jit(do_not_specialize=["num_splits", "num_head_blocks", "blocks_per_split"])
def sparse_attn_kernel(
    q_ptr,  # [num_tokens, num_heads, D_LATENT + D_ROPE] bf16
    cache_ptr,  # [num_rows, D_LATENT + D_ROPE] bf16, or the bytes of fp8 rows
    indices_ptr,  # [num_tokens, topk] int32
    out_ptr,  # [num_tokens, num_heads, D_LATENT] bf16, or [num_tokens, num_splits, num_heads, D_LATENT] fp32
    lse_ptr,  # [num_tokens, num_splits, num_heads] fp32, or None
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
    D_LATENT: tl.constexpr,
    D_ROPE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FP8: tl.constexpr,
):
    # Programs that read the same rows are neighbours, so that all but the first find them in L2.
    head_block = tl.program_id(0) % num_head_blocks
    part = (tl.program_id(0) // num_head_blocks).to(tl.int64)
    token = part // num_splits
    split = (part % num_splits).to(tl.int32)
    heads = head_block * BLOCK_H + tl.arange(0, BLOCK_H)
    latent = tl.arange(0, D_LATENT)
    slots = tl.arange(0, BLOCK_N)
    is_head = heads < num_heads

    q_rows = q_ptr + token * q_stride_t + heads.to(tl.int64)[:, None] * q_stride_h
    q_latent = tl.load(q_rows + latent[None, :], mask=is_head[:, None], other=0.0)  # [BLOCK_H, D_LATENT]
    q_rope = tl.load(q_rows + D_LATENT + tl.arange(0, D_ROPE)[None, :], mask=is_head[:, None], other=0.0)

    acc = tl.zeros([BLOCK_H, D_LATENT], tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    peak = tl.full([BLOCK_H], float("-inf"), tl.float32)
    # A product with BLOCK_N says that begin is a multiple of it: without, every slot's mask takes registers of its own.
    begin = split * (blocks_per_split * BLOCK_N)
    end = tl.minimum(begin + blocks_per_split * BLOCK_N, topk)
    # Row numbers are read one block ahead: a gather that waits for them inside one turn would cost pipeline stages.
    indices = indices_ptr + token * indices_stride + slots
    row = tl.load(indices + begin, mask=begin + slots < end, other=-1)
    for following in range(begin + BLOCK_N, end + BLOCK_N, BLOCK_N):
        valid = (row >= 0) & (row < num_rows)
        kv, k_rope = _load_rows(cache_ptr + row.to(tl.int64) * cache_stride, valid, D_LATENT, D_ROPE, FP8)
        row = tl.load(indices + following, mask=following + slots < end, other=-1)
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

    acc = acc * tl.where(total == 0, 0.0, 1.0 / total)[:, None]
    out_rows = out_ptr + token * out_stride_t + split * out_stride_s + heads.to(tl.int64)[:, None] * out_stride_h
    tl.store(out_rows + latent[None, :], acc.to(out_ptr.dtype.element_ty), mask=is_head[:, None])
    if lse_ptr is not None:
        tl.store(lse_ptr + part * num_heads + heads, (peak + tl.log2(total)) * LN_2, mask=is_head)
    if max_ptr is not None:
        tl.store(max_ptr + part * num_heads + heads, peak * LN_2, mask=is_head)


def sparse_attn(
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    scale: float,
    tiles: Tiles | None = None,
    *,
    out: Tensor,
    lse: Tensor | None = None,
    max_logits: Tensor | None = None,
) -> None:
    """Attend each query to its selected cache rows and write the result to out; zero where it has none.

    q           [num_tokens, num_heads, kv_lora_rank + rope] bf16   absorbed query, rope part last
    cache       [num_rows, kv_lora_rank + rope]              bf16   latent rows, rope part last; or
                [num_rows, 656]                              uint8  512 e4m3 codes, 4 fp32 scales of 128 codes each,
                                                                    64 bf16 rope values; rows at multiples of 16 bytes
    indices     [num_tokens, topk]                           int32  row numbers; outside 0 .. num_rows-1: empty slot
    scale                                                    of the scores, before the softmax
    tiles                                                    None: chosen by shape, of a Hopper form where it pays
    out         [num_tokens, num_heads, kv_lora_rank]        bf16
    lse         [num_tokens, num_heads]                      fp32   natural log of the sum of exp(scores); -inf of none
    max_logits  [num_tokens, num_heads]                      fp32   the largest score; -inf of none

    kv_lora_rank and rope are powers of two of at least 16. Raises ValueError on a wrong shape, dtype or device.
    """
    num_tokens, num_heads, latent_dim = check_tensor("q", q, shape=("T", "H", "D"), dtype=torch.bfloat16)
    fp8 = cache.dtype == torch.uint8
    width, dtype = (FP8_ROW_BYTES, torch.uint8) if fp8 else (latent_dim, torch.bfloat16)
    (num_rows,) = check_tensor("cache", cache, shape=("rows", width), dtype=dtype, device=q.device)
    (topk,) = check_tensor("indices", indices, shape=(num_tokens, "topk"), dtype=torch.int32, device=q.device)
    (kv_lora_rank,) = check_tensor(
        "out", out, shape=(num_tokens, num_heads, "kv_lora_rank"), dtype=torch.bfloat16, device=q.device
    )
    for name, stat in (("lse", lse), ("max_logits", max_logits)):
        if stat is not None:
            shape = (num_tokens, num_heads)
            check_tensor(name, stat, shape=shape, dtype=torch.float32, device=q.device, contiguous="all")
    if fp8:
        _check_fp8(cache, latent_dim, kv_lora_rank)
    if num_tokens == 0 or num_heads == 0:
        return
    if tiles is None:
        tiles = _choose(q, cache, topk, kv_lora_rank)
    if not isinstance(tiles, SparseAttnTiles):
        if wrong := _beyond_hopper(q, cache, kv_lora_rank):
            raise ValueError(wrong)
        _on_hopper(q, cache, indices, scale, tiles, out, lse, max_logits)
        return
    num_blocks = triton.cdiv(topk, tiles.block_n)
    blocks_per_split = triton.cdiv(num_blocks, tiles.num_splits)
    num_splits = max(1, triton.cdiv(num_blocks, max(1, blocks_per_split)))
    if num_splits == 1:
        places: tuple[Any, ...] = (out, lse, max_logits)
        strides: tuple[int, ...] = (out.stride(0), 0, out.stride(1))
    else:
        places = scratch(q, num_splits, kv_lora_rank, with_max=max_logits is not None)
        strides = places[0].stride()[:3]
    num_head_blocks = triton.cdiv(num_heads, tiles.block_h)
    sparse_attn_kernel[(num_tokens * num_splits * num_head_blocks,)](
        q,
        cache,
        indices,
        *places,
        scale * LOG2_E,
        num_heads,
        num_rows,
        topk,
        num_splits,
        num_head_blocks,
        blocks_per_split,
        q.stride(0),
        q.stride(1),
        cache.stride(0),
        indices.stride(0),
        *strides,
        D_LATENT=kv_lora_rank,
        D_ROPE=latent_dim - kv_lora_rank,
        BLOCK_H=tiles.block_h,
        BLOCK_N=tiles.block_n,
        FP8=fp8,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    if num_splits > 1:
        combine(*places, out=out, lse=lse, max_logits=max_logits)


def _check_fp8(cache: Tensor, latent_dim: int, kv_lora_rank: int) -> None:
    if (kv_lora_rank, latent_dim) != (FP8_LATENT, FP8_LATENT + FP8_ROPE):
        got = f"{kv_lora_rank} and {latent_dim - kv_lora_rank}"
        raise ValueError(f"cache: rows of {FP8_ROW_BYTES} bytes hold {FP8_LATENT} and {FP8_ROPE} values, got {got}")
    if cache.data_ptr() % 16 or cache.stride(0) % 16:
        raise ValueError(f"cache: expected rows at multiples of 16 bytes, got a row every {cache.stride(0)} bytes")


def _choose(q: Tensor, cache: Tensor, topk: int, kv_lora_rank: int) -> Tiles:
    num_tokens, num_heads, _ = q.shape
    packed = cache.dtype == torch.uint8
    if not is_hopper(q.device) or _beyond_hopper(q, cache, kv_lora_rank):
        return plain.choose(num_tokens, num_heads, topk, fp8=packed)
    if decode.pays(num_tokens, num_heads, topk, packed=packed):
        return decode.choose(num_tokens, num_heads, topk, packed=packed)
    return prefill.choose(num_tokens, num_heads, topk, packed=packed)


def _on_hopper(
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    scale: float,
    tiles: HopperSparseDecodeTiles | HopperSparseAttnTiles,
    out: Tensor,
    lse: Tensor | None,
    max_logits: Tensor | None,
) -> None:
    # Gluon is of no use elsewhere, so nothing imports it before it is needed.
    if isinstance(tiles, HopperSparseDecodeTiles):
        from mlaprof.kernels.hopper.sparse_decode import launch as launch_decode

        launch_decode(q, cache, indices, scale, tiles, out=out, lse=lse, max_logits=max_logits)
    else:
        from mlaprof.kernels.hopper.sparse_attn import launch as launch_prefill

        launch_prefill(q, cache, indices, scale, tiles, out=out, lse=lse, max_logits=max_logits)


def _beyond_hopper(q: Tensor, cache: Tensor, kv_lora_rank: int) -> str | None:
    """Why the Hopper form cannot take these operands."""
    dims = (kv_lora_rank, q.shape[2] - kv_lora_rank)
    if dims != (decode.LATENT_DIM, decode.ROPE_DIM):
        return f"q: {dims[0]} and {dims[1]} dimensions are not 512 and 64; use the plain form"
    rows = [("q", q)] if cache.dtype == torch.uint8 else [("q", q), ("cache", cache)]
    for name, x in rows:
        if x.data_ptr() % 16 or any(stride % 16 for stride in x.stride()[:-1]):
            return f"{name}: expected rows at multiples of 16 elements, got strides {x.stride()}; use the plain form"
    return None
