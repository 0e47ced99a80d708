"""The token-wise kernels behind the first products: norms, index key, index queries, query rotation.

Kernels and oracles round at the same places, so results are the same bits but where an fp32 sum, taken in another
order, tips a rounding: then a bf16 value is one step off, and an e4m3 code of the index key one code.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.kernels import reference_fused as oracle

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
BF16, F32 = torch.bfloat16, torch.float32


@pytest.fixture
def generator() -> torch.Generator:
    seed = random.randrange(2**31)
    logging.getLogger(__name__).warning("seed %d", seed)
    return torch.Generator().manual_seed(seed)


def angles(generator: torch.Generator, num_tokens: int, max_positions: int = 50) -> tuple[Tensor, Tensor]:
    """A table of cosines and sines, and positions of which some lie outside of it."""
    angle = torch.rand(max_positions, 32, generator=generator) * 6.28
    positions = torch.randint(0, max_positions, (num_tokens,), generator=generator)
    hostile = torch.tensor([INT_MIN, -1, max_positions, INT_MAX, 2**62, -(2**62)])
    positions[: min(num_tokens, 6)] = hostile[:num_tokens]
    return torch.stack((angle.cos(), angle.sin()), dim=1), positions


def draw(generator: torch.Generator, *size: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*size, generator=generator).to(dtype)


def about_one(generator: torch.Generator, width: int) -> Tensor:
    return (1 + 0.1 * torch.randn(width, generator=generator)).to(BF16)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()]).long()


def assert_one_step_at_most(want: Tensor, got: Tensor) -> None:
    """Equal bits but for one value in a hundred, and those one step off."""
    assert want.shape == got.shape and want.dtype == got.dtype
    apart = (bits(want) - bits(got)).abs()
    assert int(apart.max()) <= 1 and float((apart > 0).double().mean()) <= 0.01


def same(want: tuple[Tensor, ...], got: tuple[Tensor, ...]) -> None:
    assert len(want) == len(got)
    for w, g in zip(want, got, strict=True):
        assert w.shape == g.shape and torch.equal(bits(w), bits(g))


def projection(generator: torch.Generator, num_tokens: int, q: int, kv: int) -> tuple[Any, ...]:
    fused = draw(generator, num_tokens, q + kv + 64)
    if num_tokens:
        fused[0] = 0  # a row without a mean square
    return fused, about_one(generator, q), about_one(generator, kv), 1e-6


def key(generator: torch.Generator, num_tokens: int, index_k: Tensor) -> tuple[Any, ...]:
    bias = (0.1 * torch.randn(128, generator=generator)).to(BF16)
    return index_k, about_one(generator, 128), bias, 1e-6, *angles(generator, num_tokens)


@pytest.mark.parametrize(
    ("num_tokens", "q", "kv", "interleaved"), [(1, 1536, 512, False), (7, 192, 32, True), (3, 2048, 512, False)]
)
def test_norm_rope(launch, generator, num_tokens, q, kv, interleaved):
    """Widths that fill no power of two, both pairings, key and head weights side by side in one product."""
    index_k = draw(generator, num_tokens, 192, dtype=F32)[:, :128]
    args = *projection(generator, num_tokens, q, kv), *key(generator, num_tokens, index_k)
    got = launch("norm_rope.norm_rope", *args, interleaved=interleaved)
    want = oracle.norm_rope(*args, interleaved=interleaved)
    for name, w, g in zip(("qr", "compressed_kv", "k_pe", "latent_cache", "codes"), want, got, strict=False):
        assert_one_step_at_most(w, g), name
    assert torch.equal(want[5], got[5])


def test_parts_are_the_whole(launch, generator):
    """Norms alone and index key alone give the same bits as both in one launch; a bf16 key equals an fp32 one."""
    args = projection(generator, 5, 320, 64)
    keys = key(generator, 5, draw(generator, 5, 128))
    whole = launch("norm_rope.norm_rope", *args, *keys, interleaved=False)
    same(whole[:4], launch("norm_rope.project_norms", *args))
    same(whole[4:], launch("norm_rope.index_key", keys[0].float(), *keys[1:], interleaved=False))


def test_a_row_does_not_see_its_neighbours(launch, generator):
    """The same row gives the same bits at another place among other rows, NaN ones included."""
    fused, *norms = projection(generator, 6, 320, 64)
    index_k, *keys, cos_sin, positions = key(generator, 6, draw(generator, 6, 128, dtype=F32))
    alone = launch(
        "norm_rope.norm_rope", fused[3:4], *norms, index_k[3:4], *keys, cos_sin, positions[3:4], interleaved=False
    )
    fused, index_k = fused.clone(), index_k.clone()
    fused[[0, 2, 4]], index_k[[0, 2, 4]] = torch.nan, torch.nan
    among = launch("norm_rope.norm_rope", fused, *norms, index_k, *keys, cos_sin, positions, interleaved=False)
    same(alone, tuple(part[3:4] for part in among))


@pytest.mark.parametrize(("num_tokens", "heads", "interleaved"), [(1, 64, False), (5, 9, False), (3, 32, True)])
def test_index_query(launch, generator, num_tokens, heads, interleaved):
    """The same bits as rotating, quantising and scaling one after the other; magnitudes from 2**-20 to 2**19."""
    spread = torch.exp2(torch.arange(num_tokens * heads) % 40 - 20.0).view(num_tokens, heads, 1)
    q = (torch.randn(num_tokens, heads, 128, generator=generator) * spread).to(BF16).view(num_tokens, -1)
    weights = draw(generator, num_tokens, 128 + heads, dtype=F32)[:, 128:]
    args = q, weights, *angles(generator, num_tokens), 0.011048543456039806
    got = launch("index_query.index_query", *args, interleaved=interleaved)
    same(oracle.index_query(*args, interleaved=interleaved), got)


def test_strided_queries(launch, generator):
    """Queries may be a slice of a wider product, at any element."""
    q = draw(generator, 4, 5 * 128 + 3)[:, 3:]
    args = q, draw(generator, 4, 5, dtype=F32), *angles(generator, 4), 0.5
    same(oracle.index_query(*args, interleaved=False), launch("index_query.index_query", *args, interleaved=False))


@pytest.mark.parametrize(("num_tokens", "heads"), [(1, 128), (5, 7)])
def test_query_rope(launch, generator, num_tokens, heads):
    """Rotated in place beside columns that stay as they are, the same bits as the oracle."""
    q_pe = draw(generator, num_tokens, heads, 192)[..., 128:]
    table = angles(generator, num_tokens)
    got = draw(generator, num_tokens, heads, 96)
    want = got.clone()
    launch("query_rope.query_rope", q_pe, *table, got[..., 32:])
    oracle.query_rope(q_pe, *table, want[..., 32:])
    assert torch.equal(want, got)


def test_no_rows_is_no_work(launch, generator):
    """0 tokens launch nothing and give empty results of the right shapes."""
    args = *projection(generator, 0, 192, 32), *key(generator, 0, draw(generator, 0, 128, dtype=F32))
    got = launch("norm_rope.norm_rope", *args, interleaved=False)
    assert [list(part.shape) for part in got] == [[0, 192], [0, 32], [0, 64], [0, 96], [0, 128], [0, 1]]
    query = torch.zeros(0, 256, dtype=BF16), torch.zeros(0, 2), *angles(generator, 0), 1.0
    codes, weights = launch("index_query.index_query", *query, interleaved=False)
    assert (codes.shape, weights.shape) == ((0, 2, 128), (0, 2))
    launch(
        "query_rope.query_rope",
        torch.zeros(0, 2, 64, dtype=BF16),
        *angles(generator, 0),
        torch.zeros(0, 2, 64).bfloat16(),
    )


def test_wrong_operands_are_named(launch, generator):
    """The complaint names the tensor, what was expected and what came."""
    fused, *norms = projection(generator, 2, 192, 32)
    with pytest.raises(ValueError, match=r"fused: expected shape \[num_tokens, 288\], got \[2, 287\]"):
        launch("norm_rope.project_norms", fused[:, 1:], *norms)
    with pytest.raises(ValueError, match="kv_weight: expected a power of two of columns, got 33"):
        launch("norm_rope.project_norms", fused, norms[0], about_one(generator, 33), 1e-6)
    table = angles(generator, 2)
    with pytest.raises(ValueError, match=r"q: expected shape \[2, 256\], got \[2, 255\]"):
        q, weights = torch.zeros(2, 255, dtype=BF16), torch.zeros(2, 2)
        launch("index_query.index_query", q, weights, *table, 1.0, interleaved=False)
    with pytest.raises(ValueError, match="cos_sin: expected at least one position, got none"):
        query = torch.zeros(2, 1, 64, dtype=BF16)
        launch("query_rope.query_rope", query, table[0][:0], table[1], query)


@pytest.mark.gpu
def test_full_size_on_the_gpu():
    """A prefill's worth of tokens. Of keys whose norm is tipped over a power of two, the scale may differ."""
    from mlaprof.kernels import index_query, norm_rope, query_rope

    generator = torch.Generator().manual_seed(random.randrange(2**31))
    table = tuple(each.cuda() for each in angles(generator, 4097, 8192))
    args = *projection(generator, 4097, 1536, 512), *key(generator, 4097, draw(generator, 4097, 128, dtype=F32))[:4]
    args = *(each.cuda() if isinstance(each, Tensor) else each for each in args), *table
    want, got = (form.norm_rope(*args, interleaved=False) for form in (oracle, norm_rope))
    for w, g in zip(want[:4], got[:4], strict=True):
        assert_one_step_at_most(w, g)
    agree = (want[5] == got[5])[:, 0]
    assert float((~agree).double().mean()) <= 1e-3
    assert_one_step_at_most(want[4][agree], got[4][agree])
    queries = torch.randn(4097, 64 * 128, device="cuda").to(BF16), torch.randn(4097, 64, device="cuda"), *table, 0.011
    same(*(form.index_query(*queries, interleaved=False) for form in (oracle, index_query)))
    q_pe, absorbed = torch.randn(4097, 128, 192, device="cuda").to(BF16)[..., 128:], torch.zeros(2, 4097, 128, 576)
    absorbed = absorbed.to("cuda", BF16)
    oracle.query_rope(q_pe, *table, absorbed[0, ..., 512:])
    query_rope.query_rope(q_pe, *table, absorbed[1, ..., 512:])
    assert torch.equal(absorbed[0], absorbed[1])
