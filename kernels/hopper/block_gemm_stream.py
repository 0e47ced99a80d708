"""fp8 product with block scales for few tokens: weights stream past, and every multiprocessor reads its part of k."""

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait
from triton.language.extra.cuda import gdc_wait

from mlaprof.kernels.hopper.renamed import tma_load

GROUP = gl.constexpr(128)


@gluon.jit
def _fetch(
    a_desc, b_desc, a_scale_desc, a_block, b_block, scales, full, first_m, first_n, block, wanted,
    TOKENS: gl.constexpr, BLOCK_N: gl.constexpr, DEPTH: gl.constexpr, SCALES: gl.constexpr,
):  # fmt: skip
    mbarrier.expect(full, (TOKENS + BLOCK_N) * DEPTH * GROUP + 4 * DEPTH * SCALES, pred=wanted)
    tma_load(b_desc, [first_n, block * GROUP], full, b_block, pred=wanted)
    tma_load(a_desc, [first_m, block * GROUP], full, a_block, pred=wanted)
    tma_load(a_scale_desc, [block, first_m], full, scales, pred=wanted)


@gluon.jit
def _product(a_block, b_block, zeros, D: gl.constexpr):
    return warpgroup_mma(
        b_block.slice(D * GROUP, GROUP, 1),
        a_block.slice(D * GROUP, GROUP, 1).permute((1, 0)),
        zeros,
        use_acc=False,
        is_async=True,
    )


@gluon.jit
def _add_scaled(total, part, scales, weight_scale, D: gl.constexpr, OUTSTANDING: gl.constexpr):
    part = warpgroup_mma_wait(OUTSTANDING, deps=[part])
    TOKENS: gl.constexpr = total.shape[1]
    scale = scales.slice(D, 1, 0).slice(0, TOKENS, 1).load(total.type.layout) * weight_scale
    return total + part * scale


@gluon.jit(do_not_specialize=["m", "num_blocks", "b_scale_stride"])
def block_gemm_stream_kernel(
    a_desc,  # [m, k] e4m3, TOKENS x DEPTH * 128
    b_desc,  # [n, k] e4m3, BLOCK_N x DEPTH * 128
    a_scale_desc,  # [k / 128, m] fp32, DEPTH x SCALES
    b_scale_ptr,  # [n / 128, k / 128] fp32
    out_ptr,  # [m, n] bf16, or [SPLITS, m, n] fp32
    m,
    n,
    num_blocks,
    b_scale_stride,
    out_stride,
    TOKENS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    DEPTH: gl.constexpr,
    SPLITS: gl.constexpr,
    STAGES: gl.constexpr,
):
    """The transposed product: 64 weight rows a warpgroup are the tall side, TOKENS of 8 or more the narrow one."""
    WARPS_M: gl.constexpr = BLOCK_N // 16
    WARPS_N: gl.constexpr = gl.num_warps() // WARPS_M
    SCALES: gl.constexpr = TOKENS if TOKENS > 32 else 32
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS_M, WARPS_N], [16, TOKENS // WARPS_N, 32])
    first_n = gl.program_id(0) * BLOCK_N
    split = gl.program_id(1)
    first_m = gl.program_id(2) * TOKENS
    steps = (num_blocks + DEPTH - 1) // DEPTH
    begin = steps * split // SPLITS
    steps = steps * (split + 1) // SPLITS - begin
    begin = begin * DEPTH

    a_blocks = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, TOKENS, DEPTH * GROUP], a_desc.layout)
    b_blocks = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, BLOCK_N, DEPTH * GROUP], b_desc.layout)
    scales = gl.allocate_shared_memory(gl.float32, [STAGES, DEPTH, SCALES], a_scale_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
    for stage in gl.static_range(STAGES):
        _fetch(
            a_desc, b_desc, a_scale_desc, a_blocks.index(stage), b_blocks.index(stage), scales.index(stage),
            full.index(stage), first_m, first_n, begin + stage * DEPTH, stage < steps, TOKENS, BLOCK_N, DEPTH, SCALES,
        )  # fmt: skip
    if SPLITS > 1:
        gl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; // dummy $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )

    b_scale_ptr += first_n // GROUP * b_scale_stride
    last = num_blocks - 1
    weight0 = gl.load(b_scale_ptr + begin)
    weight1 = weight0
    weight2 = weight0
    weight3 = weight0
    if DEPTH > 1:
        weight1 = gl.load(b_scale_ptr + gl.minimum(begin + 1, last))
    if DEPTH > 2:
        weight2 = gl.load(b_scale_ptr + gl.minimum(begin + 2, last))
        weight3 = gl.load(b_scale_ptr + gl.minimum(begin + 3, last))
    zeros = gl.zeros([BLOCK_N, TOKENS], gl.float32, mma)
    total = zeros
    stage = 0
    phase = 0
    for step in range(steps):
        ahead = begin + (step + 1) * DEPTH
        next0 = gl.load(b_scale_ptr + gl.minimum(ahead, last))
        next1 = next0
        next2 = next0
        next3 = next0
        if DEPTH > 1:
            next1 = gl.load(b_scale_ptr + gl.minimum(ahead + 1, last))
        if DEPTH > 2:
            next2 = gl.load(b_scale_ptr + gl.minimum(ahead + 2, last))
            next3 = gl.load(b_scale_ptr + gl.minimum(ahead + 3, last))
        a_block = a_blocks.index(stage)
        b_block = b_blocks.index(stage)
        scale_block = scales.index(stage)
        mbarrier.wait(full.index(stage), phase)
        if DEPTH == 1:
            part0 = _product(a_block, b_block, zeros, 0)
            total = _add_scaled(total, part0, scale_block, weight0, 0, 0)
        elif DEPTH == 2:
            part0 = _product(a_block, b_block, zeros, 0)
            part1 = _product(a_block, b_block, zeros, 1)
            total = _add_scaled(total, part0, scale_block, weight0, 0, 1)
            total = _add_scaled(total, part1, scale_block, weight1, 1, 0)
        else:
            part0 = _product(a_block, b_block, zeros, 0)
            part1 = _product(a_block, b_block, zeros, 1)
            part2 = _product(a_block, b_block, zeros, 2)
            part3 = _product(a_block, b_block, zeros, 3)
            total = _add_scaled(total, part0, scale_block, weight0, 0, 3)
            total = _add_scaled(total, part1, scale_block, weight1, 1, 2)
            total = _add_scaled(total, part2, scale_block, weight2, 2, 1)
            total = _add_scaled(total, part3, scale_block, weight3, 3, 0)
        weight0 = next0
        weight1 = next1
        weight2 = next2
        weight3 = next3
        later = step + STAGES
        _fetch(
            a_desc, b_desc, a_scale_desc, a_block, b_block, scale_block,
            full.index(stage), first_m, first_n, begin + later * DEPTH, later < steps, TOKENS, BLOCK_N, DEPTH, SCALES,
        )  # fmt: skip
        stage += 1
        wrap = (stage == STAGES).to(gl.int32)
        phase = phase ^ wrap
        stage = stage * (1 - wrap)

    WIDTH: gl.constexpr = 16 // (out_ptr.dtype.element_ty.primitive_bitwidth // 8)
    LANES: gl.constexpr = BLOCK_N // WIDTH if BLOCK_N // WIDTH < 32 else 32
    rows_first: gl.constexpr = gl.BlockedLayout([1, WIDTH], [32 // LANES, LANES], [gl.num_warps(), 1], [1, 0])
    turned = gl.convert_layout(gl.permute(total, (1, 0)), rows_first)
    out_m = first_m + gl.arange(0, TOKENS, gl.SliceLayout(1, rows_first))
    out_n = first_n + gl.arange(0, BLOCK_N, gl.SliceLayout(0, rows_first))
    out_ptr += split.to(gl.int64) * m * out_stride
    gl.store(
        out_ptr + out_m.to(gl.int64)[:, None] * out_stride + out_n[None, :],
        turned.to(out_ptr.dtype.element_ty),
        mask=(out_m < m)[:, None] & (out_n < n)[None, :],
    )


@triton.jit
def add_parts_kernel(
    parts_ptr,  # [SPLITS, m, n] fp32
    out_ptr,  # [m, n] bf16
    n,
    total,
    out_stride,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the parts in order, so that the sum is the same bits every time."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    wanted = at < total
    gdc_wait()  # launched before they are there
    sum = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        sum += tl.load(parts_ptr + split * total + at, mask=wanted, other=0.0)
    tl.store(out_ptr + at // n * out_stride + at % n, sum.to(tl.bfloat16), mask=wanted)
