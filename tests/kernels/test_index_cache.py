"""The indexer's paged key cache: byte-exact writes and reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.kernels import reference

BLOCK_BYTES = 64 * 132


def slots(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Byte offsets of codes and scales for pool positions block * 64 + pos."""
    block, pos = positions // 64, positions % 64
    return block * BLOCK_BYTES + pos * 128, block * BLOCK_BYTES + 8192 + pos * 4


def make_keys(n: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(n)
    return torch.randn(n, 128, generator=g).mul(30).to(torch.float8_e4m3fn), torch.rand(n, 1, generator=g)


def update(launch: Any, *args: Tensor) -> None:
    launch("index_cache.update_index_cache", *args)


@pytest.mark.parametrize("n", [1, 9, 100], ids="{} keys".format)
def test_update_writes_exactly_these_bytes(launch, n):
    """Kernel and oracle leave the same cache, and every other byte alone."""
    k, k_scale = make_keys(n)
    where = slots(torch.randperm(3 * 64)[:n])
    got = torch.full((3, BLOCK_BYTES), 0x7F, dtype=torch.uint8)
    want = got.clone()
    update(launch, k, k_scale, *where, got)
    reference.update_index_cache(k, k_scale, *where, want)
    assert torch.equal(want, got)
    assert int((got != 0x7F).sum()) <= n * 132


def test_layout_by_hand():
    """Token 65 of the pool is row 1 of block 1: codes at 8448 + 128, scale at 8448 + 8192 + 4."""
    cache = torch.zeros(2, BLOCK_BYTES, dtype=torch.uint8)
    k, k_scale = make_keys(1)
    reference.update_index_cache(k, k_scale, *slots(torch.tensor([65])), cache)
    flat = cache.flatten()
    assert torch.equal(flat[8448 + 128 : 8448 + 256], k[0].view(torch.uint8))
    assert torch.equal(flat[8448 + 8196 : 8448 + 8200].view(torch.float32), k_scale[0])


@pytest.mark.parametrize("n", [1, 9, 100], ids="{} keys".format)
def test_gather_reads_what_was_written(launch, n):
    """Reading back any order with repeats gives the keys' own bits."""
    k, k_scale = make_keys(50)
    positions = torch.randperm(3 * 64)[:50]
    cache = torch.full((3, BLOCK_BYTES), 0x7F, dtype=torch.uint8)
    reference.update_index_cache(k, k_scale, *slots(positions), cache)
    pick = torch.randint(0, 50, (n,))
    got_k, got_scale = launch("index_cache.gather_index_cache", cache, *slots(positions[pick]))
    want_k, want_scale = reference.gather_index_cache(cache, *slots(positions[pick]))
    assert torch.equal(k[pick].view(torch.uint8), got_k.view(torch.uint8))
    assert torch.equal(want_k.view(torch.uint8), got_k.view(torch.uint8))
    assert torch.equal(k_scale[pick], got_scale) and torch.equal(want_scale, got_scale)


def test_strided_keys(launch):
    """Keys and scales may be slices of wider rows."""
    k, k_scale = make_keys(6)
    wide_k = torch.zeros(6, 384).to(torch.float8_e4m3fn)[:, 128:256]
    wide_scale = torch.zeros(6, 3)[:, 1:2]
    wide_k.copy_(k), wide_scale.copy_(k_scale)
    where = slots(torch.arange(60, 66))
    got = torch.zeros(2, BLOCK_BYTES, dtype=torch.uint8)
    want = got.clone()
    update(launch, wide_k, wide_scale, *where, got)
    reference.update_index_cache(k, k_scale, *where, want)
    assert torch.equal(want, got)


def test_offsets_outside_the_cache_touch_nothing(launch):
    """The kernel never writes or reads outside its cache; the CPU form raises."""
    k, k_scale = make_keys(4)
    slot_fp8 = torch.tensor([-128, 2 * BLOCK_BYTES, 2**62, 0])
    slot_scale = torch.tensor([-4, 2 * BLOCK_BYTES, 2**62, 8192])
    guarded = torch.full((4, BLOCK_BYTES), 0x55, dtype=torch.uint8)
    update(launch, k, k_scale, slot_fp8, slot_scale, guarded[1:3])
    assert bool((guarded[[0, 3]] == 0x55).all())
    assert torch.equal(guarded[1, :128], k[3].view(torch.uint8))
    assert int((guarded[1:3] != 0x55).sum()) <= 132
    got_k, got_scale = launch("index_cache.gather_index_cache", guarded[1:3], slot_fp8, slot_scale)
    assert not got_k[:3].view(torch.uint8).any() and not got_scale[:3].any()
    with pytest.raises(IndexError):
        reference.update_index_cache(k, k_scale, slot_fp8, slot_scale, guarded[1:3])


def test_no_rows_is_no_work(launch):
    """0 keys launch nothing."""
    k, k_scale = make_keys(0)
    none = torch.zeros(0, dtype=torch.int64)
    cache = torch.zeros(1, BLOCK_BYTES, dtype=torch.uint8)
    update(launch, k, k_scale, none, none, cache)
    got_k, got_scale = launch("index_cache.gather_index_cache", cache, none, none)
    assert (got_k.shape, got_scale.shape) == ((0, 128), (0, 1))


def test_wrong_operand_is_named(launch):
    """The complaint names the tensor, what was expected and what came."""
    k, k_scale = make_keys(2)
    where = slots(torch.arange(2))
    cache = torch.zeros(1, BLOCK_BYTES, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"k_scale: expected shape \[2, 1\], got \[2\]"):
        update(launch, k, k_scale[:, 0], *where, cache)
    with pytest.raises(ValueError, match=r"cache: expected shape \[num_blocks, 8448\]"):
        update(launch, k, k_scale, *where, cache.view(64, 132))
