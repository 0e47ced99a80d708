"""fp8 product with block scales, and the quantiser of its activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlaprof import peers
from mlaprof.cases.case import (
    FP8,
    FP8_MAX,
    GROUP,
    MAX_CODE_ERROR,
    Precision,
    close,
    dequantised,
    generator,
    no_tiles,
    normal,
    own_tiles,
    quantised,
    sampled,
    tensors,
)
from mlaprof.facts import Check
from mlaprof.kernel_shapes import OWN
from mlaprof.kernels.block_gemm import block_gemm
from mlaprof.kernels.group_quant import empty_scales, group_quant
from mlaprof.kernels.work import Work
from mlaprof.kernels.work.block_gemm import block_gemm as gemm_work
from mlaprof.kernels.work.group_quant import group_quant as quant_work
from mlaprof.peers import Prepared
from mlaprof.peers.package import HOPPER, capability, dense_columns

ROWS_OF_CUBLAS = 16  # it refuses one row with block scales


@dataclass(frozen=True, eq=False)
class BlockGemm:
    """[m, k] x [n, k]^T."""

    shape: Mapping[str, int]
    a: Tensor  # [m, k] e4m3
    a_scale: Tensor  # [m, k / 128] fp32, column-major
    b: Tensor  # [n, k] e4m3
    b_scale: Tensor  # [n / 128, k / 128] fp32
    work: Work
    kernel: str = "block_gemm"
    precision: Precision = "fp8"

    def call(self, provider: str, tiles: Mapping[str, int] | None = None) -> Prepared:
        operands = (self.a, self.a_scale, self.b, self.b_scale)
        if provider in OWN:
            sizes = self.shape["m"], self.shape["n"], self.shape["k"]
            choose = dict.fromkeys(OWN, lambda form: form.choose(*sizes))
            chosen = own_tiles(self, provider, tiles, self.a.device, choose)
            out = torch.empty(self.a.shape[0], self.b.shape[0], dtype=torch.bfloat16, device=self.a.device)
            return lambda: block_gemm(*operands, chosen, out=out)
        if provider == "torch":
            return self._torch()
        return peers.adapter(provider, self.kernel)(*operands)

    def check(self, result: object) -> list[Check]:
        (out,) = tensors(result, 1)
        rows = sampled(self.a.shape[0])
        want = dequantised(self.a[rows], self.a_scale[rows]) @ self._weight().T
        return close("product", want, out[rows])

    def _weight(self) -> Tensor:
        scale = self.b_scale.repeat_interleave(GROUP, dim=0)[: self.b.shape[0]]
        return dequantised(self.b, scale)

    def _torch(self) -> Prepared:
        """cuBLASLt's block-scaled product where it has one, else the bf16 product of the dequantised.

        It has one on Hopper, and reads a weight's scales in rows of a multiple of four whatever their stride says.
        """
        if capability(self.a.device) != HOPPER or self.b_scale.shape[1] % 4:
            x, weight = dequantised(self.a, self.a_scale).bfloat16(), self._weight().bfloat16()
            return lambda: torch.nn.functional.linear(x, weight)
        m = self.a.shape[0]
        padding = -m % ROWS_OF_CUBLAS
        a = torch.nn.functional.pad(self.a.view(torch.uint8), (0, 0, 0, padding)).view(FP8)
        a_scale = dense_columns(torch.nn.functional.pad(self.a_scale, (0, 0, 0, padding)))
        columns, column_scales = self.b.t(), self.b_scale.t()
        return lambda: torch._scaled_mm(a, columns, scale_a=a_scale, scale_b=column_scales, out_dtype=torch.bfloat16)[
            :m
        ]


@dataclass(frozen=True, eq=False)
class GroupQuant:
    """Codes are compared as what they stand for: providers differ in how they round a scale."""

    shape: Mapping[str, int]
    x: Tensor  # [m, k] bf16
    work: Work
    kernel: str = "group_quant"
    precision: Precision = ""

    def call(self, provider: str, tiles: Mapping[str, int] | None = None) -> Prepared:
        if provider in OWN:
            no_tiles(self.kernel, provider, tiles, self.x.device)
            return lambda: group_quant(self.x)
        if provider == "torch":
            return self._torch()
        return peers.adapter(provider, self.kernel)(self.x)

    def check(self, result: object) -> list[Check]:
        codes, scale = tensors(result, 2)
        rows = sampled(self.x.shape[0])
        return close("dequantised", self.x[rows], dequantised(codes[rows], scale[rows]), limit=MAX_CODE_ERROR)

    def _torch(self) -> Prepared:
        groups = self.x.unflatten(1, (-1, GROUP))

        def run() -> tuple[Tensor, Tensor]:
            scale = groups.abs().amax(-1).float().clamp_(min=1e-10).div_(FP8_MAX)
            return (groups * scale.reciprocal()[..., None]).to(FP8).flatten(1), scale

        return run


def build_gemm(shape: Mapping[str, int], seed: int, device: torch.device) -> BlockGemm:
    m, n, k = shape["m"], shape["n"], shape["k"]
    random = generator(seed, device)
    codes, scale = quantised(normal(m, k // GROUP, GROUP, random=random))
    a_scale = empty_scales(m, k // GROUP, device)
    a_scale.copy_(scale)
    # Codes of a normal weight, and scales that differ from block to block.
    b_scale = torch.rand(-(-n // GROUP), k // GROUP, generator=random, device=device).add_(0.5).div_(FP8_MAX)
    b = normal(n, k, random=random, size=FP8_MAX / 4).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
    return BlockGemm(shape, codes.flatten(1), a_scale, b, b_scale, gemm_work(m, n, k))


def build_quant(shape: Mapping[str, int], seed: int, device: torch.device) -> GroupQuant:
    m, k = shape["m"], shape["k"]
    return GroupQuant(shape, normal(m, k, random=generator(seed, device)), quant_work(m, k))
