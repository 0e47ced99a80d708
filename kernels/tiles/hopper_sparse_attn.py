"""Tiles of the Hopper form of sparse_attn for many tokens.

Its blocks are fixed by what fits a multiprocessor: queries of 64 heads and two blocks of 64 gathered rows fill the
shared memory, 64 x 512 sums the registers of two warp groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from mlaprof.kernels.tiles.joining import joined_us
from mlaprof.kernels.tiles.limits import NUM_SMS, Dims

BLOCK_H = 64  # heads of a tile
BLOCK_N = 64  # rows of a block
KV_LORA_RANK, ROPE_DIM = 512, 64

_PACKED_BLOCK_US = 3.0  # one block of packed rows, measured on an H100 SXM


@dataclass(frozen=True)
class HopperSparseAttnTiles:
    """One tile: 64 heads of one token, over its selected rows 64 at a time.

    persistent  1: a program a multiprocessor takes tile after tile, gathering for the next while it ends one;
                0: a program a tile
    lists       that a token's rows are shared out in, each a tile; more than one means a second launch that joins
                their results
    """

    persistent: int
    lists: int = 1

    @property
    def num_warps(self) -> int:
        """Those that accumulate; eight more score and four gather, or of a packed cache four each score and decode."""
        return 8

    def programs(self, num_tiles: int) -> int:
        """Programs to launch for num_tiles tiles."""
        return min(num_tiles, NUM_SMS) if self.persistent else num_tiles


TILES = HopperSparseAttnTiles
CHOICES = {"persistent": (0, 1), "lists": (1, 2, 4, 8, 16, 32)}
LETTERS = {"persistent": "p", "lists": "x"}


@lru_cache(maxsize=1024)
def choose(num_tokens: int, num_heads: int, topk: int, *, packed: bool = False) -> HopperSparseAttnTiles:
    """The default for a step: persistent whatever the shape, since a new program would wait for its first rows."""
    if not packed:  # few tokens of a bf16 cache are for the other form
        return HopperSparseAttnTiles(persistent=1)
    lists = [n for n in CHOICES["lists"] if n == 1 or topk % (n * BLOCK_N) == 0]
    return min(
        (HopperSparseAttnTiles(1, n) for n in lists),
        key=lambda tiles: packed_us(tiles, num_tokens, num_heads, topk),
    )


def packed_us(tiles: HopperSparseAttnTiles, num_tokens: int, num_heads: int, topk: int) -> float:
    """Microseconds that a step over packed rows should take on an H100, the launch that joins lists included."""
    programs = num_tokens * -(-num_heads // BLOCK_H) * tiles.lists
    blocks = -(-topk // (BLOCK_N * tiles.lists))
    reading = -(-programs // NUM_SMS) * blocks * _PACKED_BLOCK_US
    return reading + joined_us(num_tokens * num_heads * tiles.lists * KV_LORA_RANK if tiles.lists > 1 else 0)


def default(dims: Dims) -> HopperSparseAttnTiles:
    """Those of a prefill."""
    return choose(4096, dims.num_heads, dims.index_topk)


def problem(tiles: HopperSparseAttnTiles, dims: Dims) -> str | None:
    """Why these dimensions do not fit the form."""
    if (dims.kv_lora_rank, dims.qk_rope_head_dim) != (KV_LORA_RANK, ROPE_DIM):
        return (
            f"kv_lora_rank: rows of {dims.kv_lora_rank} + {dims.qk_rope_head_dim} values are not "
            f"{KV_LORA_RANK} + {ROPE_DIM}; use the portable form"
        )
    if dims.index_topk % tiles.lists:
        return f"lists: {tiles.lists} do not share {dims.index_topk} rows evenly; use a divisor"
    if dims.num_heads <= BLOCK_H // 2:
        return f"num_heads: {dims.num_heads} of {BLOCK_H} rows a tile would work; use the portable form"
    return None


def accumulator(tiles: HopperSparseAttnTiles, dims: Dims) -> int:
    """The mixed values of 64 heads."""
    return BLOCK_H * KV_LORA_RANK


def shared_bytes(tiles: HopperSparseAttnTiles, dims: Dims) -> int:
    """Queries and two blocks of rows; then statistics a head, barriers, and room where the result changes hands."""
    return 2 * (KV_LORA_RANK + ROPE_DIM) * (BLOCK_H + 2 * BLOCK_N) + 8192
