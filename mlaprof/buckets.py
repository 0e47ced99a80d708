"""Which token counts an engine captures, and which of them a step pads up to. Pure rules; standard library only.

Source: TensorRT-LLM #13574, which found that a step never holds more than max_batch_size * (max_seq_len - 1) tokens,
and #16256, which clamps to that ceiling and appends nothing: with a far size above the list, every step in between
ran it, up to 2.8 times slower than eager.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Buckets:
    """Capture sizes in tokens, and what became of those that were asked for. Each tuple ascends without repetition."""

    sizes: tuple[int, ...]
    clamped: tuple[int, ...] = ()  # asked for, above the reachable ceiling, captured at the ceiling instead
    dropped: tuple[int, ...] = ()  # asked for, above max_num_tokens, not captured


def reachable_ceiling(max_batch_size: int | None, max_seq_len: int | None) -> int | None:
    """Most tokens that one step can hold: each request leaves room for a token to decode. None without both limits."""
    if max_batch_size is None or max_seq_len is None:
        return None
    return max_batch_size * (max_seq_len - 1)


def effective_sizes(requested: Iterable[int], *, max_num_tokens: int | None, ceiling: int | None) -> Buckets:
    """The sizes that the engine captures when it is asked for these: large ones dropped or clamped, none invented.

    requested       tokens, any order, repetitions welcome
    max_num_tokens  sizes above it are dropped; None drops none
    ceiling         sizes above it that are left become the ceiling itself; None clamps none

    Raises ValueError on a size or limit below 1.
    """
    asked = sorted(set(requested))
    for name, least in (("size", asked[0] if asked else 1), ("max_num_tokens", max_num_tokens), ("ceiling", ceiling)):
        if least is not None and least < 1:
            raise ValueError(f"{name}: expected at least 1 token, got {least}")
    kept = asked if max_num_tokens is None else [size for size in asked if size <= max_num_tokens]
    clamped = [] if ceiling is None else [size for size in kept if size > ceiling]
    sizes = sorted({size if ceiling is None else min(size, ceiling) for size in kept})
    return Buckets(sizes=tuple(sizes), clamped=tuple(clamped), dropped=tuple(asked[len(kept) :]))


def bucket_of(num_tokens: int, sizes: Sequence[int]) -> int | None:
    """The captured size that a step of num_tokens pads up to; None above the largest, where it runs eagerly.

    sizes  ascending, as Buckets has them
    """
    place = bisect_left(sizes, num_tokens)
    return sizes[place] if place < len(sizes) else None
