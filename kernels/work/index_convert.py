"""Work of convert_indices: bytes alone."""

from __future__ import annotations

from mlaprof.kernels.work import Work


def convert_indices(num_tokens: int, *, topk: int = 2048) -> Work:
    """A position read and a row written; of the block table, which stays in cache, nothing is counted."""
    return Work(0, num_tokens * (topk * 2 * 4 + 4))
