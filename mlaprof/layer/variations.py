"""Batches that a captured graph must serve as well as the one it was captured with. Plain numbers, no tensors.

A graph that froze a page table, a length or a token count is right for its own batch and wrong for every other, so a
replay is worth nothing until it has been compared under batches that differ in just these. All of them fit where the
own batch fits: no longer request, no more new tokens and no more cached and new tokens together; up to MORE_CONTEXTS
requests more, each on at most one page more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlaprof.layer.batch import Request
from mlaprof.shapes import TOKENS_PER_BLOCK

MORE_CONTEXTS = 3
IDLE = 4  # one request of so many is idle

Requests = tuple[Request, ...]


@dataclass(frozen=True)
class Variation:
    """Requests to `place`; which pages they get is the caller's seed."""

    name: str
    contexts: Requests
    generations: Requests

    @property
    def requests(self) -> Requests:
        return self.contexts + self.generations

    @property
    def num_tokens(self) -> int:
        return sum(request.new_tokens for request in self.requests)


SHORT = "short sequences"


def variations(
    contexts: Requests, generations: Requests, *, num_tokens_below: int, short_len: int = 0
) -> tuple[Variation, ...]:
    """The own batch first, then those that can be made of it.

    own batch      the requests given
    other pages    the same, to be placed with another seed
    other lengths  as many new tokens, in other requests on fewer cached tokens, a different number each
    fewer tokens   more than num_tokens_below new tokens, but fewer than the own batch: padding behind them
    idle requests  decode only: the last quarter on one cached token, as an engine pads a batch
    short sequences  decode only, where the longest is above short_len > 0: none is, so that the indexer is skipped
    """
    found = [Variation("own batch", contexts, generations), Variation("other pages", contexts, generations)]
    other = Variation("other lengths", _shorter(_recut(contexts)), _shorter(generations))
    if other.requests != found[0].requests:
        found.append(other)
    if fewer := _fewer(contexts, generations, num_tokens_below):
        found.append(Variation("fewer tokens", *fewer))
    if not contexts and (idle := _idle(generations)) != generations:
        found.append(Variation("idle requests", (), idle))
    if not contexts and 0 < short_len < max(request.kv_len for request in generations):
        short = (
            replace(request, cached_tokens=max(0, min(request.cached_tokens, short_len - request.new_tokens)))
            for request in generations
        )
        found.append(Variation(SHORT, (), tuple(short)))
    return tuple(found)


def _recut(contexts: Requests) -> Requests:
    """The same new tokens in up to MORE_CONTEXTS requests more: pieces of the longest ones, uncached, the smallest
    first. The longest stays about as long, so that what depends on its length does not change."""
    parts = list(contexts)
    pieces: list[Request] = []
    for divisor in (5, 7, 11)[:MORE_CONTEXTS]:
        longest = max(range(len(parts)), key=lambda place: parts[place].new_tokens, default=None)
        if longest is None or parts[longest].new_tokens < 2:
            break
        whole = parts[longest]
        piece = -(-whole.new_tokens // divisor)
        if whole.new_tokens > 2 * TOKENS_PER_BLOCK:
            piece = -(-piece // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK  # whole pages: none more than before
        parts[longest] = replace(whole, new_tokens=whole.new_tokens - piece)
        pieces.append(Request(piece, 0))
    return (*reversed(pieces), *parts)


def _shorter(requests: Requests) -> Requests:
    """Each on fewer cached tokens than before, where it has more than one; the first only a page and a token fewer."""
    shorter = []
    for number, request in enumerate(requests):
        half = request.cached_tokens // 2
        drop = min(TOKENS_PER_BLOCK + 1, half) + 97 * number % (half + 1)
        cached = max(min(request.cached_tokens, 1), request.cached_tokens - drop)
        shorter.append(replace(request, cached_tokens=cached))
    return tuple(shorter)


def _fewer(contexts: Requests, generations: Requests, below: int) -> tuple[Requests, Requests] | None:
    """About half-way between below and the own number of tokens; None where there is nothing between.

    Contexts give up tokens, the last ones first, down to one; without any, whole generation requests go.
    """
    generated = sum(request.new_tokens for request in generations)
    if not contexts:
        return _fewer_generations(generations, below)
    total = generated + sum(request.new_tokens for request in contexts)
    least = max(below, generated) + 1
    if least > total - 1:
        return None
    return _first_tokens(contexts, (least + total - 1) // 2 - generated), generations


def _fewer_generations(generations: Requests, below: int) -> tuple[Requests, Requests] | None:
    next_n = max((request.new_tokens for request in generations), default=1)
    least, most = below // next_n + 1, len(generations) - 1
    return ((), generations[: (least + most) // 2]) if least <= most else None


def _first_tokens(contexts: Sequence[Request], num_tokens: int) -> Requests:
    kept = []
    for request in contexts:
        take = min(request.new_tokens, num_tokens)
        if take == 0:
            break
        kept.append(replace(request, new_tokens=take))
        num_tokens -= take
    return tuple(kept)


def _idle(generations: Requests) -> Requests:
    busy = len(generations) - max(1, len(generations) // IDLE) if len(generations) > 1 else len(generations)
    idle = (replace(request, cached_tokens=min(request.cached_tokens, 1)) for request in generations[busy:])
    return (*generations[:busy], *idle)
