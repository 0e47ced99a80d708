"""Tiles of sparse_attn's Hopper form for few tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from mlaprof.kernels.tiles import hopper_sparse_attn as prefill
from mlaprof.kernels.tiles.joining import joined_us
from mlaprof.kernels.tiles.limits import NUM_SMS, Dims, padded_heads

LATENT_DIM, ROPE_DIM = 512, 64  # the form is written for these
KEYS = 64  # rows of a block

# Measured on an H100 SXM.
_BLOCK_US = {16: 1.5, 32: 2.0, 64: 3.1}  # one block of rows, by heads
_PACKED_BLOCK_US = {16: 2.6, 32: 3.0, 64: 3.8}  # one block of packed rows
_READ_BYTES_A_US = 2.75e6  # gathered rows
_PACKED_ROW_BYTES = 656
_WARPS = {16: 4, 32: 4, 64: 8}


@dataclass(frozen=True)
class HopperSparseDecodeTiles:
    """One program: block_h heads of one token, over its share of the selected rows.

    num_warps attend, four more gather. num_splits programs share the rows of a token; more than one means a second
    launch that joins their results.
    """

    block_h: int
    num_warps: int
    num_splits: int


TILES = HopperSparseDecodeTiles
CHOICES = {"block_h": (16, 32, 64), "num_warps": (4, 8), "num_splits": (1, 2, 4, 8, 16, 32, 64)}
LETTERS = {"block_h": "h", "num_warps": "w", "num_splits": "x"}


def default(dims: Dims) -> HopperSparseDecodeTiles:
    """One program a token and group of heads."""
    block_h = min(64, padded_heads(dims.num_heads))
    return HopperSparseDecodeTiles(block_h, _WARPS[block_h], 1)


@lru_cache(maxsize=1024)
def choose(num_tokens: int, num_heads: int, topk: int, *, packed: bool = False) -> HopperSparseDecodeTiles:
    """The tiles of a launch that names none: those that should end first on an H100."""
    candidates = (
        HopperSparseDecodeTiles(block_h, _WARPS[block_h], splits)
        for block_h in CHOICES["block_h"]
        for splits in CHOICES["num_splits"]
        if block_h <= padded_heads(num_heads) and (splits == 1 or splits * KEYS <= topk)
    )

    def cost(tiles: HopperSparseDecodeTiles) -> tuple[float, int, int]:
        time_us = estimate_us(tiles, num_tokens, num_heads, topk, packed=packed)
        return time_us, tiles.num_splits, -tiles.block_h

    return min(candidates, key=cost)


def pays(num_tokens: int, num_heads: int, topk: int, *, packed: bool = False) -> bool:
    """Whether this form ends first, each with the tiles that it would choose.

    Of a bf16 cache the one for prefill does once a token and 64 heads take more than half the multiprocessors.
    """
    if num_heads <= 32:
        return True
    if not packed:
        return 2 * num_tokens * -(-num_heads // 64) <= NUM_SMS
    few, many = (
        choose(num_tokens, num_heads, topk, packed=True),
        prefill.choose(num_tokens, num_heads, topk, packed=True),
    )
    few_us = estimate_us(few, num_tokens, num_heads, topk, packed=True)
    return few_us <= prefill.packed_us(many, num_tokens, num_heads, topk)


def estimate_us(
    tiles: HopperSparseDecodeTiles, num_tokens: int, num_heads: int, topk: int, *, packed: bool = False
) -> float:
    """Microseconds on an H100, the joining launch included, from measured times of the parts; good to about a tenth."""
    programs = num_tokens * -(-num_heads // tiles.block_h) * tiles.num_splits
    blocks = -(-topk // (KEYS * tiles.num_splits))
    block_us = (_PACKED_BLOCK_US if packed else _BLOCK_US)[tiles.block_h]
    row_bytes = _PACKED_ROW_BYTES if packed else 2 * (LATENT_DIM + ROPE_DIM)
    reading = max(-(-programs // NUM_SMS) * blocks * block_us, num_tokens * topk * row_bytes / _READ_BYTES_A_US)
    return reading + joined_us(num_tokens * num_heads * tiles.num_splits * LATENT_DIM if tiles.num_splits > 1 else 0)


def problem(tiles: HopperSparseDecodeTiles, dims: Dims) -> str | None:
    """Why these tiles do not fit these dimensions."""
    if (dims.kv_lora_rank, dims.qk_rope_head_dim) != (LATENT_DIM, ROPE_DIM):
        got = f"{dims.kv_lora_rank} and {dims.qk_rope_head_dim}"
        return f"kv_lora_rank and qk_rope_head_dim: {got} are not {LATENT_DIM} and {ROPE_DIM}; use the plain form"
    needed = padded_heads(dims.num_heads)
    if tiles.block_h > needed:
        return f"block_h: {tiles.block_h} rows for {dims.num_heads} heads would idle; use at most {needed}"
    if tiles.block_h == 64 and tiles.num_warps == 4:
        return "num_warps: 4 cannot hold the results of 64 heads; use 8"
    return None


def accumulator(tiles: HopperSparseDecodeTiles, dims: Dims) -> int:
    """The mixed values of block_h heads."""
    return tiles.block_h * dims.kv_lora_rank


def shared_bytes(tiles: HopperSparseDecodeTiles, dims: Dims) -> int:
    """Queries, two blocks of rows, one of probabilities, and 3 KiB for scales, barriers and what Triton adds."""
    row = 2 * (dims.kv_lora_rank + dims.qk_rope_head_dim)
    return (tiles.block_h + 2 * KEYS) * row + 2 * KEYS * tiles.block_h + 3072
