"""Tiles of topk, the portable form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mlaprof.kernels.tiles.limits import Dims

MAX_K = 4096  # counts share a 32-bit number
MAX_PER_THREAD = 64  # elements: more leave no registers to work with
AMBIGUOUS = 64  # chosen: half of them lie on either side of a good first guess for 4096 elements
BLOCKS = (512, 1024, 2048, 4096, 8192, 16384, 32768)


@dataclass(frozen=True)
class TopkTiles:
    """One program: one row, block elements of it in registers; a longer row is read block by block, several times.

    num_pieces divides a thread's elements into groups that are worked on one after the other. At most ambiguous
    elements are compared in pairs. num_registers bounds what a thread takes, 0 does not.
    """

    block: int
    num_warps: int
    num_pieces: int
    ambiguous: int
    num_registers: int


TILES = TopkTiles
CHOICES = {
    "block": BLOCKS,
    "num_warps": (4, 8, 16, 32),
    "num_pieces": (1, 2, 4, 8),
    "ambiguous": (32, 64, 128),
    "num_registers": (0, 32, 48, 64, 80, 96, 128),
}
LETTERS = {"block": "n", "num_warps": "w", "num_pieces": "p", "ambiguous": "a", "num_registers": "r"}


class Fields(Protocol):
    """What the tiles of both forms have."""

    @property
    def block(self) -> int: ...
    @property
    def num_warps(self) -> int: ...
    @property
    def num_pieces(self) -> int: ...
    @property
    def num_registers(self) -> int: ...


def choose(num_rows: int, width: int) -> TopkTiles:
    """The tiles of a launch that names none: neighbouring threads write near each other, so few elements a thread."""
    if width > max(BLOCKS):
        return TopkTiles(block=16384, num_warps=16, num_pieces=2, ambiguous=AMBIGUOUS, num_registers=0)
    block = next(block for block in BLOCKS if block >= width)
    num_warps = min(16, max(4, block // 256))
    return TopkTiles(block, num_warps, max(1, block // (256 * num_warps)), AMBIGUOUS, 0)


def default(dims: Dims) -> TopkTiles:
    """Those of a decoding step over 4096 positions."""
    return choose(64, 4096)


def problem(tiles: TopkTiles, dims: Dims) -> str | None:
    """Why these tiles do not fit these dimensions."""
    if dims.index_topk > MAX_K:
        return f"index_topk: {dims.index_topk} is more than {MAX_K}; use at most that"
    return misfit(tiles)


def misfit(tiles: Fields) -> str | None:
    """Why the fields do not go together, with a remedy."""
    per_thread = tiles.block // (32 * tiles.num_warps)
    if not tiles.num_pieces <= per_thread <= MAX_PER_THREAD:
        return (
            f"num_warps: {tiles.num_warps} give a thread {per_thread} of {tiles.block} elements; "
            f"use a number that gives {tiles.num_pieces} (num_pieces) to {MAX_PER_THREAD}"
        )
    if tiles.num_registers > 65536 // (32 * tiles.num_warps):
        return f"num_registers: {tiles.num_registers} for {tiles.num_warps} warps are more than there are; use fewer"
    return None


def accumulator(tiles: TopkTiles, dims: Dims) -> int:
    """The elements of a row in registers."""
    return tiles.block


def shared_bytes(tiles: TopkTiles, dims: Dims) -> int:
    """A piece of the row: Triton 3.7 lays out anew what it writes, 3.6 does not."""
    return max(4 * tiles.block // tiles.num_pieces, 3 * 8 * tiles.num_warps + 8 * tiles.ambiguous)
