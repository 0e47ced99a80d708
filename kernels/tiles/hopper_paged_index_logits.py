"""Tiles of the Hopper form of paged_index_logits."""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.kernels.tiles.limits import NUM_SMS, SHARED_LIMIT_BYTES, Dims, padded_heads
from mlaprof.kernels.tiles.paged_index_logits import PROGRAMS

INDEX_DIM = 128
PAGE_BYTES = 64 * (INDEX_DIM + 4)
MAX_HEADS = 128
MAX_PAIRS = 256  # (query, head) pairs of a request: their weights stay in registers
PROGRAM_RESERVE = 1024  # shared memory that the system takes of every program


@dataclass(frozen=True)
class HopperPagedIndexLogitsTiles:
    """One program: one warp group on an equal share of all requests' pages, num_stages of them in shared memory."""

    num_warps: int
    num_stages: int
    programs: int  # a multiprocessor, however long the requests


TILES = HopperPagedIndexLogitsTiles
CHOICES = {"num_warps": (4,), "num_stages": (2, 3, 4, 5, 6), "programs": PROGRAMS}
LETTERS = {"num_warps": "w", "num_stages": "s", "programs": "p"}


def choose(batch: int, max_len: int) -> HopperPagedIndexLogitsTiles:
    """The default for batch requests of max_len positions at most.

    Four programs a multiprocessor hide each other's waits. Where they would have two pages each, half as many read the
    queries half as often.
    """
    few = batch * -(-max_len // 64) <= 8 * NUM_SMS
    return HopperPagedIndexLogitsTiles(num_warps=4, num_stages=3, programs=2 if few else 4)


def default(dims: Dims) -> HopperPagedIndexLogitsTiles:
    """Those of a large batch."""
    return choose(128, 4096)


def fits(next_n: int, num_heads: int) -> bool:
    """Whether this form serves next_n new tokens a request."""
    return num_heads <= MAX_HEADS and next_n * padded_heads(num_heads) <= MAX_PAIRS


def problem(tiles: HopperPagedIndexLogitsTiles, dims: Dims) -> str | None:
    """Why these tiles do not fit these dimensions."""
    if dims.index_n_heads > MAX_HEADS:
        return f"index_n_heads: {dims.index_n_heads} exceed the {MAX_HEADS} of this form; use the portable form"
    if dims.index_head_dim != INDEX_DIM:
        return f"index_head_dim: {dims.index_head_dim} is not {INDEX_DIM}; use the portable form"
    needed = tiles.programs * (shared_bytes(tiles, dims) + PROGRAM_RESERVE)
    if needed > SHARED_LIMIT_BYTES + PROGRAM_RESERVE:
        return (
            f"programs: {tiles.programs} of {tiles.num_stages} stages do not fit a multiprocessor; use fewer of either"
        )
    return None


def accumulator(tiles: HopperPagedIndexLogitsTiles, dims: Dims) -> int:
    """The scores of a page for one new token a request."""
    return 64 * padded_heads(dims.index_n_heads)


def shared_bytes(tiles: HopperPagedIndexLogitsTiles, dims: Dims) -> int:
    """Queries of one new token a request, and the pages of every stage."""
    return padded_heads(dims.index_n_heads) * INDEX_DIM + tiles.num_stages * PAGE_BYTES
