"""Sparse attention: the kernel against the fp32 oracle, with hostile indices, caches and strides."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.kernels import reference
from mlaprof.kernels.reference import TOLERANCE, mismatch
from mlaprof.kernels.tiles import SparseAttnTiles
from tests.kernels.packed import pack_fp8

SCALE = 0.135
TILES = SparseAttnTiles(block_h=16, block_n=32, num_warps=4, num_stages=2)
INT_MIN, INT_MAX = -(2**31), 2**31 - 1


@dataclass
class Case:
    q: Tensor  # [num_tokens, num_heads, d_latent + d_rope] bf16
    cache: Tensor  # [num_rows, d_latent + d_rope] bf16
    indices: Tensor  # [num_tokens, topk] int32
    out: Tensor  # [num_tokens, num_heads, d_latent] bf16, poisoned

    def want(self) -> Tensor:
        out = torch.empty_like(self.out)
        reference.sparse_attn(self.q, self.cache, self.indices, SCALE, out=out)
        return out

    def want_stats(self) -> tuple[Tensor, Tensor]:
        """lse and max_logits [num_tokens, num_heads] fp32."""
        valid = (self.indices >= 0) & (self.indices < self.cache.shape[0])
        rows = torch.where(valid[..., None], self.cache[self.indices.long().clamp(0, self.cache.shape[0] - 1)], 0.0)
        scores = torch.where(valid[:, None], self.q.float() @ rows.float().mT * SCALE, -torch.inf)
        return scores.logsumexp(-1), scores.amax(-1)


def make_case(
    num_tokens: int = 3, num_heads: int = 16, topk: int = 64, num_rows: int = 97, d_latent: int = 64, d_rope: int = 16
) -> Case:
    seed = random.randrange(2**31)
    logging.getLogger(__name__).warning("seed %d", seed)
    g = torch.Generator().manual_seed(seed)
    width = d_latent + d_rope
    return Case(
        q=torch.randn(num_tokens, num_heads, width, generator=g).bfloat16(),
        cache=torch.randn(num_rows, width, generator=g).bfloat16(),
        indices=torch.randint(0, num_rows, (num_tokens, topk), generator=g, dtype=torch.int32),
        out=torch.full((num_tokens, num_heads, d_latent), float("nan"), dtype=torch.bfloat16),
    )


def check(launch: Any, case: Case, tiles: SparseAttnTiles | None = TILES) -> None:
    launch("sparse_attn.sparse_attn", case.q, case.cache, case.indices, SCALE, tiles, out=case.out)
    assert mismatch(case.want(), case.out, TOLERANCE[torch.bfloat16]) is None


@pytest.mark.parametrize("num_heads", [4, 8, 16, 17, 40], ids="{} heads".format)
def test_any_number_of_heads(launch, num_heads):
    """Heads need not fill a tile."""
    check(launch, make_case(num_heads=num_heads))


@pytest.mark.parametrize("topk", [1, 31, 64, 100], ids="topk {}".format)
def test_topk_need_not_be_a_multiple_of_the_tile(launch, topk):
    """The last block of slots may be partly beyond topk."""
    check(launch, make_case(topk=topk))


@pytest.mark.parametrize("block_h,block_n,num_stages", [(16, 16, 1), (32, 64, 3), (16, 128, 2)])
def test_every_tile_gives_the_same_answer(launch, block_h, block_n, num_stages):
    """Tiles change the time, not the value."""
    check(launch, make_case(num_heads=24, topk=70), SparseAttnTiles(block_h, block_n, 4, num_stages))


def test_empty_slots_add_nothing(launch):
    """Negative row numbers and those at or past the end are empty, even beside NaN in every unused row."""
    case = make_case(topk=48)
    used = torch.arange(0, 40)
    case.cache[40:] = float("nan")
    case.indices = used[torch.randint(0, 40, case.indices.shape)].int()
    case.indices[:, ::3] = -1
    case.indices[0, 1], case.indices[0, 2], case.indices[0, 4], case.indices[0, 5] = INT_MIN, 97, INT_MAX, -64
    check(launch, case)


@pytest.mark.parametrize("num_splits", [1, 2, 4, 64], ids="{} splits".format)
def test_split_rows_are_joined(launch, num_splits):
    """However many programs share a token's rows, values and statistics are those of one; some parts may be empty."""
    case = make_case(topk=112, num_heads=20)
    case.indices[0, :64], case.indices[1], case.indices[2, 5:9] = -1, -1, torch.tensor([INT_MIN, -1, 97, INT_MAX])
    lse, largest = (torch.full(case.q.shape[:2], float("nan")) for _ in range(2))
    tiles = SparseAttnTiles(16, 16, 4, 2, num_splits)
    args = (case.q, case.cache, case.indices, SCALE, tiles)
    launch("sparse_attn.sparse_attn", *args, out=case.out, lse=lse, max_logits=largest)
    assert mismatch(case.want(), case.out, TOLERANCE[torch.bfloat16]) is None
    want_lse, want_largest = case.want_stats()
    assert mismatch(want_lse, lse, TOLERANCE[torch.float32]) is None
    assert mismatch(want_largest, largest, TOLERANCE[torch.float32]) is None


@pytest.mark.parametrize("num_splits", [1, 2], ids="{} splits".format)
def test_fp8_cache(launch, num_splits):
    """656-byte rows give what their values would, with every kind of empty slot and NaN behind it."""
    case = make_case(2, 16, topk=40, num_rows=50, d_latent=512, d_rope=64)
    case.indices %= 40
    case.indices[0, :7] = torch.tensor([INT_MIN, -1, 50, 51, INT_MAX, -64, 0], dtype=torch.int32)
    packed, values = pack_fp8(case.cache)
    packed[40:] = 255
    pool = torch.full((50, 672), 255, dtype=torch.uint8)[:, :656]
    pool.copy_(packed)
    tiles = SparseAttnTiles(16, 16, 4, 2, num_splits)
    launch("sparse_attn.sparse_attn", case.q, pool, case.indices, SCALE, tiles, out=case.out)
    want = torch.empty_like(case.out)
    reference.sparse_attn(case.q, values, case.indices, SCALE, out=want)
    assert mismatch(want, case.out, TOLERANCE[torch.bfloat16]) is None


def test_tiles_are_chosen_by_the_shapes(launch):
    """Without tiles the launcher finds some that run, split or not."""
    check(launch, make_case(num_tokens=1), None)


@pytest.mark.parametrize("empty_part", ["all", "first block", "last block"])
def test_blocks_without_a_row(launch, empty_part):
    """A token without any row gives zeros, and an empty block before or after real ones changes nothing."""
    case = make_case(topk=96)
    case.cache[0] = float("nan")
    case.indices.clamp_(min=1)
    where = {"all": slice(None), "first block": slice(0, 32), "last block": slice(64, 96)}[empty_part]
    case.indices[1, where] = -1
    check(launch, case)
    if empty_part == "all":
        assert torch.equal(case.out[1], torch.zeros_like(case.out[1]))


def test_large_scores_do_not_overflow(launch):
    """The softmax subtracts the running maximum, also when it rises from block to block."""
    case = make_case(topk=96)
    case.q *= 40
    case.indices[:] = case.indices.sort(-1).values
    check(launch, case)


def test_strided_inputs(launch):
    """Rows of q, cache, indices and out may be slices of wider buffers."""
    case = make_case(num_tokens=2)
    q = torch.full((2, 20, 100), float("nan"), dtype=torch.bfloat16)[:, 2:18, 10:90]
    cache = torch.full((97, 128), float("nan"), dtype=torch.bfloat16)[:, :80]
    indices = torch.full((2, 200), 5, dtype=torch.int32)[:, 100:164]
    q.copy_(case.q), cache.copy_(case.cache), indices.copy_(case.indices)
    out = torch.full((4, 16, 96), float("nan"), dtype=torch.bfloat16)
    check(launch, Case(q, cache, indices, out[1:3, :, :64]))
    assert bool(out[0].isnan().all()) and bool(out[:, :, 64:].isnan().all())


def test_no_tokens_is_no_work(launch):
    """0 rows launch nothing and raise nothing."""
    check(launch, make_case(num_tokens=0))


def test_empty_pool_gives_zeros(launch):
    """A cache without rows leaves every slot empty."""
    case = make_case(num_tokens=1)
    case.cache = case.cache[:0]
    case.indices.zero_()
    check(launch, case)


def test_wrong_operand_is_named(launch):
    """The complaint names the tensor, what was expected and what came."""
    case = make_case()
    with pytest.raises(ValueError, match=r"indices: expected torch\.int32, got torch\.int64"):
        launch("sparse_attn.sparse_attn", case.q, case.cache, case.indices.long(), SCALE, TILES, out=case.out)
    with pytest.raises(ValueError, match=r"out: expected shape \[3, 16, kv_lora_rank\], got \[2, 16, 64\]"):
        launch("sparse_attn.sparse_attn", case.q, case.cache, case.indices, SCALE, TILES, out=case.out[:2])


def test_oracle_does_not_depend_on_its_slices(monkeypatch):
    """The oracle's memory bound changes no bit of the result."""
    case = make_case(num_tokens=7)
    whole = case.want()
    monkeypatch.setattr(reference, "SLICE_BYTES", 1)
    assert torch.equal(whole, case.want())


def test_oracle_is_softmax_attention():
    """The oracle agrees with torch's own attention where no slot is empty and no row repeats."""
    case = make_case(num_tokens=2, topk=50)
    case.indices = torch.stack([torch.randperm(97)[:50] for _ in range(2)]).int()
    rows = case.cache[case.indices.long()].float()[:, None]  # [tokens, 1, topk, width]
    want = torch.nn.functional.scaled_dot_product_attention(
        case.q.float()[:, :, None], rows, rows[..., :64], scale=SCALE
    )
    assert mismatch(want[:, :, 0], case.want(), TOLERANCE[torch.bfloat16]) is None


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens,num_heads,topk", [(1, 16, 2048), (63, 128, 2048), (257, 64, 2048), (5, 8, 1000)])
def test_full_size_on_the_gpu(num_tokens, num_heads, topk):
    """The models' own sizes, with a third of the slots empty and NaN in the unused half of the pool."""
    from mlaprof.kernels import tiles
    from mlaprof.kernels.sparse_attn import sparse_attn

    case = make_case(num_tokens, num_heads, topk, num_rows=8192, d_latent=512, d_rope=64)
    case.cache[4096:] = float("nan")
    case.indices %= 4096
    case.indices[:, ::3] = -1
    chosen = tiles.default("sparse_attn", tiles.Dims(num_heads, 512, 64, 64, 128, topk))
    on_gpu = [x.cuda() for x in (case.q, case.cache, case.indices)]
    out = case.out.cuda()
    sparse_attn(*on_gpu, SCALE, chosen, out=out)
    want = torch.empty_like(out)
    reference.sparse_attn(*on_gpu, SCALE, out=want)
    assert mismatch(want, out, TOLERANCE[torch.bfloat16]) is None
