"""RMSNorm alone and with quantisation, against torch's own."""

from __future__ import annotations

import logging
import random

import pytest
import torch

from mlaprof.kernels import reference_fused as oracle

BF16 = torch.bfloat16


def make(num_rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    seed = random.randrange(2**31)
    logging.getLogger(__name__).warning("seed %d", seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, width + 8, generator=generator) * torch.exp2(torch.arange(num_rows) % 20 - 10.0)[:, None]
    weight = 1 + 0.1 * torch.randn(width, generator=generator)
    return x.to(BF16)[:, 8:], weight.to(BF16), 1e-6


@pytest.mark.parametrize(("num_rows", "width"), [(1, 7168), (3, 384), (5, 128)])
def test_rmsnorm(launch, num_rows, width):
    """Rows at a stride; the same bits but where a sum in another order tips a rounding."""
    args = make(num_rows, width)
    want, got = oracle.rmsnorm(*args), launch("rmsnorm.rmsnorm", *args)
    apart = (want.view(torch.int16).int() - got.view(torch.int16).int()).abs()
    assert int(apart.max()) <= 1 and float((apart > 0).double().mean()) <= 0.01


@pytest.mark.parametrize(("num_rows", "width"), [(1, 7168), (3, 384)])
def test_rmsnorm_quant(launch, num_rows, width):
    """Equal scales; codes one step apart at most, where the norm was."""
    args = make(num_rows, width)
    (want, want_scale), (got, scale) = oracle.rmsnorm_quant(*args), launch("rmsnorm.rmsnorm_quant", *args)
    assert got.shape == want.shape and torch.equal(want_scale, scale)
    apart = (want.view(torch.uint8).int() - got.view(torch.uint8).int()).abs()
    assert int(apart.max()) <= 1 and float((apart > 0).double().mean()) <= 0.01


def test_zero_rows_stay_zero(launch):
    """A row without a mean square is divided by the root of eps."""
    x, weight = torch.zeros(2, 256, dtype=BF16), torch.ones(256, dtype=BF16)
    assert not launch("rmsnorm.rmsnorm", x, weight, 1e-6).any()
    codes, scale = launch("rmsnorm.rmsnorm_quant", x, weight, 1e-6)
    assert not codes.float().any() and torch.equal(scale, torch.full((2, 2), 2.0**-22))


def test_no_rows_is_no_work(launch):
    """0 rows launch nothing."""
    x, weight, eps = make(0, 256)
    assert launch("rmsnorm.rmsnorm", x, weight, eps).shape == (0, 256)
    codes, scale = launch("rmsnorm.rmsnorm_quant", x, weight, eps)
    assert (codes.shape, scale.shape) == ((0, 256), (0, 2))


def test_wrong_operands_are_named(launch):
    """The complaint names the tensor, what was expected and what came."""
    x, weight, eps = make(2, 256)
    with pytest.raises(ValueError, match="weight: expected a multiple of 128 columns, got 255"):
        launch("rmsnorm.rmsnorm", x[:, 1:], weight[1:], eps)
    with pytest.raises(ValueError, match=r"x: expected shape \[num_rows, 128\], got \[2, 256\]"):
        launch("rmsnorm.rmsnorm_quant", x, weight[:128], eps)
