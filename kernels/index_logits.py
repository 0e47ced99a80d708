"""Scores of the lightning indexer: logit[i, j] = k_scale[j] * sum over heads h of weights[i, h] * relu(q[i, h] . k[j]).

Keys stand on the long side of the product and (query, head) pairs on the other, so that the head sum stays inside a
thread's row; k_scale is positive and is applied once, after that sum.
Source: the DSA section of the DeepSeek-V3.2 report; k_scale outside the sum as in DeepGEMM's fp8_mqa_logits.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor
from mlaprof.kernels.tiles import IndexLogitsTiles, hopper_index_logits, padded_heads
from mlaprof.kernels.tiles import index_logits as plain
from mlaprof.kernels.tiles.hopper_index_logits import HopperIndexLogitsTiles

KEY_BLOCKS_PER_PROGRAM = 4  # at least: enough for loads to run ahead of the products
MAX_KEY_BLOCKS_PER_PROGRAM = 32  # queries and weights are read anew by every program
PROGRAMS = 2048  # that a launch is cut into where it can be: many a multiprocessor, so that rows of any length even out
ROW_ALIGNMENT = 8  # scores of a 32-byte sector


@triton.jit
def head_sums(keys, q, weights, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr, HEADS: tl.constexpr):
    """[BLOCK_N, BLOCK_Q]: sum over heads of weight * relu(key . q), from the BLOCK_Q * HEADS rows of q and weights."""
    dots = tl.maximum(tl.dot(keys, tl.trans(q)), 0.0) * weights[None, :]
    return tl.sum(tl.reshape(dots, [BLOCK_N, BLOCK_Q, HEADS]), 2)


@triton.jit(do_not_specialize=["n", "m"])  # one compiled kernel for every token count
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
    logits_stride,
    DIM: tl.constexpr,
    HEADS: tl.constexpr,  # num_heads, padded to a power of two of at least 16
    BLOCK_Q: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPAN: tl.constexpr,  # keys a program covers, a multiple of BLOCK_N
):
    # Under causal bounds the last queries see most keys: what takes longest starts first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    rows = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    is_row = rows < n
    first = tl.program_id(1) * SPAN
    ks = tl.maximum(tl.load(ks_ptr + rows, mask=is_row, other=m), first)
    ke = tl.minimum(tl.load(ke_ptr + rows, mask=is_row, other=0), tl.minimum(first + SPAN, m))
    # Only blocks that some row of this tile can see are computed; they begin where stores fill whole sectors.
    lo = tl.min(ks, 0) // 8 * 8
    hi = tl.max(ke, 0)
    if lo >= hi:
        return

    pairs = tl.arange(0, BLOCK_Q * HEADS)
    dims = tl.arange(0, DIM)
    pair_row = tile * BLOCK_Q + pairs // HEADS
    pair_head = pairs % HEADS
    is_pair = (pair_row < n) & (pair_head < num_heads)
    q_rows = q_ptr + pair_row.to(tl.int64) * q_stride_n + pair_head * q_stride_h
    q = tl.load(q_rows[:, None] + dims[None, :], mask=is_pair[:, None], other=0.0)
    weights = tl.load(weights_ptr + pair_row.to(tl.int64) * weights_stride + pair_head, mask=is_pair, other=0.0)

    out_rows = logits_ptr + rows.to(tl.int64) * logits_stride
    keys = tl.arange(0, BLOCK_N)
    for start in range(lo, hi, BLOCK_N):
        position = start + keys
        is_key = position < m
        k_rows = k_ptr + position.to(tl.int64)[:, None] * k_stride
        k = tl.load(k_rows + dims[None, :], mask=is_key[:, None], other=0.0)
        k_scale = tl.load(k_scale_ptr + position, mask=is_key, other=0.0)
        sums = head_sums(k, q, weights, BLOCK_N, BLOCK_Q, HEADS) * k_scale[:, None]
        seen = (position[:, None] >= ks[None, :]) & (position[:, None] < ke[None, :])
        tl.store(out_rows[None, :] + position[:, None], sums, mask=seen)


def index_logits(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    weights: Tensor,
    ks: Tensor,
    ke: Tensor,
    tiles: IndexLogitsTiles | HopperIndexLogitsTiles | None = None,
) -> Tensor:
    """Indexer score of every key that a query sees [n, m] fp32. Nothing else of the result is written.

    q        [n, num_heads, 128] e4m3
    k        [m, 128]            e4m3
    k_scale  [m]                 fp32   positive
    weights  [n, num_heads]      fp32   carries q's own scale
    ks, ke   [n]                 int32  a query sees keys ks .. ke-1, of those there are; any numbers are bounds
    tiles    None: chosen by shape, of the Hopper form where it can run

    Outside ks .. ke-1 the result holds what its memory held before: who selects from it must honour the bounds.
    Rows are a multiple of 8 scores apart. Raises ValueError on a wrong shape, dtype or device, and on tiles of the
    Hopper form for operands that it cannot take.
    """
    n, num_heads = check_tensor("q", q, shape=("n", "H", 128), dtype=torch.float8_e4m3fn)
    (m,) = check_tensor("k", k, shape=("m", 128), dtype=torch.float8_e4m3fn, device=q.device)
    check_tensor("k_scale", k_scale, shape=(m,), dtype=torch.float32, device=q.device)
    check_tensor("weights", weights, shape=(n, num_heads), dtype=torch.float32, device=q.device)
    check_tensor("ks", ks, shape=(n,), dtype=torch.int32, device=q.device)
    check_tensor("ke", ke, shape=(n,), dtype=torch.int32, device=q.device)
    logits = torch.empty(n, -(-m // ROW_ALIGNMENT) * ROW_ALIGNMENT, dtype=torch.float32, device=q.device)[:, :m]
    if n == 0 or m == 0:
        return logits
    if tiles is None:
        on_hopper = _is_hopper(q.device) and not _beyond_hopper_form(q, k)
        tiles = hopper_index_logits.choose(n, m, num_heads) if on_hopper else plain.choose(n, m, num_heads)
    if isinstance(tiles, HopperIndexLogitsTiles):
        if wrong := _beyond_hopper_form(q, k):
            raise ValueError(wrong)
        from mlaprof.kernels.hopper.index_logits import launch  # Gluon is of no use elsewhere

        launch(q, k, k_scale, weights, ks, ke, logits, tiles)
        return logits
    query_blocks, key_blocks = triton.cdiv(n, tiles.block_q), triton.cdiv(m, tiles.block_n)
    share = triton.next_power_of_2(triton.cdiv(query_blocks * key_blocks, PROGRAMS))
    span = tiles.block_n * min(max(share, KEY_BLOCKS_PER_PROGRAM), MAX_KEY_BLOCKS_PER_PROGRAM)
    index_logits_kernel[(query_blocks, triton.cdiv(m, span))](
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
        logits.stride(0),
        DIM=128,
        HEADS=padded_heads(num_heads),
        BLOCK_Q=tiles.block_q,
        BLOCK_N=tiles.block_n,
        SPAN=span,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return logits


@cache
def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


def _beyond_hopper_form(q: Tensor, k: Tensor) -> str | None:
    """Why the Hopper form cannot take these operands, with a remedy."""
    if q.shape[1] > hopper_index_logits.MAX_HEADS:
        return (
            f"q: {q.shape[1]} heads exceed the {hopper_index_logits.MAX_HEADS} of a warp group; use the portable form"
        )
    for name, x in (("q", q), ("k", k)):
        if x.data_ptr() % 16 or any(stride % 16 for stride in x.stride()[:-1]):
            return f"{name}: rows do not start at multiples of 16 bytes, strides {x.stride()}; use the portable form"
    return None
