"""Indexer logits: both forms against the fp32 oracle at odd sizes and bounds, and what the Hopper form compiles to."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.kernels import reference
from mlaprof.kernels.index_logits import index_logits
from mlaprof.kernels.offline import compile_resources
from mlaprof.kernels.reference import TOLERANCE, mismatch
from mlaprof.kernels.tiles import Dims, IndexLogitsTiles, hopper_index_logits
from mlaprof.kernels.tiles.hopper_index_logits import HopperIndexLogitsTiles
from mlaprof.kernels.work.index_logits import index_logits as work

TILES = IndexLogitsTiles(block_q=2, block_n=32, num_warps=4, num_stages=2)
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
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
    seed = random.randrange(2**31)
    logging.getLogger(__name__).warning("seed %d", seed)
    g = torch.Generator().manual_seed(seed)
    return Case(
        q=random_codes(g, n, num_heads, 128),
        k=random_codes(g, m, 128),
        k_scale=random_scale(g, m),
        weights=torch.randn(n, num_heads, generator=g),
        ks=torch.zeros(n, dtype=torch.int32),
        ke=(m - n + 1 + torch.arange(n)).int(),
    )


def compare(case: Case, got: Tensor) -> Tensor:
    """Which scores are seen [n, m]; they are the oracle's, and all others still hold the NaN of fresh memory."""
    want = reference.index_logits(*case.operands())
    seen = want != -torch.inf
    assert torch.isnan(got[~seen]).all()
    assert mismatch(want, torch.where(seen, got, -torch.inf), TOLERANCE[torch.float32]) is None
    return seen


def check(launch: Any, case: Case, tiles: IndexLogitsTiles | None = TILES) -> Tensor:
    return compare(case, launch("index_logits.index_logits", *case.operands(), tiles))


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
    """Bounds of several requests packed on one key axis; what a query does not own is not touched."""
    case = make_case(7, 7)
    case.ks = torch.tensor([0, 0, 0, 3, 3, 3, 3], dtype=torch.int32)
    case.ke = torch.tensor([1, 2, 3, 4, 5, 6, 7], dtype=torch.int32)
    assert check(launch, case).sum() == 1 + 2 + 3 + 1 + 2 + 3 + 4


def hostile_bounds(n: int, m: int) -> tuple[Tensor, Tensor]:
    """Every kind of bound with every other, as far as n rows reach."""
    kinds = [INT_MIN, -1, 0, 1, 20, m // 2, m - 1, m, m + 1, INT_MAX]
    pairs = torch.cartesian_prod(torch.tensor(kinds), torch.tensor(kinds))[torch.randperm(100)]
    chosen = pairs.repeat(-(-n // 100), 1)[:n].int()
    return chosen[:, 0].contiguous(), chosen[:, 1].contiguous()


def test_hostile_bounds(launch):
    """Bounds beyond the keys, reversed, negative and empty ones are cut to the keys there are."""
    case = make_case(10, 200)
    case.ks, case.ke = hostile_bounds(10, 200)
    check(launch, case)
    case.ks, case.ke = torch.full_like(case.ks, INT_MAX), torch.full_like(case.ke, INT_MIN)
    assert not check(launch, case).any()


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
    assert launch("index_logits.index_logits", *case.operands()).shape == (n, m)


def test_rows_are_whole_sectors_apart(launch):
    """The result is [n, m], in memory whose rows start at multiples of 32 bytes."""
    got = launch("index_logits.index_logits", *make_case(3, 41).operands(), None)
    assert got.shape == (3, 41) and got.stride() == (48, 1)


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


def test_hopper_form_refuses_what_it_cannot_take():
    """Too many heads and rows that a bulk copy cannot start at are named, with the form that takes them."""
    tiles = HopperIndexLogitsTiles(128, 16, 4, 1)
    with pytest.raises(ValueError, match=r"q: 65 heads exceed the 64 .*; use the portable form"):
        index_logits(*make_case(num_heads=65).operands(), tiles)
    case = make_case()
    case.k = torch.empty(77, 136).to(torch.float8_e4m3fn)[:, :128]
    with pytest.raises(ValueError, match=r"k: rows do not start at multiples of 16 bytes.*; use the portable form"):
        index_logits(*case.operands(), tiles)


def test_hopper_form_fits_its_estimate():
    """Without a GPU: shared memory is what was estimated, and barely less."""
    dims = Dims(128, 512, 64, 64, 128, 2048)
    tiles = hopper_index_logits.default(dims)
    got = compile_resources("index_logits@hopper", tiles, dims)
    assert got.shared_bytes <= hopper_index_logits.shared_bytes(tiles, dims) <= got.shared_bytes + 1024


def test_work_of_a_launch():
    """By hand: 3 queries of 2 heads over 5 keys, all of them or 3, 4 and 5."""
    assert work(3, 5, index_n_heads=2).flops == 15 * 2 * 256
    assert work(3, 5, causal=1, index_n_heads=2).flops == 12 * 2 * 256
    assert work(3, 5, causal=1, index_n_heads=2).bytes == 3 * 2 * 132 + 5 * 132 + 12 * 4


def on_gpu(case: Case, tiles: Any) -> None:
    there = Case(*(x.cuda() for x in case.operands()))
    torch.use_deterministic_algorithms(True)
    try:
        got = index_logits(*there.operands(), tiles)
    finally:
        torch.use_deterministic_algorithms(False)
    compare(there, got)


@pytest.mark.gpu
@pytest.mark.parametrize("n,m,num_heads", [(1, 5000, 64), (513, 4097, 64), (300, 8192, 32), (77, 3000, 24)])
def test_full_size_on_the_gpu(n, m, num_heads):
    """The models' own sizes, by the default of this GPU."""
    on_gpu(make_case(n, m, num_heads), None)


@pytest.mark.gpu
@pytest.mark.parametrize("tiles", [IndexLogitsTiles(2, 128, 8, 3), HopperIndexLogitsTiles(64, 16, 6, 3)], ids=str)
def test_either_form_on_the_gpu(tiles):
    """Whatever the default is, both forms give the same scores."""
    on_gpu(make_case(260, 4097, 64), tiles)


@pytest.mark.gpu
@pytest.mark.parametrize("tiles", [None, HopperIndexLogitsTiles(256, 16, 3, 2)], ids=str)
@pytest.mark.parametrize("n,m", [(100, 1000), (9000, 300)])
def test_hostile_bounds_on_the_gpu(n, m, tiles):
    """Groups of rows with nothing in common, empty rows between full ones, and more rows than are read at a time."""
    case = make_case(n, m, 64)
    case.ks, case.ke = hostile_bounds(n, m)
    on_gpu(case, tiles)
