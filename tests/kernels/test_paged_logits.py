"""Indexer logits over the paged cache: the kernel against the fp32 oracle at odd sizes, lengths and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.kernels import reference
from mlaprof.kernels.reference import TOLERANCE, mismatch
from mlaprof.kernels.tiles import Dims, PagedIndexLogitsTiles, default

PAGED_TILES = PagedIndexLogitsTiles(block_n=32, num_warps=4, num_stages=2)
NAN_BYTE = 0x7F  # an e4m3 NaN; four of them make a NaN fp32 too


def random_codes(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g).mul(40).to(torch.float8_e4m3fn)


def random_scale(g: torch.Generator, *shape: int) -> Tensor:
    return torch.exp2(torch.randint(-6, 3, shape, generator=g).float())


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
    got = launch("paged_logits.paged_index_logits", *case.operands(), tiles)
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
    assert launch("paged_logits.paged_index_logits", *make_paged([]).operands(), PAGED_TILES).shape == (0, 300)


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
@pytest.mark.parametrize("next_n", [1, 2, 4])
def test_full_size_paged_on_the_gpu(next_n):
    """A ragged decode batch over a wide table with its default tiles."""
    from mlaprof.kernels.paged_logits import paged_index_logits

    case = make_paged([8192, 5, 4097, 64, 7000, 1023], next_n, num_heads=64, max_len=8200)
    operands = [x.cuda() if isinstance(x, Tensor) else x for x in case.operands()]
    got = paged_index_logits(*operands, default("paged_index_logits", Dims(16, 512, 64, 64, 128, 2048)))
    assert mismatch(reference.paged_index_logits(*operands), got, TOLERANCE[torch.float32]) is None
