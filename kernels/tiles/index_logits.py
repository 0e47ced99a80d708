"""Tiles of index_logits, and the shared memory that Triton 3.6 and 3.7 give them."""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.kernels.tiles.limits import STAGES, WARPS, Dims, on_wgmma, padded_heads


@dataclass(frozen=True)
class IndexLogitsTiles:
    """One program: block_q queries with all their heads, over a span of keys block_n at a time."""

    block_q: int
    block_n: int
    num_warps: int
    num_stages: int


TILES = IndexLogitsTiles
CHOICES = {"block_q": (1, 2, 4, 8), "block_n": (16, 32, 64, 128, 256), "num_warps": WARPS, "num_stages": STAGES}
LETTERS = {"block_q": "q", "block_n": "n", "num_warps": "w", "num_stages": "s"}


def choose(n: int, m: int, num_heads: int) -> IndexLogitsTiles:
    """The default for n queries over m keys: 128 (query, head) pairs a program, two programs a multiprocessor."""
    block_q = min(8, max(1, 128 // padded_heads(num_heads)))
    return IndexLogitsTiles(block_q=block_q, block_n=128, num_warps=8, num_stages=3)


def default(dims: Dims) -> IndexLogitsTiles:
    """Those of a prefill."""
    return choose(4096, 4096, dims.index_n_heads)


def problem(tiles: IndexLogitsTiles, dims: Dims) -> str | None:
    """Any legal values fit any dimensions."""
    return None


def accumulator(tiles: IndexLogitsTiles, dims: Dims) -> int:
    """The scores of a block of keys."""
    return tiles.block_n * tiles.block_q * padded_heads(dims.index_n_heads)


def shared_bytes(tiles: IndexLogitsTiles, dims: Dims) -> int:
    """Queries, pipelined keys, and scores on their way to the result."""
    stages, warps = tiles.num_stages, tiles.num_warps
    queries = tiles.block_q * padded_heads(dims.index_n_heads) * dims.index_head_dim
    block = tiles.block_n * dims.index_head_dim
    sums = 4 * tiles.block_n * tiles.block_q if stages > 1 else 0
    if on_wgmma(tiles.block_n, warps):
        return queries + stages * block + 2 * sums
    return 2 * queries + max(1, stages - 1) * block + max(2, warps) * sums
