"""The projections: bf16, or e4m3 in blocks with what the oracle multiplies."""

from __future__ import annotations

import pytest
import torch

from mlaprof.layer.linear import BLOCK_SCALED, BlockLinear, linear, through_blocks
from mlaprof.layer.ops import OPS


def weight_of(n: int, k: int) -> torch.Tensor:
    """Blocks of very different size."""
    sizes = torch.logspace(-3, 1, k // 128).repeat_interleave(128)
    return (torch.randn(n, k) * sizes).bfloat16()


@pytest.mark.parametrize("n", [16, 128, 208])
def test_codes_and_scales_are_the_rounded_weight_itself(n):
    """A scale is a power of two, so nothing is lost between bf16 and the blocks, and rounding twice changes nothing."""
    name = BLOCK_SCALED[0]
    rounded = through_blocks({name: weight_of(n, 256), "other": torch.ones(1)})
    layer = BlockLinear(rounded[name], cublaslt=False)
    wide = layer.weight_scale.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)
    assert torch.equal((layer.weight.float() * wide).bfloat16(), rounded[name])
    assert torch.equal(through_blocks(rounded)[name], rounded[name])
    assert bool(layer.weight_scale.log2().frac().eq(0).all())
    assert rounded["other"].item() == 1


@pytest.mark.parametrize("kind", ["fp8_block", "cublaslt_block"])
@pytest.mark.parametrize("rows", [0, 1, 33])
def test_the_product_is_that_of_what_both_sides_were_rounded_to(kind, rows):
    """Within bf16's rounding of the result: 1x128 activations, 128x128 weights, fp32 sums."""
    weight = through_blocks({BLOCK_SCALED[1]: weight_of(144, 384)})[BLOCK_SCALED[1]]
    x = torch.randn(rows, 384).bfloat16()
    codes, scale = OPS.group_quant(x)
    got = linear(weight, kind)(x)
    want = (codes.float().unflatten(1, (-1, 128)) * scale[..., None]).flatten(1) @ weight.float().T
    assert got.dtype == torch.bfloat16 and got.shape == (rows, 144)
    if rows:
        assert float((got - want).norm() / want.norm()) < 4e-3
        exact = x.float() @ weight.float().T
        assert 1e-3 < float((got - exact).norm() / exact.norm()) < 0.05  # e4m3 keeps 3 bits


def test_a_weight_that_blocks_do_not_fit_is_a_programmers_error():
    with pytest.raises(ValueError, match="weight: expected a multiple of 128 columns, got 200"):
        linear(torch.zeros(128, 200).bfloat16(), "fp8_block")
