"""The k largest logits of each row on Hopper: the portable form's search, and results written warp by warp.

Half of a short row is chosen, so where results are written decides the time: a ballot a register gives the chosen of a
warp consecutive slots, and one store fills whole sectors.
"""

import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mlaprof.kernels.tiles.hopper_topk import HopperTopkTiles, few_rows
from mlaprof.kernels.topk_search import bracket, named, order, window

# Threads of the warp with a chosen element, before this one and in all.
BALLOT = gl.constexpr("""{
.reg .pred chosen;
.reg .b32 all, before;
setp.ge.f32 chosen, $2, $3;
vote.sync.ballot.b32 all, chosen, 0xffffffff;
mov.u32 before, %lanemask_lt;
and.b32 before, before, all;
popc.b32 $0, before;
popc.b32 $1, all;
}""")
FIRST_LANE = gl.constexpr("shfl.sync.idx.b32 $0, $1, 0, 31, 0xffffffff;")


@gluon.jit
def _plus(a, b):
    return a + b


@gluon.jit
def _before(x, W: gl.constexpr):
    """Sum of x over the threads before."""
    flat = gl.convert_layout(x, gl.BlockedLayout([1], [32], [W], [0]))
    return gl.convert_layout(gl.associative_scan(flat, 0, _plus) - flat, x.type.layout)


@gluon.jit
def _columns(i, C: gl.constexpr, R: gl.constexpr, STEP: gl.constexpr, L: gl.constexpr):
    rows = gl.arange(0, C, gl.SliceLayout(1, L)).expand_dims(1)
    return i * C + rows + gl.arange(0, R, gl.SliceLayout(0, L)).expand_dims(0) * STEP


@gluon.jit
def _pieces(row_ptr, length, width, C, R, PIECES, EAGER, L):
    """A row, in groups of elements that are worked on one after the other."""
    x = ()
    for i in gl.static_range(PIECES):
        cols = _columns(i, C, R, C * PIECES, L)
        if EAGER:
            whole = gl.load(row_ptr + cols, mask=cols < width, other=float("-inf"))
            x += (gl.where(cols < length, whole, float("-inf")),)
        else:
            x += (gl.load(row_ptr + cols, mask=cols < length, other=float("-inf")),)
    return x


@gluon.jit
def _put_all(
    x,
    sure,
    maybe,
    bottom,
    top,
    row_out_ptr,
    between_ptr,
    c_top,
    k,
    C: gl.constexpr,
    R: gl.constexpr,
    FEW: gl.constexpr,
    L: gl.constexpr,
):
    """Write the positions of the elements >= top, a warp's side by side; of those between, a thread's side by side."""
    sure = gl.inline_asm_elementwise(FIRST_LANE, "=r,r", [sure], dtype=gl.int32, is_pure=True, pack=1)
    maybe -= 1  # its running sum counts the element itself
    for i in gl.static_range(len(x)):
        name = _columns(i, C, R, C * len(x), L)
        rank, total = gl.inline_asm_elementwise(
            BALLOT, "=r,=r,f,f", [x[i], top], dtype=(gl.int32, gl.int32), is_pure=True, pack=1
        )
        is_sure = x[i] >= top
        slot = sure.expand_dims(1) + (gl.associative_scan(total, 1, _plus) - total) + rank
        gl.store(row_out_ptr + slot.to(gl.uint32), name, mask=is_sure)
        is_maybe = (x[i] >= bottom) & ~is_sure
        slot = maybe.expand_dims(1) + gl.associative_scan(is_maybe.to(gl.int32), 1, _plus)
        if FEW:
            gl.store(between_ptr + slot.to(gl.uint32), named(x[i], name), mask=is_maybe)
        else:
            slot += c_top
            gl.store(row_out_ptr + slot.to(gl.uint32), name, mask=is_maybe & (slot < k))
        sure += gl.sum(total, 1)
        maybe += gl.sum(is_maybe.to(gl.int32), 1)


@gluon.jit
def _pairs(between_ptr, nr, count):
    pair = gl.load(between_ptr + nr, mask=nr < count, other=0)
    return pair, order(pair)


@gluon.jit(do_not_specialize=["width", "k", "logits_stride", "out_stride"])
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
    C: gl.constexpr,
    R: gl.constexpr,
    PIECES: gl.constexpr,
    AMBIGUOUS: gl.constexpr,
    EAGER: gl.constexpr,  # the row is on its way before its end is known
):
    W: gl.constexpr = C // 32
    L: gl.constexpr = gl.BlockedLayout([1, 1], [32, 1], [W, 1], [0, 1])
    row = gl.program_id(0).to(gl.int64)
    start, end = window(starts_ptr, ends_ptr, row, width)
    length = end - start
    row_ptr = logits_ptr + row * logits_stride + start
    row_out_ptr = out_ptr + row * out_stride
    between_ptr += row * AMBIGUOUS
    x = _pieces(row_ptr, length, width, C, R, PIECES, EAGER, L)
    bottom, top, c_bottom, c_top, per = bracket(x, row_ptr, length, k, C, R, False, 16, AMBIGUOUS)
    before = _before(per, W)
    sure = before & 0xFFFF
    maybe = (before >> 16) & 0xFFFF
    count = c_bottom - c_top
    if (count <= AMBIGUOUS) & (c_bottom > k):
        _put_all(x, sure, maybe, bottom, top, row_out_ptr, between_ptr, c_top, k, C, R, True, L)
        tl.debug_barrier()
        P: gl.constexpr = gl.BlockedLayout([1, AMBIGUOUS // 32], [1, 32], [W, 1], [1, 0])
        nr = gl.arange(0, AMBIGUOUS, gl.SliceLayout(1, P))
        other = gl.arange(0, AMBIGUOUS, gl.SliceLayout(0, P))
        pair, mine = _pairs(between_ptr, nr, count)
        _, rival = _pairs(between_ptr, other, count)
        ahead = (rival.expand_dims(0) > mine.expand_dims(1)) & (other < count).expand_dims(0)
        rank = gl.sum(ahead.to(gl.int32), 1)
        chosen = (nr < count) & (rank < k - c_top)
        gl.store(row_out_ptr + c_top + rank, (pair & 0x7FFFFFFF).to(gl.int32), mask=chosen)
    else:
        _put_all(x, sure, maybe, bottom, top, row_out_ptr, between_ptr, c_top, k, C, R, False, L)
    if c_bottom < k:
        for first in range(0, k, C):
            slot = first + gl.arange(0, C, gl.SliceLayout(1, L))
            gl.store(row_out_ptr + slot, slot * 0 - 1, mask=(slot >= c_bottom) & (slot < k))


def launch(
    logits: Tensor,
    starts: Tensor | None,
    ends: Tensor | None,
    k: int,
    tiles: HopperTopkTiles,
    out: Tensor,
    between: Tensor,
) -> None:
    """What topk.topk() starts with its arguments checked; rows are at most tiles.block wide."""
    threads, pieces = 32 * tiles.num_warps, tiles.num_pieces
    topk_kernel[(logits.shape[0],)](
        logits,
        starts,
        ends,
        out,
        between,
        logits.shape[1],
        k,
        logits.stride(0),
        out.stride(0),
        C=threads,
        R=tiles.block // (threads * pieces),
        PIECES=pieces,
        AMBIGUOUS=tiles.ambiguous,
        EAGER=starts is None and few_rows(logits.shape[0]),
        num_warps=tiles.num_warps,
        maxnreg=tiles.num_registers or None,
    )
