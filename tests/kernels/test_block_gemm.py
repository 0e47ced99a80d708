"""fp8 product with block scales: every form against the fp32 oracle."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.kernels import reference
from mlaprof.kernels.reference import TOLERANCE, mismatch
from mlaprof.kernels.tiles.block_gemm import BlockGemmTiles
from mlaprof.kernels.work import Work
from mlaprof.kernels.work.block_gemm import block_gemm as work

SEED = random.SystemRandom().randrange(2**31)
NAN_BYTE = 0x7F  # an e4m3 NaN; four of them make a NaN fp32 too


@dataclass
class Case:
    a: Tensor  # [m, k] e4m3
    a_scale: Tensor  # [m, k / 128] fp32, column-major
    b: Tensor  # [n, k] e4m3
    b_scale: Tensor  # [ceil(n / 128), k / 128] fp32

    def operands(self) -> tuple[Tensor, ...]:
        return self.a, self.a_scale, self.b, self.b_scale


def make_case(m: int, n: int, k: int) -> Case:
    """Fresh codes of every size and scales of either side of 1; what lies beside the scales' columns is NaN."""
    g = torch.Generator().manual_seed(SEED)
    print(f"seed {SEED}")  # noqa: T201 - names the data of a failure
    columns = torch.full((k // 128, m + (-m) % 4), torch.nan)
    columns[:, :m] = torch.randn(k // 128, m, generator=g).exp()
    return Case(
        a=torch.randn(m, k, generator=g).mul(40).to(torch.float8_e4m3fn),
        a_scale=columns.T[:m],
        b=torch.randn(n, k, generator=g).mul(40).to(torch.float8_e4m3fn),
        b_scale=torch.randn(-(-n // 128), k // 128, generator=g).exp(),
    )


def check(launch: Any, case: Case, tiles: BlockGemmTiles | None = None) -> None:
    out = torch.full((case.a.shape[0], case.b.shape[0]), torch.nan, dtype=torch.bfloat16)
    launch("block_gemm.block_gemm", *case.operands(), tiles, out=out)
    assert mismatch(reference.block_gemm(*case.operands()), out, TOLERANCE[torch.bfloat16]) is None


@pytest.mark.parametrize("m,n,k", [(1, 16, 128), (5, 144, 384), (33, 208, 256), (70, 272, 128)], ids=str)
def test_odd_sizes(launch, m, n, k):
    """Neither tokens nor weight rows need fill a tile, nor k a stage."""
    check(launch, make_case(m, n, k))


@pytest.mark.parametrize(
    "tiles", [BlockGemmTiles(16, 32, 4, 2), BlockGemmTiles(32, 64, 4, 1), BlockGemmTiles(64, 16, 4, 3)], ids=str
)
def test_every_tile_gives_the_same_answer(launch, tiles):
    """Tiles change the time, not the value."""
    check(launch, make_case(35, 144, 256), tiles)


def test_operands_may_be_slices(launch):
    """Rows wider than k, surrounded by NaN; a result inside a wider one."""
    case = make_case(6, 32, 256)
    wide = torch.full((6, 512), NAN_BYTE, dtype=torch.uint8).view(torch.float8_e4m3fn)
    wide.view(torch.uint8)[:, 128:384] = case.a.view(torch.uint8)
    out = torch.full((6, 64), torch.nan, dtype=torch.bfloat16)
    launch("block_gemm.block_gemm", wide[:, 128:384], *case.operands()[1:], out=out[:, 16:48])
    assert mismatch(reference.block_gemm(*case.operands()), out[:, 16:48], TOLERANCE[torch.bfloat16]) is None
    assert bool(out[:, :16].isnan().all()) and bool(out[:, 48:].isnan().all())


def test_no_tokens_is_no_work(launch):
    """0 tokens launch nothing and give an empty result of the right shape."""
    case = make_case(4, 32, 128)
    assert launch("block_gemm.block_gemm", case.a[:0], case.a_scale[:0], case.b, case.b_scale).shape == (0, 32)


@pytest.mark.parametrize(
    "change,complaint",
    [
        ({"a": torch.zeros(4, 256)}, r"a: expected torch\.float8_e4m3fn, got torch\.float32"),
        ({"a_scale": torch.ones(4, 2)}, r"a_scale: expected columns stored one after the other, got strides \(2, 1\)"),
        ({"a_scale": torch.ones(2, 3).T}, r"a_scale: expected shape \[4, 2\], got \[3, 2\]"),
        ({"b_scale": torch.ones(2, 2)}, r"b_scale: expected shape \[1, 2\], got \[2, 2\]"),
        ({"b": torch.zeros(24, 256).to(torch.float8_e4m3fn)}, r"b: expected n a multiple of 16 .* got \[24, 256\]"),
    ],
    ids=["dtype", "row-major scales", "tokens", "blocks", "n"],
)
def test_wrong_operand_is_named(launch, change, complaint):
    """The complaint names what was expected and what came."""
    with pytest.raises(ValueError, match=complaint):
        launch("block_gemm.block_gemm", *replace(make_case(4, 32, 256), **change).operands())


def test_oracle_against_one_product():
    """The oracle's blocks against the product of the dequantised operands in double precision."""
    case = make_case(3, 144, 256)
    a = case.a.double() * case.a_scale.double().repeat_interleave(128, 1)
    b = case.b.double() * case.b_scale.double().repeat_interleave(128, 0)[:144].repeat_interleave(128, 1)
    assert mismatch(a @ b.T, reference.block_gemm(*case.operands()), TOLERANCE[torch.bfloat16]) is None


def test_work():
    """As the peers count: two FLOP a multiply-add; codes, scales and result once."""
    got = work(4096, 2112, 7168)
    assert got == Work(2 * 4096 * 2112 * 7168, 4096 * 7168 + 2112 * 7168 + 4 * (4096 + 17) * 56 + 2 * 4096 * 2112)
