"""Work of the fp8 product with block scales."""

from __future__ import annotations

from mlaprof.kernels.work import Work

GROUP = 128


def block_gemm(m: int, n: int, k: int) -> Work:
    """[m, k] times [n, k] transposed; codes, scales and the bf16 result move once each."""
    groups = -(-k // GROUP)
    scales = m * groups + -(-n // GROUP) * groups
    return Work(flops=2 * m * n * k, bytes=m * k + n * k + 4 * scales + 2 * m * n)
