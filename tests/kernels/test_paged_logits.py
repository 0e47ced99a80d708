"""Indexer logits over the paged cache: both forms against the fp32 oracle at odd sizes, lengths and tables."""

from __future__ import annotations

import logging
import random
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from mlaprof.kernels import reference
from mlaprof.kernels.cubin import read_cubin
from mlaprof.kernels.reference import TOLERANCE, mismatch
from mlaprof.kernels.tiles.hopper_paged_index_logits import HopperPagedIndexLogitsTiles
from mlaprof.kernels.tiles.hopper_paged_index_logits import problem as hopper_problem
from mlaprof.kernels.tiles.hopper_paged_index_logits import shared_bytes as hopper_shared_bytes
from mlaprof.kernels.tiles.limits import Dims
from mlaprof.kernels.tiles.paged_index_logits import PagedIndexLogitsTiles
from mlaprof.kernels.work.paged_logits import paged_index_logits as work

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
NAN_BYTE = 0x7F  # an e4m3 NaN; four of them make a NaN fp32 too
PORTABLE = PagedIndexLogitsTiles(block_n=32, num_warps=4, num_stages=2, programs=2)
HOPPER = HopperPagedIndexLogitsTiles(num_warps=4, num_stages=3, programs=4)

# A gpu-marked test for each form, and the portable one interpreted.
both_forms = pytest.mark.parametrize(
    "launch,tiles",
    [
        pytest.param("interpreted", PORTABLE, id="interpreted"),
        pytest.param("cuda", PORTABLE, id="portable", marks=pytest.mark.gpu),
        pytest.param("cuda", HOPPER, id="hopper", marks=pytest.mark.gpu),
        pytest.param("cuda", None, id="chosen", marks=pytest.mark.gpu),
    ],
    indirect=["launch"],
)


@dataclass
class Case:
    q: Tensor  # [batch, next_n, num_heads, 128] e4m3
    cache: Tensor  # [num_blocks, 64 * 132] uint8, NaN where no token lives
    weights: Tensor  # [batch * next_n, num_heads] fp32
    kv_lens: Tensor  # [batch] int32
    block_table: Tensor  # [batch, max_blocks] int32, hostile past the end
    max_len: int
    keys: list[Tensor]  # a request: [kv_len, 128] e4m3
    scales: list[Tensor]  # a request: [kv_len] fp32

    def operands(self) -> tuple[Any, ...]:
        return self.q, self.cache, self.weights, self.kv_lens, self.block_table, self.max_len


def make_case(kv_lens: list[int], next_n: int = 1, num_heads: int = 8, max_len: int = 300) -> Case:
    seed = random.randrange(2**31)
    logging.getLogger(__name__).warning("seed %d", seed)
    g = torch.Generator().manual_seed(seed)
    batch, max_blocks = len(kv_lens), -(-max_len // 64)
    num_blocks = batch * max_blocks + 3
    free = iter(torch.randperm(num_blocks, generator=g).tolist())
    cache = torch.full((num_blocks, 64 * 132), NAN_BYTE, dtype=torch.uint8)
    table = torch.tensor([INT_MIN, -1, num_blocks, INT_MAX], dtype=torch.int32).repeat(batch, max_blocks)[
        :, :max_blocks
    ]
    table = table.contiguous()
    keys, scales = [], []
    for b, kv_len in enumerate(kv_lens):
        keys.append(torch.randn(kv_len, 128, generator=g).mul(40).to(torch.float8_e4m3fn))
        scales.append(torch.exp2(torch.randint(-6, 3, (kv_len,), generator=g).float()))
        for page in range(-(-kv_len // 64)):
            table[b, page] = block = next(free)
            part = slice(page * 64, min(kv_len, page * 64 + 64))
            count = part.stop - part.start
            cache[block, : count * 128] = keys[b][part].view(torch.uint8).flatten()
            cache[block, 8192 : 8192 + count * 4] = scales[b][part].view(torch.uint8)
    return Case(
        q=torch.randn(batch, next_n, num_heads, 128, generator=g).mul(40).to(torch.float8_e4m3fn),
        cache=cache,
        weights=torch.randn(batch * next_n, num_heads, generator=g),
        kv_lens=torch.tensor(kv_lens, dtype=torch.int32),
        block_table=table,
        max_len=max_len,
        keys=keys,
        scales=scales,
    )


def check(launch: Any, tiles: Any, case: Case) -> Tensor:
    """The result, right inside every row's own span, and NaN, the poison of torch.empty, outside it."""
    got = launch("paged_logits.paged_index_logits", *case.operands(), tiles)
    want = reference.paged_index_logits(*case.operands())
    next_n = case.q.shape[1]
    ends = (case.kv_lens.long()[:, None] - next_n + 1 + torch.arange(next_n)).flatten()
    inside = torch.arange(case.max_len) < ends[:, None]
    assert bool(got[~inside].isnan().all()), "written beyond a row's end"
    wrong = mismatch(torch.where(inside, want, 0.0), torch.where(inside, got, 0.0), TOLERANCE[torch.float32])
    assert wrong is None, wrong
    return got


@both_forms
@pytest.mark.parametrize("kv_lens", [[1], [256], [64, 65, 63], [299, 3, 128, 300]], ids=str)
def test_lengths(launch, tiles, kv_lens):
    """Lengths at, below and above a block; the unused cache is NaN and the table's tail is hostile."""
    check(launch, tiles, make_case(kv_lens))


@both_forms
@pytest.mark.parametrize("next_n", [1, 2, 3, 4], ids="next_n {}".format)
def test_rows_end_at_their_own_position(launch, tiles, next_n):
    """Query j of a request sees positions 0 .. kv_len - next_n + j, also where there are fewer than next_n."""
    got = check(launch, tiles, make_case([70, 5, 130, 1], next_n, max_len=140))
    seen = torch.isfinite(got).sum(-1).tolist()
    assert seen == [max(0, kv_len - next_n + j + 1) for kv_len in (70, 5, 130, 1) for j in range(next_n)]


@both_forms
@pytest.mark.parametrize("num_heads", [4, 12, 32, 64], ids="{} heads".format)
def test_heads(launch, tiles, num_heads):
    """Heads are padded to a tile, and padding adds nothing."""
    check(launch, tiles, make_case([100, 30], num_heads=num_heads, max_len=128))


@both_forms
def test_shares_cross_requests(launch, tiles):
    """With more blocks than programs, a program's share begins inside one request and ends inside another."""
    if tiles == PORTABLE:
        tiles, case = PagedIndexLogitsTiles(16, 4, 2, 1), make_case([700, 0, 1, 640, 0, 900], num_heads=4, max_len=911)
    else:
        case = make_case([9000, 0, 1, 64, 0, 8999, 20000], num_heads=64, max_len=20011)
    check(launch, tiles, case)


@pytest.mark.parametrize("tiles", [PagedIndexLogitsTiles(16, 1, 1, 1), PagedIndexLogitsTiles(128, 8, 3, 3)], ids=str)
def test_every_tile_gives_the_same_answer(launch, tiles):
    """Tiles change the time, not the value; a tile may cover part of a block or several."""
    check(launch, tiles, make_case([200, 61], max_len=777))


@both_forms
def test_hostile_lengths(launch, tiles):
    """Lengths below zero write nothing; those beyond the width, or the table, score what there is."""
    case = make_case([40, 90, 128, 300, 300], max_len=300)
    case.kv_lens[:] = torch.tensor([INT_MIN, -1, 0, 301, INT_MAX])
    check(launch, tiles, case)


@both_forms
def test_rows_without_tokens(launch, tiles):
    """Padding rows of a captured batch, of length 0 and without any block, stay unwritten."""
    case = make_case([0, 0, 0])
    check(launch, tiles, case)


@both_forms
def test_width_beyond_the_table(launch, tiles):
    """Positions that the table cannot name are -inf when the length claims them."""
    case = make_case([300], max_len=400)
    case.block_table = case.block_table[:, :2]
    assert torch.isfinite(check(launch, tiles, case)).sum() == 128


@both_forms
def test_hostile_blocks_are_not_followed(launch, tiles):
    """A block outside the cache is -inf inside the length, not a wild read."""
    case = make_case([300, 300])
    case.block_table[0, :4] = torch.tensor([INT_MIN, -1, case.cache.shape[0], INT_MAX])
    assert torch.isfinite(check(launch, tiles, case)).sum() == 300 + 300 - 256


@both_forms
def test_strided_inputs(launch, tiles):
    """q, weights and the table may be slices of wider buffers."""
    case = make_case([100, 130], next_n=2)
    q = torch.empty(2, 2, 20, 256).to(torch.float8_e4m3fn)[:, :, 5:13, 64:192]
    weights, table = torch.empty(4, 11)[:, 1:9], torch.empty(2, 9, dtype=torch.int32)[:, 3:8]
    q.copy_(case.q), weights.copy_(case.weights), table.copy_(case.block_table)
    case.q, case.weights, case.block_table = q, weights, table
    check(launch, tiles, case)


@both_forms
def test_nothing_to_score(launch, tiles):
    """No requests, no width, or no cache: nothing is read, and what a row owns of no cache is -inf."""
    name = "paged_logits.paged_index_logits"
    assert launch(name, *make_case([]).operands(), tiles).shape == (0, 300)
    q, cache, weights, kv_lens, table, _ = make_case([5]).operands()
    assert launch(name, q, cache, weights, kv_lens, table, 0, tiles).shape == (1, 0)
    got = launch(name, q, cache[:0], weights, kv_lens, table, 8, tiles)
    assert bool((got[0, :5] == float("-inf")).all()) and bool(got[0, 5:].isnan().all())


def test_wrong_operands_are_named(launch):
    """The complaint names the operand, what was expected and what came."""
    q, cache, weights, kv_lens, table, max_len = make_case([5, 6]).operands()
    with pytest.raises(ValueError, match=r"kv_lens: expected shape \[2\], got \[1\]"):
        launch("paged_logits.paged_index_logits", q, cache, weights, kv_lens[:1], table, max_len, PORTABLE)
    with pytest.raises(
        ValueError, match=r"tiles: the Hopper form takes 256 pairs .* got 5 x 64 pairs; use the portable"
    ):
        case = make_case([9], next_n=5, num_heads=64)
        launch("paged_logits.paged_index_logits", *case.operands(), HOPPER)


def test_oracle_equals_the_plain_one():
    """Through the pages or from packed keys: the same scores, and -inf beyond a row's end."""
    case = make_case([70, 130], next_n=2, max_len=150)
    got = reference.paged_index_logits(*case.operands())
    for b, kv_len in enumerate([70, 130]):
        rows = slice(2 * b, 2 * b + 2)
        ke = torch.tensor([kv_len - 1, kv_len], dtype=torch.int32)
        want = reference.index_logits(
            case.q[b], case.keys[b], case.scales[b], case.weights[rows], torch.zeros_like(ke), ke
        )
        assert mismatch(want, got[rows, :kv_len], TOLERANCE[torch.float32]) is None
        assert bool((got[rows, kv_len:] == float("-inf")).all())


V3_2 = Dims(128, 512, 64, 64, 128, 2048)


@pytest.mark.parametrize("batch,next_n,num_heads", [(1, 1, 64), (128, 2, 64), (1024, 1, 32)], ids=lambda v: str(v))
def test_hopper_form_compiles(batch, next_n, num_heads):
    """For sm_90: warp-group products, copies past the registers, nothing spilled, shared memory as estimated."""
    from triton.experimental.gluon._runtime import GluonASTSource

    from mlaprof.kernels.hopper.paged_logits import paged_index_logits_hopper_kernel as kernel

    place = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    constants = {
        "NEXT_N": next_n,
        "HEADS": num_heads,
        "BATCH": batch,
        "STAGES": HOPPER.num_stages,
    }
    pointers = {"q_ptr": "*fp8e4nv", "codes_ptr": "*fp8e4nv", "kv_lens_ptr": "*i32", "block_table_ptr": "*i32"}
    pointers |= dict.fromkeys(("scales_ptr", "weights_ptr", "logits_ptr"), "*fp32")
    aligned = [*pointers, "q_stride_b", "q_stride_j", "q_stride_h", "weights_stride"]
    compiled = triton.compile(
        GluonASTSource(
            kernel,
            {name: pointers.get(name, "i32") for name in place} | dict.fromkeys(constants, "constexpr"),
            {place[name]: value for name, value in constants.items()},
            {place[name]: [["tt.divisibility", 16]] for name in aligned},
        ),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": HOPPER.num_warps},
    )
    assert f"wgmma.mma_async.sync.aligned.m64n{num_heads}k32.f32.e4m3.e4m3" in compiled.asm["ptx"]
    assert "cp.async.cg.shared.global" in compiled.asm["ptx"]
    facts = read_cubin(compiled.asm["cubin"])
    assert facts.stack_bytes == 0 and facts.registers <= 128
    dims = Dims(128, 512, 64, num_heads, 128, 2048)
    assert compiled.metadata.shared == hopper_shared_bytes(HOPPER, dims) + (next_n - 1) * num_heads * 128
    assert hopper_problem(HOPPER, dims) is None


@pytest.mark.parametrize(
    "tiles,dims,reason",
    [
        (HopperPagedIndexLogitsTiles(4, 6, 4), V3_2, "programs: 4 of 6 stages do not fit a multiprocessor; use fewer"),
        (HOPPER, Dims(128, 512, 64, 200, 128, 2048), "index_n_heads: 200 exceed the 128 .* use the portable form"),
        (HOPPER, Dims(128, 512, 64, 64, 64, 2048), "index_head_dim: 64 is not 128; use the portable form"),
    ],
    ids=["shared", "heads", "dim"],
)
def test_hopper_tiles_that_do_not_fit(tiles, dims, reason):
    """Each refusal names the value and a remedy."""
    assert re.match(reason, str(hopper_problem(tiles, dims)))


def test_work_by_hand():
    """Two requests of three positions, two new tokens each: rows of two and three scores."""
    got = work(2, 3, 2, num_heads=4)
    assert got.flops == 2 * (2 + 3 + 2 + 3) * 4 * 128
    assert got.bytes == 2 * 2 * 4 * 128 + 2 * 3 * 132 + 4 * 10


@pytest.mark.gpu
@pytest.mark.parametrize("tiles", [None, PagedIndexLogitsTiles(64, 4, 3, 4)], ids=["chosen", "portable"])
@pytest.mark.parametrize("next_n", [1, 2, 4])
def test_full_size_on_the_gpu(next_n, tiles):
    """A ragged decode batch over a wide table."""
    from mlaprof.kernels.paged_logits import paged_index_logits

    case = make_case([8192, 5, 4097, 64, 7000, 1023], next_n, num_heads=64, max_len=8200)
    operands = [x.cuda() if isinstance(x, Tensor) else x for x in case.operands()]
    got = paged_index_logits(*operands, tiles)
    want = reference.paged_index_logits(*operands)
    inside = torch.isfinite(want)  # every block is mapped
    assert mismatch(torch.where(inside, want, 0.0), torch.where(inside, got, 0.0), TOLERANCE[torch.float32]) is None
