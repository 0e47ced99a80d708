"""Work of paged_index_logits: every cached key of a request is read once, whatever the number of its new queries."""

from __future__ import annotations

from mlaprof.kernels.work import Work

INDEX_DIM = 128
KEY_BYTES = 132  # 128 codes and a fp32 scale


def paged_index_logits(batch: int, kv_len: int, next_n: int = 1, *, num_heads: int = 64) -> Work:
    """Work of one launch over batch requests of kv_len positions; query j of a request ends at kv_len - next_n + j."""
    scores = batch * (next_n * kv_len - next_n * (next_n - 1) // 2)
    queries = batch * next_n * num_heads * INDEX_DIM
    return Work(
        flops=2 * scores * num_heads * INDEX_DIM,
        bytes=queries + batch * kv_len * KEY_BYTES + 4 * scores,
    )
