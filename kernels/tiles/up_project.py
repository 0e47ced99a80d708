"""Tiles of up_project: one product a head."""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.kernels.tiles.absorb import BLOCK_K, BLOCK_M, BLOCK_N, divisor, needed, part_width, uneven
from mlaprof.kernels.tiles.limits import STAGES, WARPS, Dims


@dataclass(frozen=True)
class UpProjectTiles:
    """One program: block_m tokens of one head, block_n columns of the result, block_k summed columns at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


TILES = UpProjectTiles
CHOICES = {"block_m": BLOCK_M, "block_n": BLOCK_N, "block_k": BLOCK_K, "num_warps": WARPS, "num_stages": STAGES}
LETTERS = {"block_m": "m", "block_n": "n", "block_k": "k", "num_warps": "w", "num_stages": "s"}


def choose(num_tokens: int, num_heads: int, columns: int, summed: int) -> UpProjectTiles:
    """The default for num_heads products of [num_tokens, summed] with [summed, columns]."""
    block_n = part_width(num_heads * -(-num_tokens // 64), columns)
    if num_tokens <= 16:
        return UpProjectTiles(block_m=16, block_n=block_n, block_k=divisor(summed), num_warps=4, num_stages=5)
    if num_tokens <= 64 or block_n < 128:
        return UpProjectTiles(block_m=64, block_n=block_n, block_k=divisor(summed), num_warps=4, num_stages=4)
    return UpProjectTiles(block_m=128, block_n=block_n, block_k=divisor(summed), num_warps=8, num_stages=3)


def default(dims: Dims) -> UpProjectTiles:
    """Those of a prefill."""
    return choose(4096, dims.num_heads, dims.v_head_dim, dims.kv_lora_rank)


def problem(tiles: UpProjectTiles, dims: Dims) -> str | None:
    """Why these tiles do not fit these dimensions."""
    return uneven(tiles.block_n, tiles.block_k, dims.v_head_dim, dims.kv_lora_rank)


def accumulator(tiles: UpProjectTiles, dims: Dims) -> int:
    """One block of the result."""
    return tiles.block_m * tiles.block_n


def shared_bytes(tiles: UpProjectTiles, dims: Dims) -> int:
    """Both operands' blocks, and the result on its way out."""
    return needed(tiles, dims.kv_lora_rank)
