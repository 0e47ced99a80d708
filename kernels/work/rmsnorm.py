"""Work of rmsnorm and rmsnorm_quant: bytes alone."""

from __future__ import annotations

from mlaprof.kernels.work import Work

GROUP = 128


def rmsnorm(m: int, k: int) -> Work:
    """bf16 in, bf16 out."""
    return Work(0, m * k * (2 + 2) + 2 * k)


def rmsnorm_quant(m: int, k: int) -> Work:
    """bf16 in, e4m3 out, and an fp32 scale a group."""
    return Work(0, m * (k * (2 + 1) + 4 * k // GROUP) + 2 * k)
