"""The 1x128 activation quantiser: kernel against oracle bit by bit, oracle against exact arithmetic."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.kernels import reference
from mlaprof.kernels.work import Work
from mlaprof.kernels.work.group_quant import group_quant as work

SEED = random.SystemRandom().randrange(2**31)


def rows_of(m: int, k: int, seed: int) -> Tensor:
    """Fresh rows of every magnitude that bf16 scales of activations reach."""
    g = torch.Generator().manual_seed(seed)
    print(f"seed {seed}")  # noqa: T201 - names the data of a failure
    magnitude = torch.randint(-30, 30, (m, k // 128, 1), generator=g).float().exp2()
    return (torch.randn(m, k // 128, 128, generator=g) * magnitude).flatten(1).bfloat16()


def check(launch: Any, x: Tensor, ue8m0: bool = False) -> None:
    codes, scale = launch("group_quant.group_quant", x, ue8m0)
    want_codes, want_scale = reference.group_quant(x, ue8m0)
    assert torch.equal(want_scale, scale)
    assert torch.equal(want_codes.view(torch.uint8), codes.view(torch.uint8))
    assert scale.stride(1) % 4 == 0 and (scale.shape[0] < 2 or scale.stride(0) == 1)


@pytest.mark.parametrize("ue8m0", [False, True], ids=["amax", "ue8m0"])
@pytest.mark.parametrize("m,k", [(1, 384), (5, 1024), (33, 256)], ids=str)
def test_kernel_equals_oracle(launch, m, k, ue8m0):
    """Codes and scales are the same bits, whatever a group's magnitude."""
    check(launch, rows_of(m, k, SEED + m), ue8m0)


def test_zero_rows_and_extremes(launch):
    """A group of zeros, of the smallest values and with one of the largest."""
    x = torch.zeros(4, 128, dtype=torch.bfloat16)
    x[1] = 2.0**-133
    x[2, 7] = torch.finfo(torch.bfloat16).max
    x[3] = -1e-10
    check(launch, x)
    check(launch, x, True)


def test_rows_need_not_be_adjacent(launch):
    """Rows may be slices of wider ones; what lies beside them is not read."""
    wide = torch.full((9, 700), torch.nan, dtype=torch.bfloat16)
    wide[:, 64:320] = rows_of(9, 256, SEED)
    check(launch, wide[:, 64:320])


def test_no_rows_is_no_work(launch):
    """0 rows launch nothing and give empty results of the right shape."""
    codes, scale = launch("group_quant.group_quant", torch.zeros(0, 256, dtype=torch.bfloat16))
    assert (codes.shape, scale.shape) == ((0, 256), (0, 2))


@pytest.mark.parametrize(
    "x,complaint",
    [
        (torch.zeros(2, 128), r"x: expected torch\.bfloat16, got torch\.float32"),
        (torch.zeros(2, 100, dtype=torch.bfloat16), r"x: expected a multiple of 128 columns, got 100"),
        (torch.zeros(128, 2, dtype=torch.bfloat16).T, r"x: expected a contiguous last dimension"),
    ],
    ids=["dtype", "columns", "strides"],
)
def test_wrong_operand_is_named(launch, x, complaint):
    """The complaint names what was expected and what came."""
    with pytest.raises(ValueError, match=complaint):
        launch("group_quant.group_quant", x)


def test_oracle_scale_is_the_nearest_quotient():
    """The oracle against exact fractions: no fp32 is nearer to amax / 448, and the power of two just reaches it."""
    x = rows_of(40, 128, SEED)
    _, scale = reference.group_quant(x)
    _, power = reference.group_quant(x, True)
    for row, s, p in zip(x.float(), scale[:, 0], power[:, 0].tolist(), strict=True):
        exact = max(Fraction(row.abs().max().item()), Fraction(torch.tensor(1e-10).item())) / 448
        near = [Fraction(s.nextafter(torch.tensor(to)).item()) for to in (0.0, torch.inf)]
        assert all(abs(Fraction(s.item()) - exact) <= abs(other - exact) for other in near)
        assert Fraction(p) >= exact > Fraction(p) / 2


def test_work():
    """As the peers' 2093 GB/s at 42.5 us count it: bf16 in, codes and scales out."""
    assert work(4096, 7168) == Work(flops=0, bytes=4096 * 7168 * 3 + 4096 * 56 * 4)


@pytest.mark.gpu
@pytest.mark.parametrize("m,k", [(1, 7168), (67, 16384), (4097, 1536)], ids=str)
def test_full_size_on_the_gpu(m, k):
    """Every way of cutting rows into programs, bit by bit."""
    from mlaprof.kernels.group_quant import group_quant

    x = rows_of(m, k, SEED).cuda()
    codes, scale = group_quant(x)
    want_codes, want_scale = reference.group_quant(x)
    assert torch.equal(want_scale, scale)
    assert torch.equal(want_codes.view(torch.uint8), codes.view(torch.uint8))
