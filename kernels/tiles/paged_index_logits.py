"""Tiles of paged_index_logits, and the shared memory that Triton 3.6 and 3.7 give them."""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.kernels.tiles.limits import STAGES, WARPS, Dims, on_wgmma, padded_heads

PROGRAMS = (1, 2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class PagedIndexLogitsTiles:
    """One program: an equal share of all requests' positions, block_n at a time, for all new queries at once."""

    block_n: int
    num_warps: int
    num_stages: int
    programs: int = 4  # a multiprocessor, however long the requests


TILES = PagedIndexLogitsTiles
CHOICES = {"block_n": (16, 32, 64, 128, 256), "num_warps": WARPS, "num_stages": STAGES, "programs": PROGRAMS}
LETTERS = {"block_n": "n", "num_warps": "w", "num_stages": "s", "programs": "p"}


def choose(batch: int, max_len: int) -> PagedIndexLogitsTiles:
    """The default for batch requests: the same for all, since shares are equal whatever the lengths."""
    return PagedIndexLogitsTiles(block_n=64, num_warps=4, num_stages=3, programs=4)


def default(dims: Dims) -> PagedIndexLogitsTiles:
    """One page a turn."""
    return choose(1, 1)


def problem(tiles: PagedIndexLogitsTiles, dims: Dims) -> str | None:
    """Any legal values fit any dimensions."""
    return None


def accumulator(tiles: PagedIndexLogitsTiles, dims: Dims) -> int:
    """The scores of a block of keys, for one new token a request."""
    return tiles.block_n * padded_heads(dims.index_n_heads)


def shared_bytes(tiles: PagedIndexLogitsTiles, dims: Dims) -> int:
    """Queries of one new token a request, pipelined keys, and scores on their way to the result."""
    stages, warps = tiles.num_stages, tiles.num_warps
    queries = padded_heads(dims.index_n_heads) * dims.index_head_dim
    block = tiles.block_n * dims.index_head_dim
    sums = 4 * tiles.block_n if stages > 1 else 0
    if on_wgmma(tiles.block_n, warps):
        return queries + stages * block + 2 * sums
    return 2 * queries + max(1, stages - 1) * block + max(2, warps) * sums
