"""Tiles of block_gemm on Hopper: two kernels whose loads have warps of their own, and one for few tokens."""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.kernels.tiles.limits import NUM_SMS, Dims

GROUP = 128  # values of k that share a scale
OUT_COLUMNS = 64  # columns of the result on their way out at a time, where room is short
LONG = 32  # groups from which on k is worth splitting: a second launch costs 2 us
LEAST_GROUPS = 8  # of a split
MOST_SPLITS = 8
UNEVEN = 192  # columns of a tile that is multiplied as 128 and 64
MIN_SCALES = 32  # a copy by the TMA unit starts at a multiple of 128 bytes


@dataclass(frozen=True)
class HopperBlockGemmTiles:
    """One tile: block_m tokens times block_n weight rows.

    specialised  1: one warpgroup loads and two multiply, tile after tile; 0: each program loads for itself
    block_n      192 is the kernel of uneven columns
    depth        groups of 128 that are loaded and multiplied together; specialised: 1
    splits       programs that each take a part of k, their sums added by a second launch; specialised: 1
    num_stages   loads in flight
    """

    specialised: int
    block_m: int
    block_n: int
    depth: int
    splits: int
    num_stages: int

    @property
    def num_warps(self) -> int:
        """Those that multiply."""
        wide = self.block_m >= 128 and self.block_n == 64
        return 8 if self.specialised else self.block_n // 16 * (2 if wide else 1)


TILES = HopperBlockGemmTiles
CHOICES = {
    "specialised": (0, 1),
    "block_m": (8, 16, 32, 64, 128, 256),
    "block_n": (64, 128, 192),
    "depth": (1, 2, 4),
    "splits": (1, 2, 3, 4, 5, 6, 7, 8),
    "num_stages": tuple(range(2, 15)),
}
LETTERS = {
    "specialised": "l",
    "block_m": "m",
    "block_n": "n",
    "depth": "d",
    "splits": "p",
    "num_stages": "s",
}


# Of the kernels with warps of their own for loads: time of a tile against that of 256 x 128, for the same k.
_TILE_COST = {
    HopperBlockGemmTiles(1, 256, 128, 1, 1, 4): 1.0,
    HopperBlockGemmTiles(1, 128, 192, 1, 1, 4): 0.775,
    HopperBlockGemmTiles(1, 256, 64, 1, 1, 5): 0.73,
    HopperBlockGemmTiles(1, 128, 128, 1, 1, 5): 0.65,
}


def choose(m: int, n: int, k: int) -> HopperBlockGemmTiles:
    """The default for a product [m, k] x [n, k]^T, from timings on an H100."""
    groups, stripes = k // GROUP, -(-n // 64)
    if m <= 64:
        return _choose_few(max(8, 1 << (m - 1).bit_length()), stripes, groups)
    if m <= 128 and stripes <= NUM_SMS:
        splits = min(NUM_SMS // stripes, groups // LEAST_GROUPS, MOST_SPLITS) if groups >= LONG else 1
        return HopperBlockGemmTiles(0, 128, 64, 2, max(1, splits), 4)
    for block_m, num_stages in ((64, 3), (128, 2)):  # one program a tile, and no more than run at once
        if -(-m // block_m) * stripes <= NUM_SMS:
            return HopperBlockGemmTiles(0, block_m, 64, 4, 1, num_stages)
    return min(_TILE_COST, key=lambda tiles: _TILE_COST[tiles] * _turns(tiles, m, n))


def _choose_few(block_m: int, stripes: int, groups: int) -> HopperBlockGemmTiles:
    """Weights are read once, and nothing else takes time: enough programs and enough loads in flight."""
    splits = 1
    if groups >= LONG:
        most = 3 * NUM_SMS // stripes if block_m <= 32 else NUM_SMS // stripes
        splits = max(1, min(most, groups // LEAST_GROUPS, MOST_SPLITS))
    alone = min(NUM_SMS // stripes, groups // LEAST_GROUPS, MOST_SPLITS)
    if groups >= LONG and block_m <= 32 and alone > 1:  # one program a multiprocessor, more on its way in each
        return HopperBlockGemmTiles(0, block_m, 64, 4, alone, 4 if block_m <= 16 else 3)
    if splits > 1:
        return HopperBlockGemmTiles(0, block_m, 64, 2, splits, 4 if block_m == 8 or stripes * splits <= 264 else 3)
    if stripes > NUM_SMS:  # several programs a multiprocessor
        return HopperBlockGemmTiles(0, block_m, 64, *((4, 1, 2) if block_m == 8 else (2, 1, 2 if block_m == 64 else 3)))
    return HopperBlockGemmTiles(0, block_m, 64, *((2, 1, 6) if groups >= LONG else (4, 1, 3)))


def _turns(tiles: HopperBlockGemmTiles, m: int, n: int) -> int:
    """Tiles that the busiest program computes."""
    return -(-(-(-m // tiles.block_m) * -(-n // tiles.block_n)) // NUM_SMS)


def default(dims: Dims) -> HopperBlockGemmTiles:
    """Those of a prefill; no dimension of the layer matters."""
    return choose(4096, 7168, 16384)


def problem(tiles: HopperBlockGemmTiles, dims: Dims) -> str | None:
    """Why the fields do not go together."""
    if tiles.specialised:
        if tiles.depth > 1 or tiles.splits > 1:
            return "specialised: one group of k at a time and no splits; use depth 1 and splits 1, or specialised 0"
        if (tiles.block_m, tiles.block_n) not in ((128, 128), (256, 128), (256, 64), (128, UNEVEN)):
            return (
                "block_m: two warpgroups take 128 tokens times 128 or 192 rows, or 256 times 64 or 128; use those, "
                "or specialised 0"
            )
        return None
    if tiles.block_n == UNEVEN:
        return f"block_n: only specialised kernels take {UNEVEN} rows; use 64 or 128, or specialised 1"
    if tiles.block_m * tiles.block_n > 128 * 128:
        return f"block_m: {tiles.block_m} tokens leave no registers; use block_n 64, or specialised 1"
    return None


def accumulator(tiles: HopperBlockGemmTiles, dims: Dims) -> int:
    """The sum, and the products that have not been added to it yet: depth of them, or a warpgroup's 64 rows."""
    if tiles.specialised:
        return tiles.block_n * (tiles.block_m + 128)
    return tiles.block_n * tiles.block_m * (1 + tiles.depth)


def shared_bytes(tiles: HopperBlockGemmTiles, dims: Dims) -> int:
    """Stages of both operands and the tokens' scales, their barriers, and the result on its way out."""
    scales = 4 * max(tiles.block_m, MIN_SCALES) + (2 * 128 if tiles.block_n == UNEVEN else 0)  # and two of weights
    stage = tiles.depth * (GROUP * (tiles.block_m + tiles.block_n) + scales)
    if tiles.specialised:
        return tiles.num_stages * (stage + 16) + 2 * 128 * out_columns(tiles) + 1024
    return max(tiles.num_stages * (stage + 16), 4 * tiles.block_m * (tiles.block_n + 8)) + 1024


def out_columns(tiles: HopperBlockGemmTiles) -> int:
    """Columns of the result that a warpgroup sends out at a time."""
    return OUT_COLUMNS if tiles.block_m == 256 else tiles.block_n
