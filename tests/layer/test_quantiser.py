"""The 1x128 quantiser as the layer calls it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mlaprof.kernels.reference import act_quant
from mlaprof.layer.indexer import QUANT_BLOCK_SIZE


def exact_codes(row: list[float], scale: float) -> list[float]:
    """Round-to-nearest-even e4m3 of row / scale by arithmetic on Python floats: 3 mantissa bits, exponent from -6."""
    rounded = []
    for value in row:
        x = max(-448.0, min(448.0, value / scale))
        step = 2.0 ** (max(math.frexp(x)[1] - 1, -6) - 3) if x else 1.0
        rounded.append(round(x / step) * step)  # Python rounds halves to even
    return rounded


@pytest.mark.parametrize("amplitude", [1e-6, 0.3, 1.0, 448.0, 3e4], ids="amplitude {}".format)
def test_a15_rows_of_128_become_e4m3_under_one_power_of_two_rounded_up(amplitude):
    """Scale: the smallest power of two under which the row fits 448, fp32, one a row. Codes: x / scale, rounded to
    nearest even in e4m3. Checked in exact arithmetic."""
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1)).mul(amplitude).bfloat16()
    codes, scale = act_quant(x)
    assert (codes.dtype, scale.dtype, tuple(scale.shape)) == (torch.float8_e4m3fn, torch.float32, (5, 1))
    for row, row_codes, s in zip(x.tolist(), codes.float().tolist(), scale[:, 0].tolist(), strict=True):
        amax = max(max(map(abs, row)), 1e-4)
        assert math.log2(s) == int(math.log2(s))
        assert s * 448 >= amax > s / 2 * 448
        assert exact_codes(row, s) == row_codes


def test_a15_exact_powers_stay_and_anything_above_rounds_up():
    """amax = 448 * 2^k keeps 2^k; the next float above takes 2^(k+1)."""
    at = torch.zeros(2, 128)
    at[0, 3] = 448.0 * 2**-5
    at[1, 3] = at[0, 3].nextafter(torch.tensor(torch.inf))
    assert act_quant(at)[1][:, 0].tolist() == [2**-5, 2**-4]


@pytest.mark.parametrize("shape", [(0, 128), (0, 8, 128)])
def test_a15_no_rows_are_allowed(shape):
    """An empty step gives empty tensors of the right shapes."""
    codes, scale = act_quant(torch.zeros(shape, dtype=torch.bfloat16))
    assert (codes.shape, scale.shape) == (shape, (*shape[:-1], 1))


def test_a15_a_row_of_zeros_has_a_finite_scale():
    """The floor of amax keeps it from dividing by nothing."""
    codes, scale = act_quant(torch.zeros(1, 128))
    assert bool(codes.float().eq(0).all()) and 0 < float(scale) < 1e-3


def test_a15_order_inside_an_index_head_is_rope_then_nope(bench):
    """Quantised together as one block of 128: codes times scale are [rotated first 64 | the rest as projected]."""
    assert QUANT_BLOCK_SIZE == 128
    hidden, positions = bench.load(bench.batch([(3, 0)]))
    indexer, rope = bench.attn.indexer, bench.shape.qk_rope_head_dim
    positions = positions + 11
    cos_sin = bench.attn.cos_sin[positions]
    qr = torch.randn(3, bench.shape.q_lora_rank).bfloat16()
    q_fp8, *_ = indexer.pre_indexer_proj(qr, hidden, bench.attn.cos_sin, positions, bench.context())
    projected = indexer.wq_b(qr).view(3, -1, 128)
    scale = _scale(projected, cos_sin, rope, interleaved=bench.shape.indexer_rope_interleave)
    got = q_fp8.float() * scale
    assert (got[..., rope:] - projected[..., rope:]).abs().max() <= projected.abs().max() / 16
    assert (got[..., :rope] - projected[..., :rope]).norm() > 0.3 * projected[..., :rope].norm()


def _scale(x: Tensor, cos_sin: Tensor, rope: int, *, interleaved: bool) -> Tensor:
    """The power-of-two scale of rows whose first rope elements were turned pair by pair."""
    x = x.double()
    a, b = (x[..., 0:rope:2], x[..., 1:rope:2]) if interleaved else (x[..., : rope // 2], x[..., rope // 2 : rope])
    cos, sin = cos_sin[:, None, 0].double(), cos_sin[:, None, 1].double()
    turned = torch.cat((a * cos - b * sin, b * cos + a * sin, x[..., rope:]), dim=-1).bfloat16()
    return act_quant(turned)[1]
