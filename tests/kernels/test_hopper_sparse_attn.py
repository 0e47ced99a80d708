"""Sparse attention on Hopper for many tokens: what it compiles to anywhere, and its answers on a GPU."""

from __future__ import annotations

import logging
import random
import re

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from mlaprof.kernels import reference
from mlaprof.kernels.cubin import read_cubin
from mlaprof.kernels.reference import TOLERANCE, mismatch
from mlaprof.kernels.sparse_attn import sparse_attn
from mlaprof.kernels.tiles import SHARED_LIMIT_BYTES, Dims
from mlaprof.kernels.tiles import hopper_sparse_attn as form
from mlaprof.kernels.tiles.hopper_sparse_attn import HopperSparseAttnTiles
from mlaprof.kernels.work import Work
from mlaprof.kernels.work.sparse_attn import FP8_ROW_BYTES
from mlaprof.kernels.work.sparse_attn import sparse_attn as work
from tests.kernels.packed import packed_pool

SCALE = 0.1352
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
DIMS = Dims(128, 512, 64, 64, 128, 2048)
SINCE_3_9 = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 9)  # spills more
PERSISTENT = HopperSparseAttnTiles(1)
NUM_ROWS = 6000  # of which the first half is used


@pytest.mark.parametrize("packed", [False, True])
def test_compiles_for_hopper(packed):
    """Warp-group products of the widths meant, rows by 16-byte copies, and next to nothing spilled."""
    from mlaprof.kernels.hopper.source import GluonASTSource
    from mlaprof.kernels.hopper.sparse_attn import sparse_attn_hopper_kernel as kernel

    constants = {"LISTS": 1, "STATS": 2, "PACKED": packed}
    types = {"q_ptr": "*bf16", "cache_ptr": "*u8" if packed else "*bf16", "indices_ptr": "*i32", "out_ptr": "*bf16"}
    types |= {"lse_ptr": "*fp32", "max_ptr": "*fp32", "scale_log2": "fp32"}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    place = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    aligned = set(signature) - set(constants) - {"scale_log2", "num_tiles", "num_groups", "num_rows"}
    compiled = triton.compile(
        GluonASTSource(
            fn=kernel,
            signature=signature,
            constexprs={place[name]: value for name, value in constants.items()},
            attrs={place[name]: [["tt.divisibility", 16]] for name in aligned},
        ),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": form.default(DIMS).num_warps},
    )
    ptx = compiled.asm["ptx"]
    scorers = 1 if packed else 2
    assert len(re.findall(r"wgmma\.mma_async\S+m64n64k16", ptx)) == scorers * 36
    assert len(re.findall(r"wgmma\.mma_async\S+m64n128k16", ptx)) == 8
    copies = 36 + 2 * 20 if packed else 2 * 36  # queries, then rows: the first and the following
    assert len(re.findall(r"cp\.async\.cg\.shared\.global \[[^\n]*0x10", ptx)) == copies
    assert read_cubin(compiled.asm["cubin"]).stack_bytes <= (80 if SINCE_3_9 else 32)  # words that no loop changes
    assert compiled.metadata.shared <= form.shared_bytes(form.default(DIMS), DIMS) <= SHARED_LIMIT_BYTES


def test_programs_of_a_launch():
    """At most one a multiprocessor, or one a tile."""
    assert [HopperSparseAttnTiles(1).programs(n) for n in (1, 131, 4096)] == [1, 131, 132]
    assert HopperSparseAttnTiles(0).programs(4096) == 4096


@pytest.mark.parametrize(
    "dims,reason",
    [
        (Dims(128, 512, 64, 64, 128, 2048), None),
        (Dims(40, 512, 64, 64, 128, 2048), None),
        (Dims(16, 512, 64, 64, 128, 2048), "num_heads: 16 of 64 rows a tile would work; use the portable form"),
        (Dims(128, 256, 64, 64, 128, 2048), "rows of 256 [+] 64 values are not 512 [+] 64; use the portable form"),
    ],
)
def test_what_does_not_fit_is_said(dims, reason):
    """Each refusal carries a remedy."""
    wrong = form.problem(form.default(dims), dims)
    assert wrong is None if reason is None else re.search(reason, wrong or "")


def test_work_is_counted_as_the_peers_count():
    """Every gather of a prefill, each distinct row of a decode; queries and results once."""
    prefill = work(4096, 64, 2048)
    assert prefill == Work(
        flops=2 * 4096 * 2048 * 64 * (576 + 512), bytes=4096 * 2048 * 1152 + 4096 * 64 * (576 + 512) * 2
    )
    decode = work(64, 128, 2048, row_bytes=FP8_ROW_BYTES, rows_read=1000)
    assert decode.bytes == 1000 * 656 + 64 * 128 * (576 + 512) * 2


def make_operands(num_tokens: int, num_heads: int, topk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slices of wider buffers; every kind of empty slot; NaN in the unused half of the pool and beside its rows."""
    seed = random.randrange(2**31)
    logging.getLogger(__name__).warning("seed %d", seed)
    g = torch.Generator("cuda").manual_seed(seed)
    q = torch.randn(num_tokens, num_heads, 640, device="cuda", generator=g).bfloat16()[..., :576]
    pool = torch.full((NUM_ROWS, 704), float("nan"), device="cuda", dtype=torch.bfloat16)
    pool[: NUM_ROWS // 2, 64:640] = torch.randn(NUM_ROWS // 2, 576, device="cuda", generator=g).bfloat16()
    shape = (num_tokens, topk + 32)
    indices = torch.randint(0, NUM_ROWS // 2, shape, device="cuda", generator=g, dtype=torch.int32)[:, :topk]
    indices[:, 4::5] = INT_MIN
    if topk > 8:
        indices[0, 1:8] = torch.tensor([-1, NUM_ROWS, NUM_ROWS + 1, INT_MAX, -64, 5, 5], device="cuda")
    indices[-1, : topk // 2] = -1
    if len(indices) > 2:
        indices[len(indices) // 2] = NUM_ROWS
        indices[1, topk // 2 :] = -1
    return q, pool[:, 64:640], indices


def check(
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    tiles: HopperSparseAttnTiles = PERSISTENT,
    stats: bool = True,
    packed: bool = False,
) -> None:
    out = torch.full((len(indices), q.shape[1] + 1, 512), float("nan"), device="cuda", dtype=torch.bfloat16)[:, 1:]
    lse, largest = (torch.full(out.shape[:2], float("nan"), device="cuda") for _ in range(2))
    statistics = {"lse": lse, "max_logits": largest} if stats else {}
    pool, cache = packed_pool(cache) if packed else (cache, cache)
    sparse_attn(q, pool, indices, SCALE, tiles, out=out, **statistics)
    some = torch.linspace(0, len(indices) - 1, 40, device="cuda").long().unique()
    some = torch.cat([some, torch.tensor([1, len(indices) // 2], device="cuda") % len(indices)])
    q, indices = q[some], indices[some]
    want = torch.empty(len(some), q.shape[1], 512, device="cuda", dtype=torch.bfloat16)
    reference.sparse_attn(q, cache, indices, SCALE, out=want)
    assert not bool(out.isnan().any())
    assert mismatch(want, out[some], TOLERANCE[torch.bfloat16]) is None
    if stats:
        valid = (indices >= 0) & (indices < len(cache))
        rows = torch.where(valid[..., None], cache[indices.long().clamp(0, len(cache) - 1)], 0.0).float()
        scores = torch.where(valid[:, None], q.float() @ rows.mT * SCALE, -torch.inf)
        assert mismatch(scores.logsumexp(-1), lse[some], TOLERANCE[torch.bfloat16]) is None
        assert mismatch(scores.amax(-1), largest[some], TOLERANCE[torch.bfloat16]) is None


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "num_tokens,num_heads,topk,lists",
    [(300, 128, 2048, 1), (1, 64, 2048, 1), (133, 64, 512, 1), (290, 80, 192, 1), (70, 64, 640, 2), (5, 128, 2048, 8)],
)
@pytest.mark.parametrize("persistent", [0, 1])
def test_full_size_on_the_gpu(num_tokens, num_heads, topk, lists, persistent, packed):
    """Values and statistics, also when a token's rows are shared out in lists."""
    check(*make_operands(num_tokens, num_heads, topk), tiles=HopperSparseAttnTiles(persistent, lists), packed=packed)


@pytest.mark.gpu
@pytest.mark.parametrize("lists", [1, 2])
def test_packed_rows_give_the_same_bits_each_time_on_the_gpu(lists):
    """With every multiprocessor busy, where a fence or a barrier too few would show."""
    pool, _ = packed_pool(torch.randn(1 << 16, 576, device="cuda").bfloat16())
    q = torch.randn(64, 128, 576, device="cuda").bfloat16()
    indices = torch.randint(0, 1 << 16, (64, 2048), device="cuda", dtype=torch.int32)
    outs = [torch.full((64, 128, 512), float("nan"), device="cuda").bfloat16() for _ in range(40)]
    for out in outs:
        sparse_attn(q, pool, indices, SCALE, HopperSparseAttnTiles(1, lists), out=out)
    assert all(torch.equal(out.view(torch.int16), outs[0].view(torch.int16)) for out in outs)


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("topk", [1, 63, 64, 65, 128, 190, 1000])
def test_any_topk_on_the_gpu(topk, packed):
    """One block a tile, an odd number of them, a block partly filled: the slots go round over tiles all the same."""
    check(*make_operands(500, 64, topk), packed=packed)


@pytest.mark.gpu
@pytest.mark.parametrize("falling", [False, True])
def test_scores_that_grow_on_the_gpu(falling):
    """The reference follows a maximum that rises by far more than its slack, and ignores one that falls."""
    q, cache, indices = make_operands(150, 64, 1024)
    q = q.abs() * 4
    indices = indices.sort(-1, descending=falling).values
    cache[: NUM_ROWS // 2] = (cache[: NUM_ROWS // 2] + torch.linspace(-1, 1, NUM_ROWS // 2, device="cuda")[:, None]) / 2
    check(q, cache, indices)


@pytest.mark.gpu
def test_nothing_to_attend_to_on_the_gpu():
    """No selected rows, an empty pool, and no tokens at all."""
    q, cache, indices = make_operands(3, 64, 64)
    check(q, cache, indices[:, :0], stats=False)
    check(q, cache, indices[:, :0], stats=False, packed=True)
    check(q, cache[:0], indices, stats=False)
    check_nothing = torch.empty(0, 64, 512, device="cuda", dtype=torch.bfloat16)
    sparse_attn(q[:0], cache, indices[:0], SCALE, PERSISTENT, out=check_nothing)


def test_wrong_operand_is_named():
    """Before anything is launched."""
    q, cache = torch.zeros(2, 64, 576, dtype=torch.bfloat16), torch.zeros(9, 577, dtype=torch.bfloat16)[:, :576]
    indices, out = torch.zeros(2, 66, dtype=torch.int32), torch.zeros(2, 64, 512, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="cache: expected rows at multiples of 16 elements"):
        sparse_attn(q, cache, indices, SCALE, PERSISTENT, out=out)
    with pytest.raises(ValueError, match="lists: 4 do not share 66 rows evenly; use a divisor"):
        sparse_attn(q, cache[:, :1].expand(9, 576).contiguous(), indices, SCALE, HopperSparseAttnTiles(1, 4), out=out)


@pytest.mark.parametrize(
    "num_tokens,num_heads,tiles", [(64, 128, (1, 1)), (64, 64, (1, 2)), (16, 64, (1, 8)), (4096, 128, (1, 1))]
)
def test_lists_of_packed_rows_fill_the_gpu(num_tokens, num_heads, tiles):
    """As many as keep every multiprocessor busy, and no more."""
    assert form.choose(num_tokens, num_heads, 2048, packed=True) == HopperSparseAttnTiles(*tiles)
