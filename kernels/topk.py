"""The k largest logits of each row, as positions in its window.

A row lives in registers; one too long for that is read again instead. topk_search finds two thresholds with few
elements between. Those above are chosen, each thread's side by side; of those between, every pair is compared.
Source: the exact, order-free selection of DeepSeek-V3.2's indexer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor
from mlaprof.kernels.device import is_hopper
from mlaprof.kernels.tiles import hopper_topk as hopper_tiles
from mlaprof.kernels.tiles import topk as plain_tiles
from mlaprof.kernels.tiles.hopper_topk import HopperTopkTiles
from mlaprof.kernels.tiles.topk import MAX_K, TopkTiles
from mlaprof.kernels.topk_search import bracket, named, order, piece, pieces, window


@triton.jit
def _put(x, name, sure, maybe, bottom, top, row_out_ptr, between_ptr, c_top, k, FEW: tl.constexpr):
    """Write the names of a piece's elements >= top to slots from sure on, of those between from maybe on."""
    is_sure = x >= top
    is_maybe = (x >= bottom) & ~is_sure
    slot = sure[:, None] + tl.cumsum(is_sure.to(tl.int32), 1)
    tl.store(row_out_ptr + slot.to(tl.uint32), name, mask=is_sure)
    slot = maybe[:, None] + tl.cumsum(is_maybe.to(tl.int32), 1)
    if FEW:
        tl.store(between_ptr + slot.to(tl.uint32), named(x, name), mask=is_maybe)
    else:
        slot += c_top
        tl.store(row_out_ptr + slot.to(tl.uint32), name, mask=is_maybe & (slot < k))
    return sure + tl.sum(is_sure.to(tl.int32), 1), maybe + tl.sum(is_maybe.to(tl.int32), 1)


@triton.jit
def _put_all(
    x,
    row_ptr,
    length,
    sure,
    maybe,
    bottom,
    top,
    row_out_ptr,
    between_ptr,
    c_top,
    k,
    C: tl.constexpr,
    R: tl.constexpr,
    LONG: tl.constexpr,
    FEW: tl.constexpr,
):
    sure -= 1  # running sums count the element itself
    maybe -= 1
    for i in tl.static_range(len(x)):
        name = i * C + tl.arange(0, C)[:, None] + tl.arange(0, R)[None, :] * (C * len(x))
        sure, maybe = _put(x[i], name, sure, maybe, bottom, top, row_out_ptr, between_ptr, c_top, k, FEW)
    if LONG:
        for first in range(C * R * len(x), length, C * R):
            name = first + tl.arange(0, C)[:, None] + tl.arange(0, R)[None, :] * C
            y = piece(row_ptr, first, length, C, R, C)
            sure, maybe = _put(y, name, sure, maybe, bottom, top, row_out_ptr, between_ptr, c_top, k, FEW)


# Alignment is not specialised on, so that neighbouring threads hold neighbouring columns in every tensor here.
@triton.jit(do_not_specialize=["logits_ptr", "between_ptr", "width", "k", "logits_stride", "out_stride"])
def topk_kernel(
    logits_ptr,  # [n, width] fp32
    starts_ptr,  # [n] int32 or None
    ends_ptr,  # [n] int32 or None
    out_ptr,  # [n, k] int32
    between_ptr,  # [n, AMBIGUOUS] int64, scratch
    width,
    k,
    logits_stride,
    out_stride,
    C: tl.constexpr,
    R: tl.constexpr,
    PIECES: tl.constexpr,
    LONG: tl.constexpr,
    AMBIGUOUS: tl.constexpr,
):
    SHIFT: tl.constexpr = 32 if LONG else 16
    row = tl.program_id(0).to(tl.int64)
    start, end = window(starts_ptr, ends_ptr, row, width)
    length = end - start
    row_ptr = logits_ptr + row * logits_stride + start
    row_out_ptr = out_ptr + row * out_stride
    between_ptr += row * AMBIGUOUS
    x = pieces(row_ptr, length, C, R, PIECES)
    bottom, top, c_bottom, c_top, per = bracket(x, row_ptr, length, k, C, R, LONG, SHIFT, AMBIGUOUS)
    before = tl.cumsum(per, 0) - per
    sure = (before & ((1 << SHIFT) - 1)).to(tl.int32)
    maybe = ((before >> SHIFT) & ((1 << SHIFT) - 1)).to(tl.int32)
    count = c_bottom - c_top
    if (count <= AMBIGUOUS) & (c_bottom > k):
        _put_all(x, row_ptr, length, sure, maybe, bottom, top, row_out_ptr, between_ptr, c_top, k, C, R, LONG, True)
        tl.debug_barrier()
        nr = tl.arange(0, AMBIGUOUS)
        pair = tl.load(between_ptr + nr, mask=nr < count, other=-1)  # NaN, which no row holds here
        mine = order(pair)
        rank = tl.zeros([AMBIGUOUS], tl.int32)
        for first in tl.static_range(0, AMBIGUOUS, 32):
            other = first + tl.arange(0, 32)
            rival = order(tl.load(between_ptr + other, mask=other < count, other=-1))
            rank += tl.sum(((rival[None, :] > mine[:, None]) & (other < count)[None, :]).to(tl.int32), 1)
        chosen = (nr < count) & (rank < k - c_top)
        tl.store(row_out_ptr + c_top + rank, (pair & 0x7FFFFFFF).to(tl.int32), mask=chosen)
    else:
        _put_all(x, row_ptr, length, sure, maybe, bottom, top, row_out_ptr, between_ptr, c_top, k, C, R, LONG, False)
    if c_bottom < k:
        for first in range(0, k, C):
            slot = first + tl.arange(0, C)
            tl.store(row_out_ptr + slot, -1, mask=(slot >= c_bottom) & (slot < k))


def topk(
    logits: Tensor,
    starts: Tensor | None,
    ends: Tensor | None,
    k: int,
    tiles: TopkTiles | HopperTopkTiles | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Request-local positions [n, k] int32 of the k largest logits of each row, in any order; the tail is -1.

    logits  [n, width] fp32   rows at any stride; -inf and NaN are never chosen, values outside the window never
    starts  [n]        int32  first column of a row's window, where positions begin; None is 0
    ends    [n]        int32  first column after it; None is width. Bounds are cut to 0 .. width, and an end
                              before its start makes an empty window
    k                         at most 4096
    tiles                     None: chosen by shape, of the Hopper form on Hopper where a row fits it
    out     [n, k]     int32  rows at any stride; None allocates

    Equal logits may be chosen between freely, but equal inputs always give equal outputs, in the same order.
    Raises ValueError on a wrong shape, dtype or device, and for tiles that do not fit.
    """
    n, width = check_tensor("logits", logits, shape=("n", "width"), dtype=torch.float32)
    for name, bound in (("starts", starts), ("ends", ends)):
        if bound is not None:
            check_tensor(name, bound, shape=(n,), dtype=torch.int32, device=logits.device)
    if not 0 <= k <= MAX_K:
        raise ValueError(f"k: expected 0 to {MAX_K}, got {k}")
    if out is None:
        out = torch.empty(n, k, dtype=torch.int32, device=logits.device)
    check_tensor("out", out, shape=(n, k), dtype=torch.int32, device=logits.device)
    if out.numel() == 0:
        return out
    if tiles is None:
        on_hopper = width <= hopper_tiles.MAX_WIDTH and is_hopper(logits.device)
        tiles = (hopper_tiles if on_hopper else plain_tiles).choose(n, width)
    if wrong := plain_tiles.misfit(tiles):
        raise ValueError(f"tiles: {wrong}")
    between = torch.empty(n, tiles.ambiguous, dtype=torch.int64, device=logits.device)
    if isinstance(tiles, HopperTopkTiles):
        if width > tiles.block:
            raise ValueError(f"tiles: expected a block of at least {width} for the Hopper form, got {tiles.block}")
        from mlaprof.kernels.hopper.topk import launch  # Gluon is of no use elsewhere

        launch(logits, starts, ends, k, tiles, out, between)
        return out
    threads = 32 * tiles.num_warps
    long = width > tiles.block
    topk_kernel[(n,)](
        logits,
        starts,
        ends,
        out,
        between,
        width,
        k,
        logits.stride(0),
        out.stride(0),
        C=threads,
        R=tiles.block // (threads * tiles.num_pieces),
        PIECES=tiles.num_pieces,
        LONG=long,
        AMBIGUOUS=tiles.ambiguous,
        num_warps=tiles.num_warps,
        maxnreg=tiles.num_registers or None,
    )
    return out
