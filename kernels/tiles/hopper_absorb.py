"""Tiles of absorb's Hopper form, which keeps a head's matrix in shared memory and walks over tokens 64 at a time."""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.kernels.tiles.absorb import uneven
from mlaprof.kernels.tiles.limits import SHARED_LIMIT_BYTES, STAGES, Dims

TILE_M, TILE_N = 64, 128  # a group's tokens, and the columns that it multiplies at once
GROUPS = 2  # of warps that multiply
BARRIER_BYTES = 1024
BLOCK_N, BLOCK_K = (128, 256, 512), (64, 128)


@dataclass(frozen=True)
class HopperAbsorbTiles:
    """One program: block_n columns of one head's result; each group has num_stages chunks of block_k in flight."""

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


TILES = HopperAbsorbTiles
CHOICES = {"block_n": BLOCK_N, "block_k": BLOCK_K, "num_warps": (4,), "num_stages": STAGES}
LETTERS = {"block_n": "n", "block_k": "k", "num_warps": "w", "num_stages": "s"}


def pays(num_tokens: int, num_heads: int) -> bool:
    """Whether nearly every multiprocessor gets a tile that is at least half full."""
    return num_tokens > TILE_M // 2 and -(-num_tokens // TILE_M) * num_heads >= 128


def choose(columns: int, summed: int) -> HopperAbsorbTiles | None:
    """The default for products with [summed, columns]; None where there is none."""
    found = widest(columns, summed)
    return None if found is None else HopperAbsorbTiles(*found)


def widest(columns: int, summed: int) -> tuple[int, int, int, int] | None:
    """Fields in order: the widest part of the matrix that leaves room for two tiles' chunks a group."""
    for block_n in reversed(BLOCK_N):
        room = SHARED_LIMIT_BYTES - needed(block_n, 64, 0, summed)
        stages = min(max(STAGES), room // (2 * GROUPS * TILE_M * 64))
        if misfit(block_n, 64, stages, columns, summed) is None:
            return block_n, 64, 4, stages
    return None


def default(dims: Dims) -> HopperAbsorbTiles:
    """Those that the launcher takes; where it takes none, the smallest."""
    return choose(dims.kv_lora_rank, dims.qk_nope_head_dim) or HopperAbsorbTiles(128, 64, 4, 2)


def problem(tiles: HopperAbsorbTiles, dims: Dims) -> str | None:
    """Why these tiles do not fit these dimensions."""
    return misfit(tiles.block_n, tiles.block_k, tiles.num_stages, dims.kv_lora_rank, dims.qk_nope_head_dim)


def misfit(block_n: int, block_k: int, num_stages: int, columns: int, summed: int) -> str | None:
    """The complaint about tiles of products with [summed, columns]."""
    if wrong := uneven(block_n, block_k, columns, summed):
        return wrong
    chunks = summed // block_k
    least = chunks if block_n > TILE_N else min(2, chunks)
    if num_stages < least:
        return f"num_stages: {num_stages} chunks cannot hold what a block of {block_n} columns reads again; use {least}"
    return None


def accumulator(tiles: HopperAbsorbTiles, dims: Dims) -> int:
    """A group's block of the result."""
    return TILE_M * TILE_N


def shared_bytes(tiles: HopperAbsorbTiles, dims: Dims) -> int:
    """The matrix, both groups' chunks, and their results on the way out."""
    return needed(tiles.block_n, tiles.block_k, tiles.num_stages, dims.qk_nope_head_dim)


def needed(block_n: int, block_k: int, num_stages: int, summed: int) -> int:
    """Shared memory for products with [summed, block_n]."""
    chunks = GROUPS * num_stages * TILE_M * block_k
    return 2 * (block_n * summed + chunks + GROUPS * TILE_M * TILE_N) + BARRIER_BYTES
