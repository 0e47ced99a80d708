"""Tiles of up_project's Hopper form; the same design as absorb's."""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.kernels.tiles.hopper_absorb import BLOCK_K, BLOCK_N, TILE_M, TILE_N, misfit, needed, widest
from mlaprof.kernels.tiles.limits import STAGES, Dims


@dataclass(frozen=True)
class HopperUpProjectTiles:
    """One program: block_n columns of one head's result; each group has num_stages chunks of block_k in flight."""

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


TILES = HopperUpProjectTiles
CHOICES = {"block_n": BLOCK_N, "block_k": BLOCK_K, "num_warps": (4,), "num_stages": STAGES}
LETTERS = {"block_n": "n", "block_k": "k", "num_warps": "w", "num_stages": "s"}


def pays(num_tokens: int, num_heads: int) -> bool:
    """Whether nearly every multiprocessor gets two tiles: with one, summing waits for all of the matrix."""
    return -(-num_tokens // TILE_M) * num_heads >= 256


def choose(columns: int, summed: int) -> HopperUpProjectTiles | None:
    """The default for products with [summed, columns]; None where there is none."""
    found = widest(columns, summed)
    return None if found is None else HopperUpProjectTiles(*found)


def default(dims: Dims) -> HopperUpProjectTiles:
    """Those that the launcher takes; where it takes none, the smallest."""
    return choose(dims.v_head_dim, dims.kv_lora_rank) or HopperUpProjectTiles(128, 64, 4, 2)


def problem(tiles: HopperUpProjectTiles, dims: Dims) -> str | None:
    """Why these tiles do not fit these dimensions."""
    return misfit(tiles.block_n, tiles.block_k, tiles.num_stages, dims.v_head_dim, dims.kv_lora_rank)


def accumulator(tiles: HopperUpProjectTiles, dims: Dims) -> int:
    """A group's block of the result."""
    return TILE_M * TILE_N


def shared_bytes(tiles: HopperUpProjectTiles, dims: Dims) -> int:
    """The matrix, both groups' chunks, and their results on the way out."""
    return needed(tiles.block_n, tiles.block_k, tiles.num_stages, dims.kv_lora_rank)
