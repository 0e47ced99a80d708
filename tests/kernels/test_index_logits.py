"""Indexer logits, plain and paged: the kernels against the fp32 oracles at odd sizes, bounds and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.kernels import reference
from mlaprof.kernels.reference import TOLERANCE, mismatch
from mlaprof.kernels.tiles import Dims, IndexLogitsTiles, PagedIndexLogitsTiles, default

TILES = IndexLogitsTiles(block_q=2, block_n=32, num_warps=4, num_stages=2)
PAGED_TILES = PagedIndexLogitsTiles(block_n=32, num_warps=4, num_stages=2)
INT_MAX = 2**31 - 1
NAN_BYTE = 0x7F  # an e4m3 NaN; four of them make a NaN fp32 too


def random_codes(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g).mul(40).to(torch.float8_e4m3fn)


def random_scale(g: torch.Generator, *shape: int) -> Tensor:
    return torch.exp2(torch.randint(-6, 3, shape, generator=g).float())


@dataclass
class Case:
    q: Tensor  # [n, num_heads, 128] e4m3
    k: Tensor  # [m, 128] e4m3
    k_scale: Tensor  # [m] fp32
    weights: Tensor  # [n, num_heads] fp32
    ks: Tensor  # [n] int32
    ke: Tensor  # [n] int32

    def operands(self) -> tuple[Tensor, ...]:
        return self.q, self.k, self.k_scale, self.weights, self.ks, self.ke


def make_case(n: int = 5, m: int = 77, num_heads: int = 8) -> Case:
    """Causal bounds: query i sees keys 0 .. m - n + i."""
    g = torch.Generator().manual_seed(n * 1000 + m + num_heads)
    return Case(
        q=random_codes(g, n, num_heads, 128),
        k=random_codes(g, m, 128),
        k_scale=random_scale(g, m),
        weights=torch.randn(n, num_heads, generator=g),
        ks=torch.zeros(n, dtype=torch.int32),
        ke=(m - n + 1 + torch.arange(n)).int(),
    )


def check(launch: Any, case: Case, tiles: IndexLogitsTiles = TILES) -> Tensor:
    got = launch("index_logits.index_logits", *case.operands(), tiles)
    assert mismatch(reference.index_logits(*case.operands()), got, TOLERANCE[torch.float32]) is None
    return got


@pytest.mark.parametrize("num_heads", [4, 8, 16, 24, 64], ids="{} heads".format)
def test_any_number_of_heads(launch, num_heads):
    """Heads are padded to a tile, and padding adds nothing."""
    check(launch, make_case(num_heads=num_heads))


@pytest.mark.parametrize("n,m", [(1, 1), (1, 300), (3, 129), (9, 16)], ids=lambda v: str(v))
def test_odd_sizes(launch, n, m):
    """Neither queries nor keys need fill a tile, and m may span several programs."""
    check(launch, make_case(n, m))


@pytest.mark.parametrize("tiles", [IndexLogitsTiles(1, 16, 4, 1), IndexLogitsTiles(4, 64, 8, 3)], ids=str)
def test_every_tile_gives_the_same_answer(launch, tiles):
    """Tiles change the time, not the value."""
    check(launch, make_case(7, 150), tiles)


def test_packed_requests(launch):
    """Bounds of several requests packed on one key axis; what a query does not own is -inf."""
    case = make_case(7, 7)
    case.ks = torch.tensor([0, 0, 0, 3, 3, 3, 3], dtype=torch.int32)
    case.ke = torch.tensor([1, 2, 3, 4, 5, 6, 7], dtype=torch.int32)
    got = check(launch, case)
    assert torch.isinf(got).sum() == 7 * 7 - (1 + 2 + 3 + 1 + 2 + 3 + 4)


def test_hostile_bounds(launch):
    """Bounds beyond the keys, reversed, negative and empty ones are cut to the keys there are."""
    case = make_case(6, 200)
    case.ks = torch.tensor([-5, 0, 150, 199, 200, 90], dtype=torch.int32)
    case.ke = torch.tensor([3, INT_MAX, 20, 200, 400, 91], dtype=torch.int32)
    check(launch, case)


def test_unseen_keys_may_be_nan(launch):
    """Keys outside every bound change nothing, whatever bytes they hold."""
    case = make_case(4, 160)
    case.ks[:], case.ke[:] = 40, 50
    case.k.view(torch.uint8)[50:] = NAN_BYTE
    case.k.view(torch.uint8)[:40] = NAN_BYTE
    case.k_scale[50:], case.k_scale[:40] = float("nan"), float("inf")
    check(launch, case)


def test_strided_inputs(launch):
    """Rows of q, k and weights may be slices of wider buffers."""
    case = make_case(3, 50)
    q, k = (
        torch.empty(3, 16, 128).to(torch.float8_e4m3fn)[:, 4:12],
        torch.empty(50, 256).to(torch.float8_e4m3fn)[:, 128:],
    )
    weights = torch.empty(3, 11)[:, 1:9]
    q.copy_(case.q), k.copy_(case.k), weights.copy_(case.weights)
    case.q, case.k, case.weights = q, k, weights
    check(launch, case)


@pytest.mark.parametrize("n,m", [(0, 7), (7, 0)], ids=["no queries", "no keys"])
def test_nothing_to_score(launch, n, m):
    """An empty side gives an empty result."""
    case = make_case(n, m)
    assert launch("index_logits.index_logits", *case.operands(), TILES).shape == (n, m)


def test_wrong_operand_is_named(launch):
    """The complaint names the tensor, what was expected and what came."""
    case = make_case()
    case.weights = case.weights[:, :3]
    with pytest.raises(ValueError, match=r"weights: expected shape \[5, 8\], got \[5, 3\]"):
        launch("index_logits.index_logits", *case.operands(), TILES)


def test_oracle_does_not_depend_on_its_slices(monkeypatch):
    """The oracle's memory bound changes no value beyond rounding."""
    case = make_case(9, 40)
    whole = reference.index_logits(*case.operands())
    monkeypatch.setattr(reference, "SLICE_BYTES", 1)
    assert torch.allclose(whole, reference.index_logits(*case.operands()), rtol=1e-5, atol=1e-3)


def test_oracle_by_hand():
    """One query, two heads, two keys, worked out on paper: relu before the head sum, the key's scale after it."""
    q = torch.zeros(1, 2, 128)
    q[0, 0, 0], q[0, 1, 0] = 2.0, -1.0
    k = torch.zeros(2, 128)
    k[0, 0], k[1, 0] = 3.0, -4.0
    got = reference.index_logits(
        q.to(torch.float8_e4m3fn),
        k.to(torch.float8_e4m3fn),
        torch.tensor([0.5, 2.0]),
        torch.tensor([[10.0, 100.0]]),
        torch.tensor([0], dtype=torch.int32),
        torch.tensor([2], dtype=torch.int32),
    )
    assert got.tolist() == [[6 * 10 * 0.5, 4 * 100 * 2.0]]


@dataclass
class PagedCase:
    q: Tensor  # [batch, next_n, num_heads, 128] e4m3
    cache: Tensor  # [num_blocks, 64 * 132] uint8, NaN where no token lives
    weights: Tensor  # [batch * next_n, num_heads] fp32
    kv_lens: Tensor  # [batch] int32
    block_table: Tensor  # [batch, max_blocks] int32, -1 past the end
    max_len: int
    keys: list[Tensor]  # a request: [kv_len, 128] e4m3
    scales: list[Tensor]  # a request: [kv_len] fp32

    def operands(self) -> tuple[Any, ...]:
        return self.q, self.cache, self.weights, self.kv_lens, self.block_table, self.max_len


def make_paged(kv_lens: list[int], next_n: int = 1, num_heads: int = 8, max_len: int = 300) -> PagedCase:
    g = torch.Generator().manual_seed(sum(kv_lens) + next_n * 7 + num_heads)
    batch, max_blocks = len(kv_lens), -(-max_len // 64)
    num_blocks = batch * max_blocks + 3
    free = iter(torch.randperm(num_blocks, generator=g).tolist())
    cache = torch.full((num_blocks, 64 * 132), NAN_BYTE, dtype=torch.uint8)
    table = torch.full((batch, max_blocks), -1, dtype=torch.int32)
    keys, scales = [], []
    for b, kv_len in enumerate(kv_lens):
        keys.append(random_codes(g, kv_len, 128))
        scales.append(random_scale(g, kv_len))
        for page in range(-(-kv_len // 64)):
            table[b, page] = block = next(free)
            part = slice(page * 64, min(kv_len, page * 64 + 64))
            count = part.stop - part.start
            cache[block, : count * 128] = keys[b][part].view(torch.uint8).flatten()
            cache[block, 8192 : 8192 + count * 4] = scales[b][part].view(torch.uint8)
    return PagedCase(
        q=random_codes(g, batch, next_n, num_heads, 128),
        cache=cache,
        weights=torch.randn(batch * next_n, num_heads, generator=g),
        kv_lens=torch.tensor(kv_lens, dtype=torch.int32),
        block_table=table,
        max_len=max_len,
        keys=keys,
        scales=scales,
    )


def check_paged(launch: Any, case: PagedCase, tiles: PagedIndexLogitsTiles = PAGED_TILES) -> Tensor:
    got = launch("index_logits.paged_index_logits", *case.operands(), tiles)
    assert mismatch(reference.paged_index_logits(*case.operands()), got, TOLERANCE[torch.float32]) is None
    return got


@pytest.mark.parametrize("kv_lens", [[1], [64, 65, 63], [299, 3, 128, 300]], ids=str)
def test_paged_lengths(launch, kv_lens):
    """Lengths at, below and above a block; the unused cache is NaN and the table's tail is -1."""
    check_paged(launch, make_paged(kv_lens))


@pytest.mark.parametrize("next_n", [1, 2, 3, 4], ids="next_n {}".format)
def test_paged_rows_end_at_their_own_position(launch, next_n):
    """Query j of a request sees positions 0 .. kv_len - next_n + j."""
    case = make_paged([70, 5, 130], next_n, max_len=140)
    got = check_paged(launch, case)
    seen = torch.isfinite(got).sum(-1).tolist()
    assert seen == [kv_len - next_n + j + 1 for kv_len in (70, 5, 130) for j in range(next_n)]


@pytest.mark.parametrize("num_heads", [4, 12, 32, 64], ids="{} heads".format)
def test_paged_heads(launch, num_heads):
    """Heads are padded to a tile, and padding adds nothing."""
    check_paged(launch, make_paged([100, 30], num_heads=num_heads, max_len=128))


@pytest.mark.parametrize("tiles", [PagedIndexLogitsTiles(16, 1, 1), PagedIndexLogitsTiles(128, 8, 3)], ids=str)
def test_paged_tiles_give_the_same_answer(launch, tiles):
    """Tiles change the time, not the value; a tile may cover part of a block or several."""
    check_paged(launch, make_paged([200, 61], max_len=777), tiles)


def test_paged_row_without_tokens(launch):
    """A padding row of a captured batch, of length 0 and without any block, is all -inf."""
    case = make_paged([40, 90])
    case.kv_lens[0], case.block_table[0] = 0, -1
    assert bool((check_paged(launch, case)[0] == float("-inf")).all())


def test_paged_width_beyond_the_table(launch):
    """Positions that the table cannot name are -inf, even when the length claims them."""
    case = make_paged([300], max_len=400)
    case.block_table = case.block_table[:, :2]
    assert torch.isfinite(check_paged(launch, case)).sum() == 128


def test_paged_stale_blocks_are_not_followed(launch):
    """A negative or too large block inside the length is -inf, not a wild read."""
    case = make_paged([200])
    case.block_table[0, 0], case.block_table[0, 2] = -7, case.cache.shape[0]
    assert torch.isfinite(check_paged(launch, case)).sum() == 200 - 128


def test_paged_empty_batch(launch):
    """No requests, no rows."""
    assert launch("index_logits.paged_index_logits", *make_paged([]).operands(), PAGED_TILES).shape == (0, 300)


def test_paged_oracle_equals_the_plain_one():
    """Through the pages or from packed keys: the same scores."""
    case = make_paged([70, 130], next_n=2, max_len=150)
    got = reference.paged_index_logits(*case.operands())
    for b, kv_len in enumerate([70, 130]):
        rows = slice(2 * b, 2 * b + 2)
        ke = torch.tensor([kv_len - 1, kv_len], dtype=torch.int32)
        want = reference.index_logits(
            case.q[b], case.keys[b], case.scales[b], case.weights[rows], torch.zeros_like(ke), ke
        )
        assert mismatch(want, got[rows, :kv_len], TOLERANCE[torch.float32]) is None
        assert bool((got[rows, kv_len:] == float("-inf")).all())


@pytest.mark.gpu
@pytest.mark.parametrize("n,m,num_heads", [(1, 5000, 64), (513, 4097, 64), (300, 8192, 32)])
def test_full_size_on_the_gpu(n, m, num_heads):
    """The models' own sizes with their default tiles."""
    from mlaprof.kernels.index_logits import index_logits

    operands = [x.cuda() for x in make_case(n, m, num_heads).operands()]
    got = index_logits(*operands, default("index_logits", Dims(16, 512, 64, num_heads, 128, 2048)))
    assert mismatch(reference.index_logits(*operands), got, TOLERANCE[torch.float32]) is None


@pytest.mark.gpu
@pytest.mark.parametrize("next_n", [1, 2, 4])
def test_full_size_paged_on_the_gpu(next_n):
    """A ragged decode batch over a wide table with its default tiles."""
    from mlaprof.kernels.index_logits import paged_index_logits

    case = make_paged([8192, 5, 4097, 64, 7000, 1023], next_n, num_heads=64, max_len=8200)
    operands = [x.cuda() if isinstance(x, Tensor) else x for x in case.operands()]
    got = paged_index_logits(*operands, default("paged_index_logits", Dims(16, 512, 64, 64, 128, 2048)))
    assert mismatch(reference.paged_index_logits(*operands), got, TOLERANCE[torch.float32]) is None
