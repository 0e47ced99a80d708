"""How the indexer cuts context tokens into chunks whose logits fit in memory. Plain numbers.

Upstream's rule (`split_prefill_chunks`): consecutive requests are packed greedily while they fit the limit; a
request longer than the limit gets Q-blocks of exactly the limit, each a chunk of its own; order is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlaprof.layer.batch import Request


@dataclass(frozen=True)
class Chunk:
    """Query rows [q_start, q_end) of the context tokens against rows [k_start, k_end) of the packed full-KV axis.

    ks and ke bound each query row inside the chunk's own keys: [0, k_end - k_start).
    """

    q_start: int
    q_end: int
    k_start: int
    k_end: int
    ks: tuple[int, ...]
    ke: tuple[int, ...]


def split_prefill_chunks(contexts: Sequence[Request], limit: int) -> tuple[Chunk, ...]:
    """Chunks in token order. Raises ValueError for a limit below 1."""
    if limit < 1:
        raise ValueError(f"limit: expected at least 1 token, got {limit}")
    chunks: list[Chunk] = []
    packed: list[Request] = []
    q_at = k_at = 0

    def flush() -> None:
        nonlocal q_at, k_at
        if not packed:
            return
        ks, ke = causal_bounds(packed)
        q_end, k_end = q_at + len(ks), k_at + sum(r.kv_len for r in packed)
        chunks.append(Chunk(q_at, q_end, k_at, k_end, ks, ke))
        q_at, k_at = q_end, k_end
        packed.clear()

    for request in contexts:
        if packed and sum(r.new_tokens for r in packed) + request.new_tokens > limit:
            flush()
        if request.new_tokens <= limit:
            packed.append(request)
            continue
        for start in range(0, request.new_tokens, limit):
            end = min(start + limit, request.new_tokens)
            ke = tuple(request.cached_tokens + i + 1 for i in range(start, end))
            seen = request.cached_tokens + end
            chunks.append(Chunk(q_at + start, q_at + end, k_at, k_at + seen, (0,) * (end - start), ke))
        q_at += request.new_tokens
        k_at += request.kv_len
    flush()
    return tuple(chunks)


def causal_bounds(contexts: Sequence[Request]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(ks, ke) a query token over the packed KV of these requests: ks the request's first key, ke exclusive.

    Lengths 3 and 4 without cache give ks 0 0 0 3 3 3 3 and ke 1 2 3 4 5 6 7.
    """
    ks: list[int] = []
    ke: list[int] = []
    base = 0
    for request in contexts:
        ks += [base] * request.new_tokens
        ke += [base + request.cached_tokens + i + 1 for i in range(request.new_tokens)]
        base += request.kv_len
    return tuple(ks), tuple(ke)
