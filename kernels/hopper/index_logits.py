"""Indexer scores of packed keys on Hopper: warp groups that multiply and sum, beside a warp that only fetches.

A warp group owns a few queries with all their heads: its weights stay in registers, its queries in shared memory, and
the keys that stream past are shared by all groups of the program. While one group sums heads, the products of others
keep the tensor cores busy: what decides the speed is how few instructions a group spends beside one maximum and one
multiply-add a score.
"""

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from mlaprof.kernels.hopper.renamed import tma_load
from mlaprof.kernels.tiles.hopper_index_logits import HopperIndexLogitsTiles, padded, queries_of_group
from mlaprof.kernels.tiles.limits import NUM_SMS

DIM = gl.constexpr(128)
CONSUMERS = gl.constexpr(4)  # warp groups that multiply
TILE = gl.constexpr(64)  # keys of one product: rows of a warp group
QUERY_SLOTS = gl.constexpr(2)  # the next queries arrive while the last are in use
FIRST_WARPS = 4  # of the first consumer; the others and the producer come beside it
SPAN_UNIT = 64  # keys of a part are a multiple of this
KEYS_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=2)
QUERIES_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=8, rank=3)
REGISTERS = gl.constexpr(112)  # of a consumer's thread; the producer leaves it what it does not need


@gluon.jit
def _uniform(x):
    """x, known to the compiler to be one value a warp: what follows from it then costs no vector registers."""
    return gl.inline_asm_elementwise(
        "shfl.sync.idx.b32 $0, $1, 0, 31, -1;", "=r,r", [x], dtype=gl.int32, is_pure=True, pack=1
    )


@gluon.jit
def _unit_of(turn, num_units):
    """The turn-th unit of this program, negative past the first: there and back over all programs, the last rows first.

    Under causal bounds rows grow with their number; so long units start first, and each program gets short ones too.
    """
    here = gl.program_id(0)
    count = gl.num_programs(0)
    place = gl.where(turn % 2 == 0, here, count - 1 - here)
    return num_units - 1 - (turn * count + place)


@gluon.jit
def _keys_of(unit, ks_ptr, ke_ptr, n, m, num_spans, span_keys, QUERIES: gl.constexpr):
    """(first, past) of the unit's keys that some row of it sees; first a multiple of 8, so that stores fill sectors."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    row = unit // num_spans * QUERIES + gl.arange(0, QUERIES, layout)
    ks = gl.load(ks_ptr + row, mask=row < n, other=m)
    ke = gl.load(ke_ptr + row, mask=row < n, other=0)
    begin = unit % num_spans * span_keys
    first = gl.maximum(gl.min(ks, 0), begin) // 8 * 8
    past = gl.minimum(gl.minimum(gl.max(ke, 0), m), begin + span_keys)
    return _uniform(first), _uniform(past)


@gluon.jit
def _produce(
    HEADS: gl.constexpr,
    OWN: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    sources,
    units,
    buffers,
):
    """Fetch what the consumers will ask for, in their order."""
    q_desc, k_desc, ks_ptr, ke_ptr, n, m = sources
    num_spans, span_keys, num_units = units
    queries, keys, q_full, q_empty, k_full, k_empty = buffers
    QUERIES: gl.constexpr = OWN * CONSUMERS
    filled = 0
    served = 0
    for turn in range(gl.cdiv(num_units, gl.num_programs(0))):
        unit = _unit_of(turn, num_units)
        if unit >= 0:
            first, past = _keys_of(unit, ks_ptr, ke_ptr, n, m, num_spans, span_keys, QUERIES)
            if first < past:
                for consumer in gl.static_range(CONSUMERS):
                    slot = served % QUERY_SLOTS * CONSUMERS + consumer
                    mbarrier.wait(q_empty.index(slot), (served // QUERY_SLOTS & 1) ^ 1)
                    mbarrier.expect(q_full.index(slot), OWN * HEADS * DIM)
                    own = unit // num_spans * QUERIES + consumer * OWN
                    tma_load(q_desc, [own, 0, 0], q_full.index(slot), queries.index(slot))
                served += 1
                for start in range(first, past, BLOCK_N):
                    stage = filled % STAGES
                    mbarrier.wait(k_empty.index(stage), (filled // STAGES & 1) ^ 1)
                    mbarrier.expect(k_full.index(stage), BLOCK_N * DIM)
                    tma_load(k_desc, [start, 0], k_full.index(stage), keys.index(stage))
                    filled += 1


@gluon.jit
def _sum_quads(a, b, c, d):
    """Each of four values summed over the four threads of a quad; its threads keep those of a, b, c and d."""
    return gl.inline_asm_elementwise(
        """{
        .reg .pred odd, high;
        .reg .b32 lane, bit, give, keep, give2, keep2;
        mov.u32 lane, %laneid;
        and.b32 bit, lane, 1;
        setp.ne.u32 odd, bit, 0;
        and.b32 bit, lane, 2;
        setp.ne.u32 high, bit, 0;
        selp.b32 give, $1, $2, odd;
        selp.b32 keep, $2, $1, odd;
        shfl.sync.bfly.b32 give, give, 1, 31, -1;
        add.f32 keep, keep, give;
        selp.b32 give2, $3, $4, odd;
        selp.b32 keep2, $4, $3, odd;
        shfl.sync.bfly.b32 give2, give2, 1, 31, -1;
        add.f32 keep2, keep2, give2;
        selp.b32 give, keep, keep2, high;
        selp.b32 bit, keep2, keep, high;
        shfl.sync.bfly.b32 give, give, 2, 31, -1;
        add.f32 $0, bit, give;
        }""",
        "=f,f,f,f,f",
        [a, b, c, d],
        dtype=gl.float32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def _head_sums(acc, weights, OWN: gl.constexpr, HEADS: gl.constexpr):
    """[128, OWN / 2]: thread 32 w + 4 g + t has the sums of key 16 w + 8 (t / 2) + g and queries 2 j + t % 2.

    The accumulator's quads of threads share 8 columns a step: each thread sums its own columns first, one maximum and
    one multiply-add a score, and only four sums a pair of queries travel. One thread then stores one score.
    """
    dots = gl.maximum(acc, 0.0) * weights[None, :]
    columns = gl.permute(gl.reshape(dots, [TILE, OWN, HEADS // 8, 4, 2]), (0, 1, 3, 2, 4))
    sums = gl.sum(gl.reshape(columns, [TILE, OWN, 4, HEADS // 4]), 3)
    halves = gl.permute(gl.reshape(sums, [4, 2, 8, OWN // 2, 2, 4]), (0, 2, 5, 3, 4, 1))
    low, high = gl.split(halves)
    a, b = gl.split(low)
    c, d = gl.split(high)
    return gl.reshape(_sum_quads(a, b, c, d), [128, OWN // 2])


@gluon.jit
def _consume(
    consumer: gl.constexpr,
    HEADS: gl.constexpr,
    OWN: gl.constexpr,
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
    inputs,
    units,
    buffers,
):
    """Score the OWN queries of this warp group."""
    k_scale_ptr, weights_ptr, ks_ptr, ke_ptr, logits_ptr, n, m, num_heads, weights_stride, logits_stride = inputs
    num_spans, span_keys, num_units = units
    queries, keys, q_full, q_empty, k_full, k_empty = buffers
    QUERIES: gl.constexpr = OWN * CONSUMERS
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, OWN * HEADS, 32])
    zeros = gl.zeros([TILE, OWN * HEADS], gl.float32, MMA)
    column = gl.arange(0, OWN * HEADS, gl.SliceLayout(0, MMA))
    # Where sums come to lie follows from the accumulator: asked of the compiler once, and nothing of it remains.
    SUMS: gl.constexpr = _head_sums(zeros, gl.zeros_like(column).to(gl.float32), OWN, HEADS).type.layout
    thread = gl.arange(0, 128, gl.SliceLayout(1, SUMS))[:, None]
    key = thread // 32 * 16 + thread % 4 // 2 * 8 + thread % 32 // 4
    pair_of = 2 * gl.arange(0, OWN // 2, gl.SliceLayout(0, SUMS))[None, :]
    beside = pair_of.to(gl.int64) * logits_stride
    filled = 0
    served = 0
    for turn in range(gl.cdiv(num_units, gl.num_programs(0))):
        unit = _unit_of(turn, num_units)
        if unit >= 0:
            own = unit // num_spans * QUERIES + consumer * OWN
            pair_row = own + column // HEADS
            is_pair = (pair_row < n) & (column % HEADS < num_heads)
            weight_rows = weights_ptr + pair_row.to(gl.int64) * weights_stride
            weights = gl.load(weight_rows + column % HEADS, mask=is_pair, other=0.0)
            first, past = _keys_of(unit, ks_ptr, ke_ptr, n, m, num_spans, span_keys, QUERIES)
            if first < past:
                row = own + thread % 2 + pair_of
                ks = gl.maximum(gl.load(ks_ptr + row, mask=row < n, other=0), first)
                ke = gl.maximum(gl.minimum(gl.load(ke_ptr + row, mask=row < n, other=0), past), 0)
                seen_keys = gl.maximum(ke - ks, 0).to(gl.uint32)
                place = first + key - ks
                out = logits_ptr + (own + thread % 2).to(gl.int64) * logits_stride + (first + key)
                scales = k_scale_ptr + (first + key)

                slot = served % QUERY_SLOTS * CONSUMERS + consumer
                mbarrier.wait(q_full.index(slot), served // QUERY_SLOTS & 1)
                pairs = queries.index(slot).reshape([OWN * HEADS, DIM]).permute((1, 0))
                for _ in range(first, past, BLOCK_N):
                    stage = filled % STAGES
                    mbarrier.wait(k_full.index(stage), filled // STAGES & 1)
                    for tile in gl.static_range(BLOCK_N // TILE):
                        acc = warpgroup_mma(
                            keys.index(stage).slice(tile * TILE, TILE, 0), pairs, zeros, use_acc=False, is_async=True
                        )
                        # One unsigned comparison holds both bounds; what no row sees has no scale to read either.
                        seen = place.to(gl.uint32) < seen_keys
                        k_scale = gl.load(scales, mask=seen, other=0.0)
                        acc = warpgroup_mma_wait(0, deps=[acc])
                        if tile == BLOCK_N // TILE - 1:
                            mbarrier.arrive(k_empty.index(stage), count=1)
                        gl.store(out + beside, _head_sums(acc, weights, OWN, HEADS) * k_scale, mask=seen)
                        place += TILE
                        out += TILE
                        scales += TILE
                    filled += 1
                mbarrier.arrive(q_empty.index(slot), count=1)
                served += 1


@gluon.jit(do_not_specialize=["n", "m", "num_spans", "span_keys", "num_units"])
def index_logits_kernel(
    q_desc,  # [n, num_heads, DIM] e4m3, blocks of [OWN, HEADS, DIM]
    k_desc,  # [m, DIM] e4m3, blocks of [BLOCK_N, DIM]
    k_scale_ptr,  # [m] fp32
    weights_ptr,  # [n, num_heads] fp32
    ks_ptr,  # [n] int32
    ke_ptr,  # [n] int32
    logits_ptr,  # [n, m] fp32
    n,
    m,
    num_heads,
    weights_stride,
    logits_stride,
    num_spans,  # parts that the keys are cut into
    span_keys,  # keys of a part, a multiple of 8
    num_units,  # groups of queries times parts of keys
    HEADS: gl.constexpr,  # num_heads, padded to 32 or 64
    OWN: gl.constexpr,  # queries of a warp group
    BLOCK_N: gl.constexpr,
    STAGES: gl.constexpr,
):
    SLOTS: gl.constexpr = QUERY_SLOTS * CONSUMERS
    keys = gl.allocate_shared_memory(gl.float8e4nv, [STAGES, BLOCK_N, DIM], k_desc.layout)
    queries = gl.allocate_shared_memory(gl.float8e4nv, [SLOTS, OWN, HEADS, DIM], q_desc.layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    q_full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=CONSUMERS)
    for slot in gl.static_range(SLOTS):
        mbarrier.init(q_full.index(slot), count=1)
        mbarrier.init(q_empty.index(slot), count=1)
    fence_async_shared()

    units = (num_spans, span_keys, num_units)
    buffers = (queries, keys, q_full, q_empty, k_full, k_empty)
    inputs = (k_scale_ptr, weights_ptr, ks_ptr, ke_ptr, logits_ptr, n, m, num_heads, weights_stride, logits_stride)
    sources = (q_desc, k_desc, ks_ptr, ke_ptr, n, m)
    gl.warp_specialize(
        [
            (_consume, (0, HEADS, OWN, BLOCK_N, STAGES, inputs, units, buffers)),
            (_consume, (1, HEADS, OWN, BLOCK_N, STAGES, inputs, units, buffers)),
            (_consume, (2, HEADS, OWN, BLOCK_N, STAGES, inputs, units, buffers)),
            (_consume, (3, HEADS, OWN, BLOCK_N, STAGES, inputs, units, buffers)),
            (_produce, (HEADS, OWN, BLOCK_N, STAGES, sources, units, buffers)),
        ],
        [4, 4, 4, 1],
        [REGISTERS, REGISTERS, REGISTERS, 24],
    )


def launch(
    q: Tensor,
    k: Tensor,
    k_scale: Tensor,
    weights: Tensor,
    ks: Tensor,
    ke: Tensor,
    logits: Tensor,
    tiles: HopperIndexLogitsTiles,
) -> None:
    """Write logits [n, m], whose rows may be apart, from operands that mlaprof.kernels.index_logits has checked."""
    n, num_heads, _ = q.shape
    m = k.shape[0]
    sizes = constants(num_heads, tiles)
    groups = triton.cdiv(n, sizes["OWN"] * tiles.num_warps // 4)
    span_keys = triton.cdiv(m, SPAN_UNIT * tiles.num_spans) * SPAN_UNIT
    num_spans = triton.cdiv(m, span_keys)
    index_logits_kernel[(min(groups * num_spans, NUM_SMS),)](
        TensorDescriptor(q, [n, num_heads, 128], list(q.stride()), [sizes["OWN"], sizes["HEADS"], 128], QUERIES_LAYOUT),
        TensorDescriptor(k, [m, 128], list(k.stride()), [tiles.block_n, 128], KEYS_LAYOUT),
        k_scale,
        weights,
        ks,
        ke,
        logits,
        n,
        m,
        num_heads,
        weights.stride(0),
        logits.stride(0),
        num_spans,
        span_keys,
        groups * num_spans,
        num_warps=FIRST_WARPS,
        **sizes,
    )


def constants(num_heads: int, tiles: HopperIndexLogitsTiles) -> dict[str, int]:
    """What the kernel is compiled for."""
    return {
        "HEADS": padded(num_heads),
        "OWN": queries_of_group(num_heads),
        "BLOCK_N": tiles.block_n,
        "STAGES": tiles.num_stages,
    }


def descriptor_types(num_heads: int, tiles: HopperIndexLogitsTiles) -> dict[str, str]:
    """How the compiler spells the types of the descriptors that launch() makes."""
    queries = f"fp8e4nv[{queries_of_group(num_heads)}, {padded(num_heads)}, 128]"
    return {
        "q_desc": f"tensordesc<{queries},{QUERIES_LAYOUT!r}>",
        "k_desc": f"tensordesc<fp8e4nv[{tiles.block_n}, 128],{KEYS_LAYOUT!r}>",
    }
