"""The two products that are one small matrix a head, with that matrix resident in shared memory.

A program holds one head's matrix (or a part of its columns) and walks over tokens 64 at a time, so that everything but
the matrix crosses the memory bus once. Its warps have four trades: one loads (TMA), two warpgroups multiply alternate
tiles and store them (wgmma, TMA), and one rotates what lies beside the product.
"""

from functools import cache

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from mlaprof.kernels.hopper.renamed import tma_load, tma_store
from mlaprof.kernels.tiles.hopper_absorb import HopperAbsorbTiles
from mlaprof.kernels.tiles.hopper_up_project import HopperUpProjectTiles
from mlaprof.kernels.tiles.limits import NUM_SMS

TILE_M = gl.constexpr(64)
TILE_N = gl.constexpr(128)


@gluon.jit
def _load(
    x_desc, w_desc, x_blocks, w_blocks, w_full, full, empty, first, last, x_column, w_row,
    GROUP: gl.constexpr, KC: gl.constexpr, NC: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One group's rows, chunk after chunk through its ring; the first group's warp loads the matrix as well."""
    if GROUP == 0:
        mbarrier.expect(w_full, NC * KC * TILE_N * BLOCK_K * 2)
        for n in gl.static_range(NC):
            for k in gl.static_range(KC):
                tma_load(w_desc, [w_row + n * TILE_N, k * BLOCK_K], w_full, w_blocks.index(n * KC + k))
    chunk = 0
    for tile in range(first + GROUP, last, 2):
        for k in gl.static_range(KC):
            slot = GROUP * STAGES + chunk % STAGES
            # A barrier never waited for counts as passed in the other phase.
            mbarrier.wait(empty.index(slot), (chunk // STAGES & 1) ^ 1)
            mbarrier.expect(full.index(slot), TILE_M * BLOCK_K * 2)
            tma_load(x_desc, [tile * TILE_M, x_column + k * BLOCK_K], full.index(slot), x_blocks.index(slot))
            chunk += 1


@gluon.jit
def _multiply(
    out_desc, x_blocks, w_blocks, out_block, w_full, full, empty, first, last, out_column,
    GROUP: gl.constexpr, KC: gl.constexpr, NC: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Every other tile of the program; one group's MMA runs while the other stores."""
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE_N, 16])
    zeros = gl.zeros([TILE_M, TILE_N], gl.float32, mma)
    mbarrier.wait(w_full, 0)
    chunk = 0
    for tile in range(first + GROUP, last, 2):
        for n in gl.static_range(NC):
            total = zeros
            for k in gl.static_range(KC):
                slot = GROUP * STAGES + (chunk + k) % STAGES
                if n == 0:
                    mbarrier.wait(full.index(slot), (chunk + k) // STAGES & 1)
                total = warpgroup_mma(
                    x_blocks.index(slot), w_blocks.index(n * KC + k).permute((1, 0)), total, use_acc=k > 0,
                    is_async=True,
                )  # fmt: skip
                if n == NC - 1 and k > 0:
                    total = warpgroup_mma_wait(1, deps=[total])
                    mbarrier.arrive(empty.index(GROUP * STAGES + (chunk + k - 1) % STAGES), count=1)
            total = warpgroup_mma_wait(0, deps=[total])
            if n == NC - 1:
                mbarrier.arrive(empty.index(GROUP * STAGES + (chunk + KC - 1) % STAGES), count=1)
            tma.store_wait(0)
            out_block.store(total.to(gl.bfloat16))
            fence_async_shared()
            tma_store(out_desc, [tile * TILE_M, out_column + n * TILE_N], out_block)
        chunk += KC
    tma.store_wait(0)


@gluon.jit
def _rotate(
    x_words, out_words, cos_sin_ptr, positions_ptr, first, last, num_tokens, max_positions, x_stride, out_stride,
    HALF: gl.constexpr,
):  # fmt: skip
    """The rotary columns of every tile, as words of two bf16: even columns below, odd ones above."""
    if HALF > 0:
        layout: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [4, 1], [1, 0])
        column = gl.arange(0, HALF, layout=gl.SliceLayout(0, layout))[None, :]
        for tile in range(first, last):
            tokens = tile * TILE_M + gl.arange(0, TILE_M, layout=gl.SliceLayout(1, layout))
            seen = tokens < num_tokens
            positions = gl.load(positions_ptr + tokens, mask=seen, other=0)
            tokens = tokens.to(gl.int64)[:, None]
            seen = (seen[:, None]) & (column >= 0)
            words = gl.load(x_words + tokens * x_stride + column, mask=seen, other=0)
            positions = gl.minimum(gl.maximum(positions, 0), max_positions - 1)[:, None]
            cos = gl.load(cos_sin_ptr + positions * (2 * HALF) + column)
            sin = gl.load(cos_sin_ptr + positions * (2 * HALF) + HALF + column)
            even = (words << 16).to(gl.float32, bitcast=True)
            odd = (words & -65536).to(gl.float32, bitcast=True)
            low = (even * cos - odd * sin).to(gl.bfloat16).to(gl.int16, bitcast=True).to(gl.int32) & 65535
            high = (odd * cos + even * sin).to(gl.bfloat16).to(gl.int16, bitcast=True).to(gl.int32) << 16
            gl.store(out_words + tokens * out_stride + column, low | high, mask=seen)


@gluon.jit(do_not_specialize=["num_tokens", "tiles_per_program"])  # one compiled kernel for every token count
def head_product_resident_kernel(
    x_desc,  # [num_tokens, heads * (K + 2 * HALF)] bf16, 64 x BLOCK_K
    w_desc,  # [heads * N, K] bf16, 128 x BLOCK_K
    out_desc,  # [num_tokens, heads * (N + 2 * HALF)] bf16, 64 x 128
    x_ptr,  # what x_desc describes
    out_ptr,  # what out_desc describes
    cos_sin_ptr,  # [max_positions, 2, HALF] fp32
    positions_ptr,  # [num_tokens] int64
    num_tokens,
    max_positions,
    tiles_per_program,
    x_stride_t,
    x_stride_h,
    out_stride_t,
    out_stride_h,
    heads,
    K: gl.constexpr,
    N: gl.constexpr,
    HALF: gl.constexpr,  # 0: product only
    BLOCK_K: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):
    KC: gl.constexpr = K // BLOCK_K
    NC: gl.constexpr = BLOCK_N // TILE_N
    parts: gl.constexpr = N // BLOCK_N
    part = gl.program_id(0) % parts
    head = gl.program_id(0) // parts % heads
    first = gl.program_id(0) // (parts * heads) * tiles_per_program
    last = gl.minimum(first + tiles_per_program, (num_tokens + TILE_M - 1) // TILE_M)
    x_blocks = gl.allocate_shared_memory(gl.bfloat16, [2 * STAGES, TILE_M, BLOCK_K], x_desc.layout)
    w_blocks = gl.allocate_shared_memory(gl.bfloat16, [NC * KC, TILE_N, BLOCK_K], w_desc.layout)
    out_blocks = gl.allocate_shared_memory(gl.bfloat16, [2, TILE_M, TILE_N], out_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2 * STAGES, 1], mbarrier.MBarrierLayout())
    w_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(2 * STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    mbarrier.init(w_full, count=1)
    x_words = (x_ptr + head.to(gl.int64) * x_stride_h + K).to(gl.pointer_type(gl.int32), bitcast=True)
    out_words = (out_ptr + head.to(gl.int64) * out_stride_h + N).to(gl.pointer_type(gl.int32), bitcast=True)
    out_column = head * out_stride_h + part * BLOCK_N
    rotated_last = gl.where(part == 0, last, first)
    gl.warp_specialize(
        [
            (
                _multiply,
                (out_desc, x_blocks, w_blocks, out_blocks.index(0), w_full, full, empty, first, last, out_column,
                 gl.constexpr(0), KC, NC, STAGES),
            ),
            (
                _multiply,
                (out_desc, x_blocks, w_blocks, out_blocks.index(1), w_full, full, empty, first, last, out_column,
                 gl.constexpr(1), KC, NC, STAGES),
            ),
            (
                _rotate,
                (x_words, out_words, cos_sin_ptr, positions_ptr, first, rotated_last, num_tokens, max_positions,
                 x_stride_t // 2, out_stride_t // 2, HALF),
            ),
            (
                _load,
                (x_desc, w_desc, x_blocks, w_blocks, w_full, full, empty, first, last, head * x_stride_h,
                 head * N + part * BLOCK_N, gl.constexpr(0), KC, NC, BLOCK_K, STAGES),
            ),
            (
                _load,
                (x_desc, w_desc, x_blocks, w_blocks, w_full, full, empty, first, last, head * x_stride_h,
                 head * N + part * BLOCK_N, gl.constexpr(1), KC, NC, BLOCK_K, STAGES),
            ),
        ],
        [4, 4, 1, 1],
        [152, 104, 40, 40],
    )  # fmt: skip


def launch(
    x: Tensor,
    w: Tensor,
    out: Tensor,
    tiles: HopperAbsorbTiles | HopperUpProjectTiles,
    *,
    rope: int,
    cos_sin: Tensor | None,
    positions: Tensor | None,
) -> None:
    """out[t, h, :n] = x[t, h, :k] w[h]^T, and the rope columns behind turn; for operands already checked.

    There is a token at least. x, w and out start at 16-byte places, as do their rows and heads; w is contiguous.
    """
    (num_tokens, heads, _), (_, n, k) = x.shape, w.shape
    blocks = triton.cdiv(num_tokens, TILE_M.value)
    lines = heads * (n // tiles.block_n)
    # As many programs as run at once: matrices are loaded once each, and no program waits for another's end.
    blocks_per_program = triton.cdiv(blocks, min(blocks, max(1, NUM_SMS // lines)))
    head_product_resident_kernel[(lines * triton.cdiv(blocks, blocks_per_program),)](
        _rows(x, tiles.block_k),
        TensorDescriptor(w, [heads * n, k], [k, 1], [128, tiles.block_k], _layout(128, tiles.block_k)),
        _rows(out, 128),
        x, out, cos_sin, positions, num_tokens, 0 if cos_sin is None else cos_sin.shape[0], blocks_per_program,
        x.stride(0), x.stride(1), out.stride(0), out.stride(1), heads,
        K=k, N=n, HALF=rope // 2, BLOCK_K=tiles.block_k, BLOCK_N=tiles.block_n, STAGES=tiles.num_stages,
        num_warps=tiles.num_warps, enable_fp_fusion=False,
    )  # fmt: skip


def _rows(x: Tensor, width: int) -> TensorDescriptor:
    """Tokens by all columns of all heads, in blocks of 64 tokens and width columns."""
    columns = (x.shape[1] - 1) * x.stride(1) + x.shape[2]
    return TensorDescriptor(x, [x.shape[0], columns], [x.stride(0), 1], [64, width], _layout(64, width))


@cache
def _layout(rows: int, columns: int) -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout.get_default_for([rows, columns], gl.bfloat16)


def descriptor_types(tiles: HopperAbsorbTiles | HopperUpProjectTiles) -> dict[str, str]:
    """How the compiler spells the types of the descriptors that launch() makes."""

    def descriptor(rows: int, columns: int) -> str:
        return f"tensordesc<bf16[{rows}, {columns}],{_layout(rows, columns)!r}>"

    return {
        "x_desc": descriptor(64, tiles.block_k),
        "w_desc": descriptor(128, tiles.block_k),
        "out_desc": descriptor(64, 128),
    }
