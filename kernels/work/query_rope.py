"""Work of query_rope: bytes alone."""

from __future__ import annotations

from mlaprof.kernels.work import Work

ROPE = 64


def query_rope(num_tokens: int, *, num_heads: int = 128) -> Work:
    """Every head's rotary part read and written as bf16; a token gathers its angles."""
    return Work(0, num_tokens * (num_heads * 2 * 2 * ROPE + 8 + 4 * ROPE))
