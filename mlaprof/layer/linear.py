"""A bias-free projection over a weight that several layer variants may share: bf16, or e4m3 with block scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlaprof.layer.ops import OPS
from mlaprof.study import LinearKind

BLOCK = 128  # rows and columns of a weight that share a scale, and columns of an activation
FP8_MAX = 448.0
# What a V3.2 checkpoint holds in FP8 and engines multiply so; kv_b_proj is absorbed, the indexer's others are fp32.
BLOCK_SCALED = ("kv_a_proj_with_mqa.weight", "q_b_proj.weight", "o_proj.weight", "indexer.wq_b.weight")


class Linear(nn.Module):
    """y = x W^T with W [out_features, in_features], used as it is, never copied."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class BlockLinear(nn.Module):
    """The same with weights in blocks of 128 x 128 and activations in groups of 1 x 128, e4m3, summed in fp32.

    weight    as `through_blocks` leaves it, so that its codes and scales are the weight itself
    cublaslt  multiply by cuBLASLt, through torch._scaled_mm, and not by block_gemm
    """

    def __init__(self, weight: Tensor, *, cublaslt: bool) -> None:
        super().__init__()
        codes, scale = _block_quantised(weight)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.cublaslt = cublaslt

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = OPS.group_quant(x)
        product: Tensor = OPS.block_linear(codes, scale, self.weight, self.weight_scale, self.cublaslt)
        return product


def linear(weight: Tensor, kind: LinearKind) -> nn.Module:
    """The projection of this kind over weight [out_features, in_features] bf16."""
    return Linear(weight) if kind == "bf16" else BlockLinear(weight, cublaslt=kind == "cublaslt_block")


def through_blocks(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """weights with those of BLOCK_SCALED as e4m3 in blocks has them, in bf16: exact, as a scale is a power of two."""
    return {name: _dequantised(value) if name in BLOCK_SCALED else value for name, value in weights.items()}


def _dequantised(weight: Tensor) -> Tensor:
    codes, scale = _block_quantised(weight)
    wide = scale.repeat_interleave(BLOCK, 0)[: weight.shape[0]].repeat_interleave(BLOCK, 1)
    return (codes.float() * wide).to(weight.dtype)


def _block_quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(codes [n, k] e4m3, scale [ceil(n / 128), k / 128] fp32, powers of two rounded up) of weight [n, k]."""
    n, k = weight.shape
    if k % BLOCK:
        raise ValueError(f"weight: expected a multiple of {BLOCK} columns, got {k}")
    padded = F.pad(weight.float(), (0, 0, 0, -n % BLOCK)).view(-1, BLOCK, k // BLOCK, BLOCK)
    amax = padded.abs().amax((1, 3)).clamp(min=1e-10)
    scale = torch.exp2(torch.ceil(torch.log2(amax.double() / FP8_MAX))).float()
    codes = (padded / scale[:, None, :, None]).clamp(-FP8_MAX, FP8_MAX).reshape(-1, k)[:n]
    return codes.to(torch.float8_e4m3fn), scale


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
