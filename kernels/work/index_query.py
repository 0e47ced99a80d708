"""Work of index_query: bytes alone."""

from __future__ import annotations

from mlaprof.kernels.work import Work

INDEX_DIM, ROPE = 128, 64


def index_query(num_tokens: int, *, index_n_heads: int = 64) -> Work:
    """A head is read as bf16 and written as e4m3, its weight read and written as fp32; a token gathers its angles."""
    head = 2 * INDEX_DIM + INDEX_DIM + 4 + 4
    return Work(0, num_tokens * (index_n_heads * head + 8 + 4 * ROPE))
