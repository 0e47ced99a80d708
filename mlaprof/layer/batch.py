"""A batch as plain numbers: which requests, how many new and cached tokens, in which pages. No tensors."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mlaprof.shapes import TOKENS_PER_BLOCK


@dataclass(frozen=True)
class Request:
    new_tokens: int
    cached_tokens: int

    @property
    def kv_len(self) -> int:
        return self.new_tokens + self.cached_tokens

    @property
    def num_blocks(self) -> int:
        return -(-self.kv_len // TOKENS_PER_BLOCK)


@dataclass(frozen=True)
class Batch:
    """Contexts first, then generations, each request with the pages that hold its tokens."""

    contexts: tuple[Request, ...]
    generations: tuple[Request, ...]
    pages: tuple[tuple[int, ...], ...]  # block numbers a request, in token order

    def __post_init__(self) -> None:
        if len(self.pages) != len(self.requests):
            raise ValueError(f"pages: expected {len(self.requests)} page lists, got {len(self.pages)}")
        for request, pages in zip(self.requests, self.pages, strict=True):
            if len(pages) < request.num_blocks:
                raise ValueError(f"pages: expected {request.num_blocks} for {request}, got {len(pages)}")

    @property
    def requests(self) -> tuple[Request, ...]:
        return self.contexts + self.generations

    @property
    def num_ctx_tokens(self) -> int:
        return sum(request.new_tokens for request in self.contexts)

    @property
    def num_tokens(self) -> int:
        return sum(request.new_tokens for request in self.requests)

    @property
    def max_kv_len(self) -> int:
        return max((request.kv_len for request in self.requests), default=0)


def requests_of(
    phase: str, num_tokens: int, context_len: int, *, num_contexts: int, num_generations: int, next_n: int
) -> tuple[tuple[Request, ...], tuple[Request, ...]]:
    """(contexts, generations) that make up num_tokens new tokens, each on context_len cached ones.

    prefill: num_contexts prompts as equal as they go; decode: num_tokens / next_n requests; mixed: num_generations
    requests of next_n tokens and the rest as prompts. Raises ValueError when the numbers do not go together.
    """
    if phase == "decode":
        if num_tokens % next_n:
            raise ValueError(f"num_tokens: expected a multiple of next_n {next_n}, got {num_tokens}")
        return (), (Request(next_n, context_len),) * (num_tokens // next_n)
    generations = (Request(next_n, context_len),) * num_generations if phase == "mixed" else ()
    rest = num_tokens - len(generations) * next_n
    if rest < num_contexts:
        raise ValueError(
            f"num_tokens: expected at least {num_tokens - rest + num_contexts} in a {phase} batch, got {num_tokens}"
        )
    share, extra = divmod(rest, num_contexts)
    contexts = tuple(Request(share + (i < extra), context_len) for i in range(num_contexts))
    return contexts, generations


def blocks_needed(requests: Sequence[Request]) -> int:
    return sum(request.num_blocks for request in requests)


def place(contexts: tuple[Request, ...], generations: tuple[Request, ...], *, num_blocks: int, seed: int) -> Batch:
    """Give every request its pages, drawn without repetition from a shuffled pool.

    Raises ValueError when the pool is too small.
    """
    requests = contexts + generations
    if blocks_needed(requests) > num_blocks:
        raise ValueError(f"num_blocks: expected at least {blocks_needed(requests)}, got {num_blocks}")
    pool = list(range(num_blocks))
    random.Random(seed).shuffle(pool)
    pages, at = [], 0
    for request in requests:
        pages.append(tuple(pool[at : at + request.num_blocks]))
        at += request.num_blocks
    return Batch(contexts, generations, tuple(pages))
