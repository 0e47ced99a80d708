"""What the warp groups of a sparse attention program do: one gathers, two score, a pair accumulates.

Blocks of 64 rows pass through two slots of shared memory in turns, counted over all tiles of a program; a turn's slot
is its parity, and a barrier of a slot completes once every second turn. Each slot belongs to one scoring group, so that
one computes scores while the other is busy with its softmax. A row has three parts, left and right half of the latent
and rope: the left half is worked on while the right is still on its way, and room for it is given back first.

Rows of a packed cache are decoded on their way (packed_rows), which takes registers: then one group scores both slots.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from mlaprof.kernels.hopper.packed_rows import decode_rows
from mlaprof.kernels.hopper.renamed import copy_async, meet

HEADS = gl.constexpr(64)
KEYS = gl.constexpr(64)
HALF = gl.constexpr(256)
ROPE = gl.constexpr(64)
# A reference below the maximum by up to 2**8 changes no digit: fp32 sums have the range, bf16 weights the same digits.
SLACK = gl.constexpr(8.0)
LN_2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def _copy(shared, rows, there, FIRST: gl.constexpr, WIDTH: gl.constexpr, layout: gl.constexpr):
    """Start copying columns FIRST .. FIRST + WIDTH - 1 of rows; zeros where there is none, and nothing is read."""
    column = FIRST + gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
    mask = there[:, None] & (column >= 0)[None, :]
    copy_async(shared, rows[:, None] + column[None, :], mask=mask)


@gluon.jit
def _list_of(part, indices_ptr, indices_stride, list_rows, LISTS: gl.constexpr):
    """The token that a part of the work is of, and where the row numbers of its list start."""
    token = (part // LISTS).to(gl.int64)
    return token, indices_ptr + token * indices_stride + part % LISTS * list_rows


@gluon.jit
def _bring_queries(q_ptr, group, num_heads, q_stride_h, q_l, q_r, q_p, q_ready):
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    heads = group * HEADS + gl.arange(0, HEADS, gl.SliceLayout(1, layout))
    rows = q_ptr + heads.to(gl.int64) * q_stride_h
    _copy(q_l.index(0), rows, heads < num_heads, 0, HALF, layout)
    _copy(q_r.index(0), rows, heads < num_heads, HALF, HALF, layout)
    _copy(q_p.index(0), rows, heads < num_heads, 2 * HALF, ROPE, layout)
    async_copy.mbarrier_arrive(q_ready, increment_count=False)


@gluon.jit
def gather(operands, LISTS: gl.constexpr):
    """Bring each tile's queries once, then its selected rows block by block."""
    (
        q_ptr, cache_ptr, indices_ptr, num_tiles, num_groups, num_heads, num_rows, list_rows,
        q_stride_t, q_stride_h, cache_stride, indices_stride,
        q_l, q_r, q_p, k_l, k_r, k_p, q_ready, q_free, l_ready, r_ready, l_free, r_free,
    ) = operands  # fmt: skip
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    place = gl.arange(0, KEYS, gl.SliceLayout(1, layout))
    blocks = gl.cdiv(list_rows, KEYS)
    turn = 0
    phase_of_tile = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        token, indices = _list_of(tile // num_groups, indices_ptr, indices_stride, list_rows, LISTS)
        index = gl.load(indices + place, mask=place < list_rows, other=-1)
        mbarrier.wait(q_free, phase_of_tile ^ 1)
        _bring_queries(q_ptr + token * q_stride_t, tile % num_groups, num_heads, q_stride_h, q_l, q_r, q_p, q_ready)
        phase_of_tile ^= 1
        for block in range(blocks):
            there = (index >= 0) & (index < num_rows)
            rows = cache_ptr + gl.where(there, index, 0).to(gl.int64) * cache_stride
            # Row numbers are read one block ahead, so that a free slot is filled at once.
            following = (block + 1) * KEYS + place
            index = gl.load(indices + following, mask=following < list_rows, other=-1)
            slot = turn & 1
            phase = ((turn >> 1) & 1) ^ 1
            mbarrier.wait(l_free.index(slot), phase)
            _copy(k_l.index(slot), rows, there, 0, HALF, layout)
            async_copy.mbarrier_arrive(l_ready.index(slot), increment_count=False)
            mbarrier.wait(r_free.index(slot), phase)
            _copy(k_r.index(slot), rows, there, HALF, HALF, layout)
            _copy(k_p.index(slot), rows, there, 2 * HALF, ROPE, layout)
            async_copy.mbarrier_arrive(r_ready.index(slot), increment_count=False)
            turn += 1


@gluon.jit
def decode(operands, to_decode, LISTS: gl.constexpr):
    """Bring each tile's queries once, then its selected rows of a packed cache block by block."""
    (
        q_ptr, indices_ptr, num_tiles, num_groups, num_heads, list_rows, q_stride_t, q_stride_h, indices_stride,
        q_l, q_r, q_p, q_ready, q_free,
    ) = operands  # fmt: skip
    turn = 0
    phase_of_tile = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        token, indices = _list_of(tile // num_groups, indices_ptr, indices_stride, list_rows, LISTS)
        mbarrier.wait(q_free, phase_of_tile ^ 1)
        _bring_queries(q_ptr + token * q_stride_t, tile % num_groups, num_heads, q_stride_h, q_l, q_r, q_p, q_ready)
        phase_of_tile ^= 1
        turn = decode_rows(to_decode, indices, 0, list_rows, turn)


@gluon.jit
def score(operands, FIRST: gl.constexpr, LISTS: gl.constexpr, STATS: gl.constexpr, PACKED: gl.constexpr):
    """Turn blocks into softmax weights, relative to a reference that all scoring groups carry on.

    Of two groups this one takes the blocks of slot FIRST. Of a packed cache a single one takes all, and reads from
    biases which slots are empty; two read the row numbers themselves.
    """
    GROUPS: gl.constexpr = 1 if PACKED else 2
    (
        indices_ptr, num_tiles, num_groups, num_rows, list_rows, indices_stride, scale_log2,
        q_l, q_r, q_p, k_l, k_r, k_p, biases, pivots, shrinks, totals, last_pivots, peaks,
        q_ready, q_free, l_ready, r_ready, shrink_ready, p_ready, total_ready, total_free,
    ) = operands  # fmt: skip
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, KEYS, 16])
    by_key: gl.constexpr = gl.SliceLayout(0, mma)
    by_head: gl.constexpr = gl.SliceLayout(1, mma)
    key = gl.arange(0, KEYS, by_key)
    blocks = gl.cdiv(list_rows, KEYS)
    first_turn = 0
    phase_of_tile = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        _, indices = _list_of(tile // num_groups, indices_ptr, indices_stride, list_rows, LISTS)
        pivot = gl.full([HEADS], float("-inf"), gl.float32, by_head)
        peak = pivot
        total = gl.full([HEADS], 0.0, gl.float32, by_head)
        mbarrier.wait(q_ready, phase_of_tile)
        for block in range((first_turn + FIRST) % GROUPS, blocks, GROUPS):
            turn = first_turn + block
            phase = (turn >> 1) & 1
            # Always 0, but not to the compiler: the descriptors of 36 products, kept over the loop, would spill.
            zero = turn >> 30
            slot = FIRST if GROUPS == 2 else turn & 1
            block_at = slot + zero
            scores = gl.zeros([HEADS, KEYS], gl.float32, mma)
            mbarrier.wait(l_ready.index(slot), phase)
            fence_async_shared()
            l_keys = k_l.index(block_at).permute((1, 0))
            scores = warpgroup_mma(q_l.index(zero), l_keys, scores, use_acc=False, is_async=True)
            mbarrier.wait(r_ready.index(slot), phase)
            fence_async_shared()
            r_keys = k_r.index(block_at).permute((1, 0))
            scores = warpgroup_mma(q_r.index(zero), r_keys, scores, is_async=True)
            p_keys = k_p.index(block_at).permute((1, 0))
            scores = warpgroup_mma(q_p.index(zero), p_keys, scores, is_async=True)
            if not PACKED:
                # While the products run; before them, the fences would wait for these loads.
                index = gl.load(indices + block * KEYS + key, mask=block * KEYS + key < list_rows, other=-1)
            scores = warpgroup_mma_wait(0, deps=(scores,))
            if PACKED:
                bias = biases.index(slot).load(by_key)
            else:
                bias = gl.where((index >= 0) & (index < num_rows), 0.0, float("-inf"))
            scores = scores * scale_log2 + bias[None, :]
            block_peak = gl.max(scores, 1)

            old = pivot
            if GROUPS == 2:
                # The reference comes from the other group, whose blocks lie between ours.
                mbarrier.wait(shrink_ready.index(1 - FIRST), ((turn - 1) >> 1) & 1, pred=block > 0)
                old = gl.where(block > 0, pivots.index(1 - FIRST).load(by_head), float("-inf"))
            new = gl.where(block_peak > old + SLACK, block_peak, old)
            # While every key so far is empty the reference is -inf, and -inf - -inf is NaN.
            finite = gl.where(new == float("-inf"), 0.0, new)
            shrinks.index(slot).store(gl.exp2(old - finite))
            if GROUPS == 2:
                pivots.index(slot).store(new)
            meet()
            mbarrier.arrive(shrink_ready.index(slot), count=1)
            weights = gl.exp2(scores - finite[:, None])
            # In the place of the rope part, which nothing needs once the scores are there.
            k_p.index(slot).store(weights.to(gl.bfloat16))
            fence_async_shared()
            meet()
            mbarrier.arrive(p_ready.index(slot), count=1)
            total = total * gl.exp2(pivot - finite) + gl.sum(weights, 1)
            pivot = new
            if STATS == 2:
                peak = gl.maximum(peak, block_peak)
        meet()
        mbarrier.arrive(q_free, count=1)
        if GROUPS == 2:
            last_turn = first_turn + blocks - 1
            # When the last block was the other group's, our sum is relative to the reference before it.
            theirs = ((last_turn ^ FIRST) & 1) == 1
            mbarrier.wait(shrink_ready.index(1 - FIRST), (last_turn >> 1) & 1, pred=theirs & (blocks > 0))
            total = total * gl.where(theirs, shrinks.index(1 - FIRST).load(by_head), 1.0)
        mbarrier.wait(total_free, phase_of_tile ^ 1)
        totals.index(FIRST).store(gl.where(pivot == float("-inf"), 0.0, total))
        if STATS >= 1:
            last_pivots.index(FIRST).store(pivot)
        if STATS == 2:
            peaks.index(FIRST).store(peak)
        meet()
        mbarrier.arrive(total_ready, count=1)
        first_turn += blocks
        phase_of_tile ^= 1


@gluon.jit
def _write(out_rows, values, inverse, is_head, FIRST: gl.constexpr, layout: gl.constexpr):
    column = FIRST + gl.arange(0, HALF, gl.SliceLayout(0, layout))
    values = (values * inverse[:, None]).to(out_rows.dtype.element_ty)
    mask = is_head[:, None] & (column >= 0)[None, :]
    gl.store(out_rows[:, None] + column[None, :], gl.convert_layout(values, layout), mask=mask)


@gluon.jit
def accumulate(operands, STATS: gl.constexpr, PACKED: gl.constexpr):
    """Sum weighted rows over the blocks of a tile, divide, and write the result and its statistics."""
    (
        out_ptr, lse_ptr, max_ptr, num_tiles, num_groups, num_heads, list_rows, out_stride_t, out_stride_h,
        k_l, k_r, k_p, shrinks, totals, last_pivots, peaks,
        l_free, r_free, shrink_ready, p_ready, total_ready, total_free,
    ) = operands  # fmt: skip
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, HALF // 2, 16])
    by_head: gl.constexpr = gl.SliceLayout(1, mma)
    # Every warp holds all heads, so that the vote below stays inside a warp.
    by_lane: gl.constexpr = gl.BlockedLayout([2], [32], [gl.num_warps()], [0])
    # Each lane stores 16 bytes of one row.
    by_row: gl.constexpr = gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [0, 2], [0, 4], [8, 0], [0, 32], [0, 64]],
        lane_bases=[[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0], [0, 128]],
        block_bases=[],
        shape=[64, 256],
    )
    blocks = gl.cdiv(list_rows, KEYS)
    turn = 0
    phase_of_tile = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        left = gl.zeros([HEADS, HALF], gl.float32, mma)
        right = gl.zeros([HEADS, HALF], gl.float32, mma)
        for _ in range(blocks):
            slot = turn & 1
            phase = (turn >> 1) & 1
            mbarrier.wait(shrink_ready.index(slot), phase)
            if gl.min(shrinks.index(slot).load(by_lane), 0) < 1.0:
                shrink = shrinks.index(slot).load(by_head)
                left = left * shrink[:, None]
                right = right * shrink[:, None]
            mbarrier.wait(p_ready.index(slot), phase)
            fence_async_shared()
            left = warpgroup_mma(k_p.index(slot), k_l.index(slot), left, is_async=True)
            right = warpgroup_mma(k_p.index(slot), k_r.index(slot), right, is_async=True)
            left, right = warpgroup_mma_wait(1, deps=(left, right))
            meet()
            mbarrier.arrive(l_free.index(slot), count=1)
            left, right = warpgroup_mma_wait(0, deps=(left, right))
            meet()
            mbarrier.arrive(r_free.index(slot), count=1)
            turn += 1
        mbarrier.wait(total_ready, phase_of_tile)
        total = totals.index(0).load(by_head)
        if not PACKED:
            total += totals.index(1).load(by_head)
        part = (tile // num_groups).to(gl.int64)
        heads = (tile % num_groups) * HEADS + gl.arange(0, HEADS, by_head)
        if STATS >= 1:
            pivot = last_pivots.index(0).load(by_head)
            if not PACKED:
                pivot = gl.maximum(pivot, last_pivots.index(1).load(by_head))
            gl.store(lse_ptr + part * num_heads + heads, (pivot + gl.log2(total)) * LN_2, mask=heads < num_heads)
        if STATS == 2:
            peak = peaks.index(0).load(by_head)
            if not PACKED:
                peak = gl.maximum(peak, peaks.index(1).load(by_head))
            gl.store(max_ptr + part * num_heads + heads, peak * LN_2, mask=heads < num_heads)
        meet()
        mbarrier.arrive(total_free, count=1)
        phase_of_tile ^= 1
        inverse = gl.where(total == 0, 0.0, 1.0 / total)
        heads = (tile % num_groups) * HEADS + gl.arange(0, HEADS, gl.SliceLayout(1, by_row))
        out_rows = out_ptr + part * out_stride_t + heads.to(gl.int64) * out_stride_h
        _write(out_rows, left, inverse, heads < num_heads, 0, by_row)
        _write(out_rows, right, inverse, heads < num_heads, HALF, by_row)
