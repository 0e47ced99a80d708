"""What this GPU can do in this run: bytes copied, bf16 and fp8 products. The bounds of every roofline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlaprof.cases.case import FP8, Precision, close, equal, generator, normal, sampled, tensors
from mlaprof.facts import Check
from mlaprof.kernels.work import Work
from mlaprof.peers import Prepared, Unavailable
from mlaprof.peers.package import capability, need

FIRST_FP8 = (8, 9)  # compute capability from which torch has a product of e4m3 codes


@dataclass(frozen=True, eq=False)
class Ceiling:
    """One torch call that is bound by one thing."""

    kernel: str
    work: Work
    precision: Precision
    run: Prepared
    compare: Callable[[Tensor], list[Check]]
    problem: str = ""

    def call(self, provider: str, tiles: Mapping[str, int] | None = None) -> Prepared:
        if provider != "torch":
            raise Unavailable(f"{self.kernel} is measured with torch, not {provider}", "ask for torch")
        need(not self.problem, self.problem)
        return self.run

    def check(self, result: object) -> list[Check]:
        return self.compare(*tensors(result, 1))


def build_copy(shape: Mapping[str, int], seed: int, device: torch.device) -> Ceiling:
    """As many bytes read as written."""
    size = shape["bytes"]
    source = torch.randint(256, (size // 16, 16), generator=generator(seed, device), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return Ceiling(
        kernel="copy",
        work=Work(0, 2 * size),
        precision="",
        run=lambda: target.copy_(source),
        compare=lambda got: [equal("bytes", source, got)],
    )


def build_bf16(shape: Mapping[str, int], seed: int, device: torch.device) -> Ceiling:
    """A square product by cuBLAS."""
    n, random = shape["n"], generator(seed, device)
    a, b = normal(n, n, random=random), normal(n, n, random=random)
    columns = b.t()
    return Ceiling(
        kernel="matmul_bf16",
        work=_square(n, bytes_of_operand=2),
        precision="bf16",
        run=lambda: a @ columns,
        compare=lambda got: _against_fp32(a, b, got),
    )


def build_fp8(shape: Mapping[str, int], seed: int, device: torch.device) -> Ceiling:
    """A square product by cuBLASLt with one scale a tensor and its fast sums: the most that e4m3 gives here."""
    n, random = shape["n"], generator(seed, device)
    a, b = normal(n, n, random=random).to(FP8), normal(n, n, random=random).to(FP8)
    columns, one = b.t(), torch.ones((), device=device)
    found = capability(device)
    return Ceiling(
        kernel="matmul_fp8",
        work=_square(n, bytes_of_operand=1),
        precision="fp8",
        run=lambda: torch._scaled_mm(a, columns, one, one, out_dtype=torch.bfloat16, use_fast_accum=True),
        compare=lambda got: _against_fp32(a, b, got),
        problem="" if found >= FIRST_FP8 else f"torch multiplies e4m3 on compute capability 8.9 and above, not {found}",
    )


def _square(n: int, *, bytes_of_operand: int) -> Work:
    return Work(2 * n**3, n * n * (2 * bytes_of_operand + 2))


def _against_fp32(a: Tensor, b: Tensor, got: Tensor) -> list[Check]:
    rows = sampled(a.shape[0])
    return close("product", a[rows].float() @ b.float().T, got[rows])
