"""fp8 product with block scales for many tokens: a warpgroup that loads, two that multiply, tile after tile."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from mlaprof.kernels.hopper.renamed import tma_load, tma_store

GROUP = gl.constexpr(128)  # scales: one per token and 128 of k, one per 128 x 128 weights
BAND = gl.constexpr(8)  # tiles of tokens that share a stripe of weights before the next stripe begins


@gluon.jit
def tile_at(index, num_m, num_n):
    """The tile with this number: bands of tiles down, all of n across, so that both operands stay in L2."""
    band = index // (BAND * num_n)
    height = gl.minimum(num_m - band * BAND, BAND)
    within = index - band * BAND * num_n
    return band * BAND + within % height, within // height


@gluon.jit
def _load_blocks(
    a_desc,
    b_desc,
    a_scale_desc,
    a_blocks,
    b_blocks,
    scales,
    full,
    empty,
    num_m,
    num_n,
    num_blocks,
    a_scale_stride,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):
    stage = 0
    phase = 1  # a barrier never waited for counts as passed in the other phase
    for tile in range(gl.program_id(0), num_m * num_n, gl.num_programs(0)):
        tile_m, tile_n = tile_at(tile, num_m, num_n)
        for block in range(num_blocks):
            mbarrier.wait(empty.index(stage), phase)
            mbarrier.expect(full.index(stage), (BLOCK_M + BLOCK_N) * GROUP + 4 * BLOCK_M)
            tma_load(a_scale_desc, [block * a_scale_stride + tile_m * BLOCK_M], full.index(stage), scales.index(stage))
            tma_load(a_desc, [tile_m * BLOCK_M, block * GROUP], full.index(stage), a_blocks.index(stage))
            tma_load(b_desc, [tile_n * BLOCK_N, block * GROUP], full.index(stage), b_blocks.index(stage))
            stage += 1
            wrap = (stage == STAGES).to(gl.int32)
            phase = phase ^ wrap
            stage = stage * (1 - wrap)


@gluon.jit
def add_scaled(total, part, scale):
    """total + part * scale, here and now: left to itself LLVM would gather these sums behind the next product, and
    there are no registers to hold two products.

    The three operands are read at full speed only while part and total are in opposite register banks. They are unless
    values of total leave in pairs (a vector store of fp32), whose registers begin at an even number as part's do: sums
    then cost an eighth of the kernel's time more.
    """
    return gl.inline_asm_elementwise(
        "fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f", [part, scale, total], dtype=gl.float32, is_pure=False, pack=1
    )


@gluon.jit
def send(out_desc, out_block, values, row, col):
    """Start writing values; out_block is in use until the store has been waited for."""
    out_block.store(values)
    fence_async_shared()
    tma_store(out_desc, [row, col], out_block)


@gluon.jit
def _store(out_desc, out_block, total, row, col):
    OUT_N: gl.constexpr = out_block.shape[1]
    BLOCK_N: gl.constexpr = total.shape[1]
    result = total.to(gl.bfloat16)
    tma.store_wait(0)
    if OUT_N == BLOCK_N:
        send(out_desc, out_block, result, row, col)
    else:
        left, right = gl.split(gl.permute(gl.reshape(result, [64, 2, OUT_N]), (0, 2, 1)))
        send(out_desc, out_block, left, row, col)
        tma.store_wait(0)
        send(out_desc, out_block, right, row, col + OUT_N)


@gluon.jit
def _multiply_blocks(
    out_desc,
    a_blocks,
    b_blocks,
    scales,
    out_block,
    full,
    empty,
    b_scale_ptr,
    num_m,
    num_n,
    num_blocks,
    b_scale_stride,
    PART: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):
    """One warpgroup's rows of each tile: 64 or 128 of them, 64 at a time."""
    ROWS: gl.constexpr = BLOCK_M // 2
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 32])
    column: gl.constexpr = gl.SliceLayout(1, mma)
    zeros = gl.zeros([64, BLOCK_N], gl.float32, mma)
    stage = 0
    phase = 0
    for tile in range(gl.program_id(0), num_m * num_n, gl.num_programs(0)):
        tile_m, tile_n = tile_at(tile, num_m, num_n)
        weight_ptr = b_scale_ptr + (tile_n * BLOCK_N // GROUP) * b_scale_stride
        top = zeros
        low = zeros
        for block in range(num_blocks):
            weight_scale = gl.load(weight_ptr + block)
            mbarrier.wait(full.index(stage), phase)
            a = a_blocks.index(stage).slice(PART * ROWS, ROWS)
            b = b_blocks.index(stage).permute((1, 0))
            scale = scales.index(stage).slice(PART * ROWS, ROWS)
            part = warpgroup_mma(a.slice(0, 64), b, zeros, use_acc=False, is_async=True)
            top_scale = scale.slice(0, 64).load(column) * weight_scale
            part = warpgroup_mma_wait(0, deps=[part])
            if ROWS == 128:
                top = add_scaled(top, part, top_scale[:, None])
                part = warpgroup_mma(a.slice(64, 64), b, zeros, use_acc=False, is_async=True)
                low_scale = scale.slice(64, 64).load(column) * weight_scale
                part = warpgroup_mma_wait(0, deps=[part])
                mbarrier.arrive(empty.index(stage), count=1)
                low = add_scaled(low, part, low_scale[:, None])
            else:
                mbarrier.arrive(empty.index(stage), count=1)
                top = add_scaled(top, part, top_scale[:, None])
            stage += 1
            wrap = (stage == STAGES).to(gl.int32)
            phase = phase ^ wrap
            stage = stage * (1 - wrap)
        row = tile_m * BLOCK_M + PART * ROWS
        _store(out_desc, out_block, top, row, tile_n * BLOCK_N)
        if ROWS == 128:
            _store(out_desc, out_block, low, row + 64, tile_n * BLOCK_N)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["m", "n", "num_blocks", "a_scale_stride", "b_scale_stride"])
def block_gemm_wide_kernel(
    a_desc,  # [m, k] e4m3, BLOCK_M x 128
    b_desc,  # [n, k] e4m3, BLOCK_N x 128
    a_scale_desc,  # fp32, one column of [m, k / 128] after the other; BLOCK_M
    out_desc,  # [m, n] bf16, 64 x OUT_N
    b_scale_ptr,  # [ceil(n / 128), k / 128] fp32
    m,
    n,
    num_blocks,  # groups of 128 along k
    a_scale_stride,
    b_scale_stride,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    OUT_N: gl.constexpr,
):
    num_m = (m + BLOCK_M - 1) // BLOCK_M
    num_n = (n + BLOCK_N - 1) // BLOCK_N
    a_blocks = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, BLOCK_M, GROUP], a_desc.layout)
    b_blocks = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, BLOCK_N, GROUP], b_desc.layout)
    scales = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_M], a_scale_desc.layout)
    out_blocks = gl.allocate_shared_memory(gl.bfloat16, [2, 64, OUT_N], out_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    gl.warp_specialize(
        [
            (
                _load_blocks,
                (
                    a_desc,
                    b_desc,
                    a_scale_desc,
                    a_blocks,
                    b_blocks,
                    scales,
                    full,
                    empty,
                    num_m,
                    num_n,
                    num_blocks,
                    a_scale_stride,
                    BLOCK_M,
                    BLOCK_N,
                    STAGES,
                ),
            ),
            (
                _multiply_blocks,
                (
                    out_desc,
                    a_blocks,
                    b_blocks,
                    scales,
                    out_blocks.index(0),
                    full,
                    empty,
                    b_scale_ptr,
                    num_m,
                    num_n,
                    num_blocks,
                    b_scale_stride,
                    gl.constexpr(0),
                    BLOCK_M,
                    BLOCK_N,
                    STAGES,
                ),
            ),
            (
                _multiply_blocks,
                (
                    out_desc,
                    a_blocks,
                    b_blocks,
                    scales,
                    out_blocks.index(1),
                    full,
                    empty,
                    b_scale_ptr,
                    num_m,
                    num_n,
                    num_blocks,
                    b_scale_stride,
                    gl.constexpr(1),
                    BLOCK_M,
                    BLOCK_N,
                    STAGES,
                ),
            ),
        ],
        [4, 4],
        [240, 240],
    )
