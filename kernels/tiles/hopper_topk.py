"""Tiles of topk's Hopper form, whose warps write their results side by side."""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.kernels.tiles import topk as portable
from mlaprof.kernels.tiles.limits import NUM_SMS, Dims

MAX_WIDTH = 16384  # of longer rows too few are chosen for ballots to pay: measured on an H100, k = 2048


@dataclass(frozen=True)
class HopperTopkTiles:
    """One program: one row of at most block elements; the fields mean what they mean to the portable form."""

    block: int
    num_warps: int
    num_pieces: int
    ambiguous: int
    num_registers: int


TILES = HopperTopkTiles
CHOICES = portable.CHOICES
LETTERS = portable.LETTERS


def few_rows(num_rows: int) -> bool:
    """Whether each multiprocessor has so few rows that the time of one is what counts."""
    return num_rows <= 4 * NUM_SMS


def choose(num_rows: int, width: int) -> HopperTopkTiles:
    """The tiles of a launch that names none: threads with many elements where rows fill the GPU, more threads else."""
    block = next(block for block in portable.BLOCKS if block >= width)
    num_warps = min(16, max(4, block // (32 * (16 if few_rows(num_rows) else 32))))
    if block // (32 * num_warps) <= 16:
        return HopperTopkTiles(block, num_warps, 1, portable.AMBIGUOUS, 0)
    return HopperTopkTiles(block, num_warps, 4, portable.AMBIGUOUS, 80)


def default(dims: Dims) -> HopperTopkTiles:
    """Those of a decoding step over 4096 positions."""
    return choose(64, 4096)


def problem(tiles: HopperTopkTiles, dims: Dims) -> str | None:
    """Why these tiles do not fit these dimensions."""
    if dims.index_topk > portable.MAX_K:
        return f"index_topk: {dims.index_topk} is more than {portable.MAX_K}; use at most that"
    return portable.misfit(tiles)


def accumulator(tiles: HopperTopkTiles, dims: Dims) -> int:
    """The elements of a row in registers."""
    return tiles.block


def shared_bytes(tiles: HopperTopkTiles, dims: Dims) -> int:
    """Each warp's part of a sum or a running sum, and the ranks on their way."""
    return 3 * 8 * tiles.num_warps + 8 * tiles.ambiguous
