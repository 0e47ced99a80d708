"""Work of the selection: bytes alone."""

from __future__ import annotations

from mlaprof.kernels.work import Work


def topk(num_rows: int, width: int, k: int) -> Work:
    """Every logit read once, every position written once; windows as wide as the rows."""
    return Work(0, 4 * num_rows * (width + k))
