"""Work of the 1x128 activation quantiser."""

from __future__ import annotations

from mlaprof.kernels.work import Work

GROUP = 128


def group_quant(m: int, k: int) -> Work:
    """[m, k] bf16 in, codes and scales out; no products."""
    return Work(flops=0, bytes=2 * m * k + m * k + 4 * m * (k // GROUP))
