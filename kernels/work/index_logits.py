"""Work of index_logits: the scores that rows own, not the tiles computed for them."""

from __future__ import annotations

from mlaprof.kernels.work import Work

INDEX_DIM = 128


def index_logits(num_queries: int, num_keys: int, *, causal: int = 0, index_n_heads: int = 64) -> Work:
    """Products of every head of a query with the keys it sees.

    causal: the last query sees all, each before it one less.
    Queries, weights and keys with their scales are read once, scores written once.
    """
    unseen = num_queries * (num_queries - 1) // 2 if causal else 0
    scores = num_queries * num_keys - unseen
    operands = num_queries * index_n_heads * (INDEX_DIM + 4) + num_keys * (INDEX_DIM + 4)
    return Work(flops=2 * scores * index_n_heads * INDEX_DIM, bytes=operands + 4 * scores)
