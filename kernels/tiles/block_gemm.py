"""Tiles of block_gemm, the portable form: one block of the result a program."""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.kernels.tiles.limits import STAGES, WARPS, Dims, on_wgmma

GROUP = 128  # values of k that share a scale, and what a program multiplies at a time


@dataclass(frozen=True)
class BlockGemmTiles:
    """One program: block_m tokens times block_n weight rows. Below 64 tokens the weights are the tall side."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


TILES = BlockGemmTiles
CHOICES = {"block_m": (16, 32, 64, 128), "block_n": (16, 32, 64, 128), "num_warps": WARPS, "num_stages": STAGES}
LETTERS = {"block_m": "m", "block_n": "n", "num_warps": "w", "num_stages": "s"}


def choose(m: int, n: int, k: int) -> BlockGemmTiles:
    """The default for a product [m, k] x [n, k]^T."""
    if m <= 32:
        return BlockGemmTiles(block_m=16 if m <= 16 else 32, block_n=64, num_warps=4, num_stages=6)
    return BlockGemmTiles(block_m=64, block_n=128, num_warps=4, num_stages=4)


def default(dims: Dims) -> BlockGemmTiles:
    """Those of a prefill; no dimension of the layer matters."""
    return choose(4096, 4096, 4096)


def problem(tiles: BlockGemmTiles, dims: Dims) -> str | None:
    """Any legal values fit any dimensions: a scale spans 128 weight rows, so that no block holds two."""
    return None


def accumulator(tiles: BlockGemmTiles, dims: Dims) -> int:
    """The product of the last 128 of k, and the sum of those before."""
    return 2 * tiles.block_m * tiles.block_n


def shared_bytes(tiles: BlockGemmTiles, dims: Dims) -> int:
    """Both operands' blocks of 128, and the result on its way out."""
    tall = max(tiles.block_m, tiles.block_n) if tiles.block_m < 64 else tiles.block_m
    in_flight = tiles.num_stages if on_wgmma(tall, tiles.num_warps) else max(1, tiles.num_stages - 1)
    blocks = in_flight * GROUP * (tiles.block_m + tiles.block_n)
    return max(blocks, 4 * tiles.block_m * (tiles.block_n + 8))
