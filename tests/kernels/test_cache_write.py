"""Both cache writes in one launch: rows, rotation, and nothing outside of what is due."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.kernels import reference_fused as oracle

BLOCK_BYTES = 64 * 132
BF16 = torch.bfloat16


@pytest.fixture
def generator() -> torch.Generator:
    seed = random.randrange(2**31)
    logging.getLogger(__name__).warning("seed %d", seed)
    return torch.Generator().manual_seed(seed)


def slot_bytes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Byte offsets of codes and scales of pool positions block * 64 + pos."""
    block, pos = rows // 64, rows % 64
    return block * BLOCK_BYTES + pos * 128, block * BLOCK_BYTES + 8192 + pos * 4


def make(generator: torch.Generator, num_tokens: int, kv: int) -> dict[str, Any]:
    """Tokens for a pool of 3 blocks of 2 layers, of which they belong to the second; both caches full of NaN."""
    angle = torch.rand(20, 32, generator=generator) * 6.28
    rows = torch.randperm(3 * 64, generator=generator)[:num_tokens]
    slot_fp8, slot_scale = slot_bytes(rows)
    return {
        "compressed_kv": torch.randn(num_tokens, kv, generator=generator).to(BF16),
        "k_pe": torch.randn(num_tokens, 64, generator=generator).to(BF16),
        "cos_sin": torch.stack((angle.cos(), angle.sin()), dim=1),
        "positions": torch.randint(-5, 25, (num_tokens,), generator=generator),
        "slots": rows // 64 * 128 + rows % 64,
        "layer_offset": 64,
        "latent_rows": torch.full((3 * 2 * 64, kv + 64), torch.nan, dtype=BF16),
        "k": torch.randn(num_tokens, 128, generator=generator).mul(30).to(torch.float8_e4m3fn),
        "k_scale": torch.rand(num_tokens, 1, generator=generator),
        "slot_fp8": slot_fp8,
        "slot_scale": slot_scale,
        "index_cache": torch.full((3, BLOCK_BYTES), 0x7F, dtype=torch.uint8),
    }


def copies(args: dict[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in args.items()}


def assert_equal(want: dict[str, Any], got: dict[str, Any]) -> None:
    assert torch.equal(want["latent_rows"].view(torch.int16), got["latent_rows"].view(torch.int16))
    assert torch.equal(want["index_cache"], got["index_cache"])


@pytest.mark.parametrize(("num_tokens", "kv"), [(1, 512), (9, 32), (70, 64)])
def test_writes_exactly_these_rows(launch, generator, num_tokens, kv):
    """Kernel and oracle leave the same bytes, the NaN around them included."""
    got = make(generator, num_tokens, kv)
    want = copies(got)
    launch("cache_write.cache_write", *got.values())
    oracle.append(*want.values())
    assert_equal(want, got)
    assert int((~got["latent_rows"].isnan()).sum()) == num_tokens * (kv + 64)


def test_latent_rows_alone(launch, generator):
    """The index cache may belong to another launch; inputs may be slices of wider rows."""
    got = make(generator, 5, 32)
    wide = torch.cat((got["compressed_kv"], got["k_pe"]), dim=1)
    got["compressed_kv"], got["k_pe"] = wide[:, :32], wide[:, 32:]
    want = copies(got)
    launch("cache_write.append_latent", *list(got.values())[:7])
    oracle.append_latent(*list(want.values())[:7])
    assert_equal(want, got)


def test_slots_outside_touch_nothing(launch, generator):
    """Whatever lies outside of a cache is left out, one below the first row of a later layer too."""
    got = make(generator, 8, 32)
    num_rows, num_bytes = got["latent_rows"].shape[0], got["index_cache"].numel()
    bad = [-1, -64, -(2**31), 2**31 - 1, num_rows - 64, 2**62, -(2**62)]
    got["slots"][:7] = torch.tensor(bad)
    got["slot_fp8"][:7] = torch.tensor([-128, -1, -(2**31), 2**31, num_bytes, 2**62, -(2**62)])
    got["slot_scale"][:7] = torch.tensor([-4, -1, -(2**31), 2**31, num_bytes, 2**62, -(2**62)])
    want = copies(got)
    launch("cache_write.cache_write", *got.values())
    for name in ("compressed_kv", "k_pe", "positions", "slots", "k", "k_scale", "slot_fp8", "slot_scale"):
        want[name] = want[name][7:]
    oracle.append(*want.values())
    assert_equal(want, got)


def test_no_tokens_is_no_work(launch, generator):
    """0 tokens launch nothing."""
    got = make(generator, 0, 32)
    want = copies(got)
    launch("cache_write.cache_write", *got.values())
    assert_equal(want, got)


def test_wrong_operands_are_named(launch, generator):
    """The complaint names the tensor, what was expected and what came."""
    args = make(generator, 2, 32)
    with pytest.raises(ValueError, match=r"slots: expected torch\.int64, got torch\.int32"):
        launch("cache_write.cache_write", *(args | {"slots": args["slots"].int()}).values())
    with pytest.raises(ValueError, match=r"latent_rows: expected shape \[num_rows, 96\], got \[384, 95\]"):
        launch("cache_write.cache_write", *(args | {"latent_rows": args["latent_rows"][:, 1:]}).values())
    with pytest.raises(ValueError, match="compressed_kv: expected a power of two of columns, got 31"):
        launch("cache_write.cache_write", *(args | {"compressed_kv": args["compressed_kv"][:, 1:]}).values())


@pytest.mark.gpu
def test_full_size_on_the_gpu():
    """A prefill's worth of tokens, byte by byte."""
    from mlaprof.kernels.cache_write import cache_write

    generator = torch.Generator().manual_seed(random.randrange(2**31))
    args = make(generator, 150, 512)
    blocks = 80
    rows = torch.randperm(blocks * 64, generator=generator)[:4097]
    args |= {
        "compressed_kv": torch.randn(4097, 512, generator=generator).to(BF16),
        "k_pe": torch.randn(4097, 64, generator=generator).to(BF16),
        "positions": torch.randint(0, 20, (4097,), generator=generator),
        "slots": rows // 64 * 128 + rows % 64,
        "latent_rows": torch.full((blocks * 128, 576), torch.nan, dtype=BF16),
        "k": torch.randn(4097, 128, generator=generator).to(torch.float8_e4m3fn),
        "k_scale": torch.rand(4097, 1, generator=generator),
        "index_cache": torch.full((blocks, BLOCK_BYTES), 0x7F, dtype=torch.uint8),
    }
    args["slot_fp8"], args["slot_scale"] = slot_bytes(rows)
    got = {name: value.cuda() if isinstance(value, Tensor) else value for name, value in args.items()}
    want = copies(got)
    cache_write(*got.values())
    oracle.append(*want.values())
    assert_equal(want, got)
