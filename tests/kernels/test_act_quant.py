"""The 1x128 quantiser: kernel against oracle bit by bit, oracle against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.kernels import reference


def check(launch: Any, x: Tensor) -> None:
    codes, scale = launch("act_quant.act_quant", x)
    want_codes, want_scale = reference.act_quant(x)
    assert torch.equal(want_scale, scale)
    assert torch.equal(want_codes.view(torch.uint8), codes.view(torch.uint8))


def edge_rows() -> Tensor:
    """Rows whose amax is 448 * 2**k, its neighbours, a power of two, tiny or huge: where rounding up is decided."""
    rows = torch.zeros(0, 128)
    for k in (-30, -22, -21, -9, -1, 0, 1, 7, 60, 118):
        exact = torch.tensor(448.0) * 2.0**k
        for amax in (exact, exact.nextafter(torch.tensor(0.0)), exact.nextafter(torch.tensor(torch.inf)), 2.0**k):
            row = torch.linspace(-1, 1, 128)[None] * amax
            row[0, 5] = amax
            rows = torch.cat([rows, row])
    return torch.cat([rows, torch.zeros(1, 128), torch.full((1, 128), 1e-4)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [1, 7, 33], ids="{} rows".format)
def test_kernel_equals_oracle(launch, n, dtype):
    """Codes and scales are the same bits, whatever the row's magnitude."""
    g = torch.Generator().manual_seed(n)
    check(launch, (torch.randn(n, 128, generator=g) * torch.exp2(torch.arange(n) % 40 - 20.0)[:, None]).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_exact_powers_stay(launch, dtype):
    """At 448 * 2**k the scale is 2**k, one step above it 2**(k + 1)."""
    check(launch, edge_rows().to(dtype))


def test_rows_need_not_be_adjacent(launch):
    """Heads may be slices of wider rows, and tokens of a wider buffer."""
    g = torch.Generator().manual_seed(3)
    check(launch, torch.randn(5, 9, 192, generator=g)[:, 2:6, 64:])
    check(launch, torch.randn(11, 300, generator=g).bfloat16()[:, 7:135])
    check(launch, torch.randn(2, 3, 4, 128, generator=g)[:, 1:])


@pytest.mark.parametrize("shape", [(0, 128), (0, 4, 128), (3, 0, 128)], ids=str)
def test_no_rows_is_no_work(launch, shape):
    """0 rows launch nothing and give empty results of the right shape."""
    codes, scale = launch("act_quant.act_quant", torch.zeros(shape))
    assert (codes.shape, scale.shape) == (shape, (*shape[:-1], 1))


def test_scale_is_the_smallest_power_of_two_that_fits():
    """The oracle against exact fractions: scale * 448 >= max(amax, 1e-4) > scale / 2 * 448."""
    rows = edge_rows()
    _, scale = reference.act_quant(rows)
    for row, s in zip(rows, scale[:, 0].tolist(), strict=True):
        amax = max(Fraction(row.abs().max().item()), Fraction(torch.tensor(1e-4).item()))
        assert Fraction(s) * 448 >= amax > Fraction(s) * 224
        assert Fraction(s).numerator == 1 or Fraction(s).denominator == 1


def test_oracle_is_close_to_its_input():
    """Dequantised values are within half a step of e4m3: 1/16 of the value, or the smallest subnormal."""
    x = torch.randn(50, 128)
    codes, scale = reference.act_quant(x)
    assert bool(((codes.float() * scale - x).abs() <= x.abs() / 16 + scale * 2**-10).all())


def test_wrong_operand_is_named(launch):
    """The complaint names what was expected and what came."""
    with pytest.raises(ValueError, match=r"x: expected torch\.bfloat16 or torch\.float32, got torch\.float16"):
        launch("act_quant.act_quant", torch.zeros(2, 128, dtype=torch.float16))


@pytest.mark.gpu
def test_full_size_on_the_gpu():
    """A prefill's worth of index queries, bit by bit."""
    from mlaprof.kernels.act_quant import act_quant

    x = torch.randn(4097, 64, 192, device="cuda", dtype=torch.bfloat16)[..., :128]
    codes, scale = act_quant(x)
    want_codes, want_scale = reference.act_quant(x)
    assert torch.equal(want_scale, scale)
    assert torch.equal(want_codes.view(torch.uint8), codes.view(torch.uint8))
