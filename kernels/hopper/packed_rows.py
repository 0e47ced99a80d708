"""What a warp group does that brings rows of a packed cache and leaves them in shared memory as bf16.

A packed row (656 bytes: 512 e4m3 codes, four fp32 scales of 128 codes each, 64 bf16 of rope) is copied asynchronously
to where its decoded half will lie: codes take the first half of that room, so that no room of their own is needed, and
all of them are in registers before the first value is written over them. Copies of one half run while the other is
decoded. Loads that stay in registers from one block to the next would not do: ptxas counts all loads of a loop's next
turn with one counter, so that the first use waits for the last of them.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from mlaprof.kernels.hopper.renamed import copy_async, meet, reinterpret

KEYS = gl.constexpr(64)  # rows of a block
HALF = gl.constexpr(256)  # codes of half a row
ROPE = gl.constexpr(64)
GROUP = gl.constexpr(128)  # codes that share a scale
LATENT = gl.constexpr(512)  # bytes of codes ahead of the scales
SCALES = gl.constexpr(16)  # bytes of scales ahead of the rope part
WARPS = gl.constexpr(4)  # of the group that decodes


@gluon.jit
def packed_views(half):
    """Two blocks' room [2, 64, 256] bf16 as values, two in an int32, and as the codes ahead of them, one and four each.

    Every second row of codes begins 64 bytes on, so that lanes that read two rows meet no bank twice.
    """
    pairs: gl.constexpr = gl.NVMMASharedLayout(128, 32)
    single: gl.constexpr = gl.SwizzledSharedLayout(64, 1, 2, [1, 0])
    fours: gl.constexpr = gl.SwizzledSharedLayout(16, 1, 2, [1, 0])
    values = reinterpret(half, gl.int32, [2, KEYS, HALF // 2], pairs)
    codes = reinterpret(half, gl.uint8, [4, KEYS, HALF], single)
    words = reinterpret(half, gl.int32, [4, KEYS, HALF // 4], fours)
    return values, codes, words


@gluon.jit
def _widen(codes, scales):
    """The bf16 nearest to code times scale: two in an int32 [64, 64] for four codes in an int32 [64, 32]."""
    first, second = gl.inline_asm_elementwise(
        """{
        .reg .b16 c<2>, h<4>;
        .reg .b32 p<2>;
        .reg .f32 f<4>;
        mov.b32 {c0, c1}, $2;
        cvt.rn.f16x2.e4m3x2 p0, c0;
        cvt.rn.f16x2.e4m3x2 p1, c1;
        mov.b32 {h0, h1}, p0;
        mov.b32 {h2, h3}, p1;
        cvt.f32.f16 f0, h0;
        cvt.f32.f16 f1, h1;
        cvt.f32.f16 f2, h2;
        cvt.f32.f16 f3, h3;
        mul.rn.f32 f0, f0, $3;
        mul.rn.f32 f1, f1, $3;
        mul.rn.f32 f2, f2, $3;
        mul.rn.f32 f3, f3, $3;
        cvt.rn.bf16x2.f32 $0, f1, f0;
        cvt.rn.bf16x2.f32 $1, f3, f2;
        }""",
        "=r,=r,r,f",
        [codes, scales[:, None]],
        dtype=(gl.int32, gl.int32),
        is_pure=True,
        pack=1,
    )
    return gl.reshape(gl.join(first, second), [KEYS, GROUP // 2])


@gluon.jit
def _decode(words, values, scales, WHICH: gl.constexpr):
    # Two neighbouring rows and every second 16 bytes of 128 for eight lanes: stores meet no bank twice.
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [8, 4], [WARPS, 1], [1, 0])
    by_row: gl.constexpr = gl.SliceLayout(1, layout)
    codes_0 = words.slice(0, GROUP // 4, dim=1).load(layout)
    codes_1 = words.slice(GROUP // 4, GROUP // 4, dim=1).load(layout)
    scales_0 = scales.index(2 * WHICH).load(by_row)
    scales_1 = scales.index(2 * WHICH + 1).load(by_row)
    meet()  # the values lie over the codes
    values.slice(0, GROUP // 2, dim=1).store(_widen(codes_0, scales_0))
    values.slice(GROUP // 2, GROUP // 2, dim=1).store(_widen(codes_1, scales_1))


@gluon.jit
def _place(cache_ptr, index, num_rows, cache_stride):
    """Where rows start, and whether there is one."""
    there = (index >= 0) & (index < num_rows)
    return cache_ptr + gl.where(there, index, 0).to(gl.int64) * cache_stride, there


@gluon.jit
def _bring(codes, scales, rows, there, scale_rows, scale_there, WHICH: gl.constexpr, layout: gl.constexpr):
    """Start copying half WHICH of the codes and its scales; zeros where a row is not there."""
    column = WHICH * HALF + gl.arange(0, HALF, gl.SliceLayout(0, layout))
    copy_async(codes, rows[:, None] + column[None, :], mask=there[:, None] & (column >= 0)[None, :])
    places = (scale_rows + LATENT + 8 * WHICH).to(gl.pointer_type(gl.float32), bitcast=True)
    copy_async(scales.index(2 * WHICH), places, mask=scale_there)
    copy_async(scales.index(2 * WHICH + 1), places + 1, mask=scale_there)


@gluon.jit
def _bring_rope(k_p, rows, there):
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    places = (rows + LATENT + SCALES).to(gl.pointer_type(gl.bfloat16), bitcast=True)
    places = gl.convert_layout(places, gl.SliceLayout(1, layout))
    there = gl.convert_layout(there, gl.SliceLayout(1, layout))
    column = gl.arange(0, ROPE, gl.SliceLayout(0, layout))
    copy_async(k_p, places[:, None] + column[None, :], mask=there[:, None] & (column >= 0)[None, :])


@gluon.jit
def decode_rows(operands, indices, begin, end, turn):
    """Rows indices[begin .. end - 1], 64 at a time, into two slots in turns; gives the number of the turn after.

    A slot's bias is 0 where a row is there and -inf where none is; it is written before the left half is ready.
    """
    (
        cache_ptr, num_rows, cache_stride, left, right, k_p, scales, biases, l_ready, r_ready, l_free, r_free,
    ) = operands  # fmt: skip
    l_values, l_codes, l_words = left
    r_values, r_codes, r_words = right
    layout: gl.constexpr = gl.BlockedLayout([1, 16], [4, 8], [WARPS, 1], [1, 0])  # 16 bytes a copy
    key = begin + gl.arange(0, KEYS, gl.SliceLayout(1, layout))
    scale_key = begin + gl.arange(0, KEYS, gl.BlockedLayout([1], [32], [WARPS], [0]))
    index = gl.load(indices + key, mask=key < end, other=-1)
    scale_index = gl.load(indices + scale_key, mask=scale_key < end, other=-1)
    if begin < end:
        slot = turn & 1
        phase = ((turn >> 1) & 1) ^ 1
        rows, there = _place(cache_ptr, index, num_rows, cache_stride)
        scale_rows, scale_there = _place(cache_ptr, scale_index, num_rows, cache_stride)
        mbarrier.wait(l_free.index(slot), phase)
        _bring(l_codes.index(2 * slot), scales, rows, there, scale_rows, scale_there, 0, layout)
        async_copy.commit_group()
        mbarrier.wait(r_free.index(slot), phase)
        _bring(r_codes.index(2 * slot), scales, rows, there, scale_rows, scale_there, 1, layout)
        _bring_rope(k_p.index(slot), rows, there)
        async_copy.commit_group()
        biases.index(slot).store(gl.where(scale_there, 0.0, float("-inf")))
    # Row numbers are read one block ahead of the rows.
    index = gl.load(indices + KEYS + key, mask=KEYS + key < end, other=-1)
    scale_index = gl.load(indices + KEYS + scale_key, mask=KEYS + scale_key < end, other=-1)
    for start in range(begin, end, KEYS):
        slot = turn & 1
        turn += 1
        following = turn & 1
        phase = ((turn >> 1) & 1) ^ 1
        rows, there = _place(cache_ptr, index, num_rows, cache_stride)
        scale_rows, scale_there = _place(cache_ptr, scale_index, num_rows, cache_stride)
        ahead = start - begin + 2 * KEYS
        index = gl.load(indices + ahead + key, mask=ahead + key < end, other=-1)
        scale_index = gl.load(indices + ahead + scale_key, mask=ahead + scale_key < end, other=-1)
        async_copy.wait_group(1)
        meet()
        _decode(l_words.index(2 * slot), l_values.index(slot), scales, 0)
        meet()
        mbarrier.arrive(l_ready.index(slot), count=1)
        if start + KEYS < end:
            mbarrier.wait(l_free.index(following), phase)
            _bring(l_codes.index(2 * following), scales, rows, there, scale_rows, scale_there, 0, layout)
            biases.index(following).store(gl.where(scale_there, 0.0, float("-inf")))
        async_copy.commit_group()
        async_copy.wait_group(1)
        meet()
        _decode(r_words.index(2 * slot), r_values.index(slot), scales, 1)
        meet()
        mbarrier.arrive(r_ready.index(slot), count=1)
        if start + KEYS < end:
            mbarrier.wait(r_free.index(following), phase)
            _bring(r_codes.index(2 * following), scales, rows, there, scale_rows, scale_there, 1, layout)
            _bring_rope(k_p.index(following), rows, there)
        async_copy.commit_group()
    return turn
