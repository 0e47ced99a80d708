"""Tiles of absorb, the portable form: one product a head, and the rotary part beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlaprof.kernels.tiles.limits import NUM_SMS, STAGES, WARPS, Dims, on_wgmma

if TYPE_CHECKING:
    from mlaprof.kernels.tiles.up_project import UpProjectTiles

BLOCK_M, BLOCK_N, BLOCK_K = (16, 32, 64, 128), (32, 64, 128, 256), (32, 64, 128)


@dataclass(frozen=True)
class AbsorbTiles:
    """One program: block_m tokens of one head, block_n columns of the result, block_k summed columns at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


TILES = AbsorbTiles
CHOICES = {"block_m": BLOCK_M, "block_n": BLOCK_N, "block_k": BLOCK_K, "num_warps": WARPS, "num_stages": STAGES}
LETTERS = {"block_m": "m", "block_n": "n", "block_k": "k", "num_warps": "w", "num_stages": "s"}


def choose(num_tokens: int, num_heads: int, columns: int, summed: int) -> AbsorbTiles:
    """The default for num_heads products of [num_tokens, summed] with [summed, columns]."""
    block_n = part_width(num_heads * -(-num_tokens // 64), columns)
    if num_tokens <= 16:
        return AbsorbTiles(block_m=16, block_n=block_n, block_k=divisor(summed), num_warps=4, num_stages=3)
    return AbsorbTiles(block_m=64, block_n=block_n, block_k=divisor(summed), num_warps=4, num_stages=3)


def default(dims: Dims) -> AbsorbTiles:
    """Those of a prefill."""
    return choose(4096, dims.num_heads, dims.kv_lora_rank, dims.qk_nope_head_dim)


def problem(tiles: AbsorbTiles, dims: Dims) -> str | None:
    """Why these tiles do not fit these dimensions."""
    return uneven(tiles.block_n, tiles.block_k, dims.kv_lora_rank, dims.qk_nope_head_dim)


def part_width(blocks: int, columns: int) -> int:
    """The widest part of columns, at most 128, that gives every multiprocessor one of blocks programs a part."""
    width = min(128, columns & -columns)
    while width > min(BLOCK_N) and blocks * (columns // width) < NUM_SMS:
        width //= 2
    return width


def divisor(summed: int) -> int:
    """Columns summed at a time."""
    return min(64, summed & -summed)


def uneven(block_n: int, block_k: int, columns: int, summed: int) -> str | None:
    """The complaint where blocks do not divide products with [summed, columns]."""
    if columns % block_n:
        return f"block_n: {block_n} does not divide the {columns} columns of the result; use a smaller one"
    if summed % block_k:
        return f"block_k: {block_k} does not divide the {summed} columns summed; use a smaller one"
    return None


def accumulator(tiles: AbsorbTiles, dims: Dims) -> int:
    """One block of the result."""
    return tiles.block_m * tiles.block_n


def shared_bytes(tiles: AbsorbTiles, dims: Dims) -> int:
    """Both operands' blocks, and the result on its way out."""
    return needed(tiles, dims.qk_nope_head_dim)


def needed(tiles: AbsorbTiles | UpProjectTiles, summed: int) -> int:
    """Shared memory: the pairs of blocks in flight, one more for a warp-group product, and one where there is one."""
    stages = tiles.num_stages if on_wgmma(tiles.block_m, tiles.num_warps) else tiles.num_stages - 1
    pairs = max(1, stages) if summed > tiles.block_k else 1
    return max(pairs * 2 * tiles.block_k * (tiles.block_m + tiles.block_n), 2 * tiles.block_m * (tiles.block_n + 8))
