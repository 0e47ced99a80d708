"""block_gemm for many tokens, tiles of 128 x 192: two warpgroups multiply 64 tokens each, one loads.

192 columns are 128 and 64: the product of one part runs while the other's is added, which two products of 128 columns
have no registers for. A tile of 192 shares out some widths with less left over than tiles of 128 or 256 do (2112, what
the layer's first projection has, is 11 times 192), at less traffic than tiles of 128 x 128.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

from mlaprof.kernels.hopper.block_gemm_wide import GROUP, add_scaled, send, tile_at
from mlaprof.kernels.hopper.renamed import meet, tma_load

BLOCK_M = gl.constexpr(128)
WIDE = gl.constexpr(128)
NARROW = gl.constexpr(64)
LANES = gl.constexpr(
    32
)  # floats of a weight scale's room, of which the first is used: they are stored a warp at a time


@gluon.jit
def _columns(tile_n):
    """First columns of a tile's two parts: every second tile has the narrow one first.

    So neither part ever straddles two blocks of 128 weight rows, which have a scale each.
    """
    odd = tile_n % 2
    return tile_n * (WIDE + NARROW) + odd * NARROW, tile_n * (WIDE + NARROW) + (1 - odd) * WIDE


@gluon.jit
def _next(stage, phase, STAGES: gl.constexpr):
    stage += 1
    wrap = (stage == STAGES).to(gl.int32)
    return stage * (1 - wrap), phase ^ wrap


@gluon.jit
def _load_blocks(
    a_desc, wide_desc, narrow_desc, a_scale_desc, b_scale_ptr, a_blocks, wide_blocks, narrow_blocks, scales, weights,
    full, empty, num_m, num_n, n, num_blocks, a_scale_stride, b_scale_stride, STAGES: gl.constexpr,
):  # fmt: skip
    """Weight scales too, one block ahead: those that multiply would wait for them before each product."""
    lane = gl.arange(0, LANES, gl.BlockedLayout([1], [32], [4], [0]))
    stage = 0
    phase = 1  # a barrier never waited for counts as passed in the other phase
    for tile in range(gl.program_id(0), num_m * num_n, gl.num_programs(0)):
        tile_m, tile_n = tile_at(tile, num_m, num_n)
        wide_col, narrow_col = _columns(tile_n)
        # Of the last tile either part may lie beyond n, where no scale is.
        wide_scales = b_scale_ptr + gl.minimum(wide_col, n - 1) // GROUP * b_scale_stride + lane
        narrow_scales = b_scale_ptr + gl.minimum(narrow_col, n - 1) // GROUP * b_scale_stride + lane
        wide_scale = gl.load(wide_scales, mask=lane < num_blocks)
        narrow_scale = gl.load(narrow_scales, mask=lane < num_blocks)
        for block in range(num_blocks):
            ready = full.index(stage)
            mbarrier.wait(empty.index(stage), phase)
            weights.index(2 * stage).store(wide_scale)
            weights.index(2 * stage + 1).store(narrow_scale)
            meet()  # all have stored before the barrier hears of it
            mbarrier.expect(ready, (BLOCK_M + WIDE + NARROW) * GROUP + 4 * BLOCK_M)
            tma_load(a_scale_desc, [block * a_scale_stride + tile_m * BLOCK_M], ready, scales.index(stage))
            tma_load(a_desc, [tile_m * BLOCK_M, block * GROUP], ready, a_blocks.index(stage))
            tma_load(wide_desc, [wide_col, block * GROUP], ready, wide_blocks.index(stage))
            tma_load(narrow_desc, [narrow_col, block * GROUP], ready, narrow_blocks.index(stage))
            ahead = block + 1
            wide_scale = gl.load(wide_scales + ahead, mask=lane + ahead < num_blocks)
            narrow_scale = gl.load(narrow_scales + ahead, mask=lane + ahead < num_blocks)
            stage, phase = _next(stage, phase, STAGES)


@gluon.jit
def _product(a_blocks, b_blocks, stage, PART: gl.constexpr):
    BLOCK_N: gl.constexpr = b_blocks.shape[1]
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 32])
    a = a_blocks.index(stage).slice(PART * 64, 64)
    b = b_blocks.index(stage).permute((1, 0))
    return warpgroup_mma(a, b, gl.zeros([64, BLOCK_N], gl.float32, mma), use_acc=False, is_async=True)


@gluon.jit
def _scale(scales, weights, stage, PART: gl.constexpr, AT: gl.constexpr, BLOCK_N: gl.constexpr):
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 32])
    column: gl.constexpr = gl.SliceLayout(1, mma)
    weight = weights.index(2 * stage + AT).slice(0, 1).load(column)
    return scales.index(stage).slice(PART * 64, 64).load(column) * weight


@gluon.jit
def _add(total, product, scale, OUTSTANDING: gl.constexpr):
    part = warpgroup_mma_wait(OUTSTANDING, deps=[product])
    return add_scaled(total, part, scale[:, None])


@gluon.jit
def _multiply_blocks(
    wide_out_desc, narrow_out_desc, a_blocks, wide_blocks, narrow_blocks, scales, weights, wide_out, narrow_out,
    full, empty, num_m, num_n, num_blocks, PART: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Two blocks a turn; after the second nothing runs, since ptxas knows no product that a loop carries."""
    wide_total_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDE, 32])
    narrow_total_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, NARROW, 32])
    stage = 0
    phase = 0
    for tile in range(gl.program_id(0), num_m * num_n, gl.num_programs(0)):
        tile_m, tile_n = tile_at(tile, num_m, num_n)
        wide_col, narrow_col = _columns(tile_n)
        wide_total = gl.zeros([64, WIDE], gl.float32, wide_total_layout)
        narrow_total = gl.zeros([64, NARROW], gl.float32, narrow_total_layout)
        for _ in range(num_blocks // 2):
            mbarrier.wait(full.index(stage), phase)
            wide = _product(a_blocks, wide_blocks, stage, PART)
            wide_scale = _scale(scales, weights, stage, PART, 0, WIDE)
            narrow = _product(a_blocks, narrow_blocks, stage, PART)
            narrow_scale = _scale(scales, weights, stage, PART, 1, NARROW)
            wide_total = _add(wide_total, wide, wide_scale, 1)
            first = stage
            stage, phase = _next(stage, phase, STAGES)
            mbarrier.wait(full.index(stage), phase)
            wide = _product(a_blocks, wide_blocks, stage, PART)
            wide_scale = _scale(scales, weights, stage, PART, 0, WIDE)
            part = warpgroup_mma_wait(1, deps=[narrow])
            mbarrier.arrive(empty.index(first), count=1)
            narrow_total = add_scaled(narrow_total, part, narrow_scale[:, None])
            narrow = _product(a_blocks, narrow_blocks, stage, PART)
            narrow_scale = _scale(scales, weights, stage, PART, 1, NARROW)
            wide_total = _add(wide_total, wide, wide_scale, 1)
            part = warpgroup_mma_wait(0, deps=[narrow])
            mbarrier.arrive(empty.index(stage), count=1)
            narrow_total = add_scaled(narrow_total, part, narrow_scale[:, None])
            stage, phase = _next(stage, phase, STAGES)
        for _ in range(num_blocks % 2):
            mbarrier.wait(full.index(stage), phase)
            wide = _product(a_blocks, wide_blocks, stage, PART)
            wide_scale = _scale(scales, weights, stage, PART, 0, WIDE)
            narrow = _product(a_blocks, narrow_blocks, stage, PART)
            narrow_scale = _scale(scales, weights, stage, PART, 1, NARROW)
            wide_total = _add(wide_total, wide, wide_scale, 1)
            part = warpgroup_mma_wait(0, deps=[narrow])
            mbarrier.arrive(empty.index(stage), count=1)
            narrow_total = add_scaled(narrow_total, part, narrow_scale[:, None])
            stage, phase = _next(stage, phase, STAGES)
        row = tile_m * BLOCK_M + PART * 64
        tma.store_wait(0)
        send(wide_out_desc, wide_out, wide_total.to(gl.bfloat16), row, wide_col)
        send(narrow_out_desc, narrow_out, narrow_total.to(gl.bfloat16), row, narrow_col)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["m", "n", "num_blocks", "a_scale_stride", "b_scale_stride"])
def block_gemm_uneven_kernel(
    a_desc,  # [m, k] e4m3, 128 x 128
    wide_desc,  # [n, k] e4m3, 128 x 128
    narrow_desc,  # [n, k] e4m3, 64 x 128
    a_scale_desc,  # fp32, one column of [m, k / 128] after the other; 128
    wide_out_desc,  # [m, n] bf16, 64 x 128
    narrow_out_desc,  # [m, n] bf16, 64 x 64
    b_scale_ptr,  # [ceil(n / 128), k / 128] fp32
    m,
    n,
    num_blocks,  # k / 128
    a_scale_stride,
    b_scale_stride,
    STAGES: gl.constexpr,
):
    num_m = (m + BLOCK_M - 1) // BLOCK_M
    num_n = (n + WIDE + NARROW - 1) // (WIDE + NARROW)
    a_blocks = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, BLOCK_M, GROUP], a_desc.layout)
    wide_blocks = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, WIDE, GROUP], wide_desc.layout)
    narrow_blocks = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, NARROW, GROUP], narrow_desc.layout)
    scales = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_M], a_scale_desc.layout)
    weights = gl.allocate_shared_memory(gl.float32, [2 * STAGES, LANES], a_scale_desc.layout)
    wide_outs = gl.allocate_shared_memory(gl.bfloat16, [2, 64, WIDE], wide_out_desc.layout)
    narrow_outs = gl.allocate_shared_memory(gl.bfloat16, [2, 64, NARROW], narrow_out_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    gl.warp_specialize(
        [
            (_load_blocks, (
                a_desc, wide_desc, narrow_desc, a_scale_desc, b_scale_ptr, a_blocks, wide_blocks, narrow_blocks,
                scales, weights, full, empty, num_m, num_n, n, num_blocks, a_scale_stride, b_scale_stride, STAGES)),
            (_multiply_blocks, (
                wide_out_desc, narrow_out_desc, a_blocks, wide_blocks, narrow_blocks, scales, weights,
                wide_outs.index(0), narrow_outs.index(0), full, empty, num_m, num_n, num_blocks,
                gl.constexpr(0), STAGES)),
            (_multiply_blocks, (
                wide_out_desc, narrow_out_desc, a_blocks, wide_blocks, narrow_blocks, scales, weights,
                wide_outs.index(1), narrow_outs.index(1), full, empty, num_m, num_n, num_blocks,
                gl.constexpr(1), STAGES)),
        ],
        [4, 4],
        [240, 240],
    )  # fmt: skip
