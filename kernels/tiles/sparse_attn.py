"""Tiles of sparse_attn, and the shared memory that Triton 3.6 and 3.7 give them."""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.kernels.tiles.limits import MIN_DOT, NUM_SMS, STAGES, WARPS, Dims, on_wgmma, padded_heads


@dataclass(frozen=True)
class SparseAttnTiles:
    """One program: block_h heads of one token, over its share of the selected rows block_n at a time.

    num_splits programs share the rows of a token; more than one means a second launch that joins their results.
    """

    block_h: int
    block_n: int
    num_warps: int
    num_stages: int
    num_splits: int = 1


TILES = SparseAttnTiles
CHOICES = {
    "block_h": (16, 32, 64, 128),
    "block_n": (16, 32, 64, 128, 256),
    "num_warps": WARPS,
    "num_stages": STAGES,
    "num_splits": (1, 2, 4, 8, 16, 32, 64),
}
LETTERS = {"block_h": "h", "block_n": "n", "num_warps": "w", "num_stages": "s", "num_splits": "x"}


def default(dims: Dims) -> SparseAttnTiles:
    """64 heads a program where there are as many, else all of them."""
    if dims.num_heads > 32:
        return SparseAttnTiles(block_h=64, block_n=32, num_warps=8, num_stages=2)
    block_h = padded_heads(dims.num_heads)
    return SparseAttnTiles(block_h=block_h, block_n=32, num_warps=block_h // 4, num_stages=2)


def choose(num_tokens: int, num_heads: int, topk: int, *, fp8: bool) -> SparseAttnTiles:
    """The tiles of a launch that names none: as many splits as fill an H100 once, blocks small where little is left."""
    if num_heads > 32:
        programs = num_tokens * -(-num_heads // 64)
        return SparseAttnTiles(64, 32, 8, 3, _splits(programs, NUM_SMS, topk))
    block_h = padded_heads(num_heads)
    # Two programs of 16 heads fit a multiprocessor at a time.
    splits = _splits(num_tokens, 2 * NUM_SMS if block_h == 16 else NUM_SMS, topk)
    if block_h == 16 and not fp8 and topk > 256 * splits:
        return SparseAttnTiles(block_h, 64, 4, 2, splits)
    return SparseAttnTiles(block_h, 32, block_h // 4, 3, splits)


def _splits(programs: int, slots: int, topk: int) -> int:
    """The largest number that leaves each program a slot and a block of 32 rows."""
    fit = [x for x in CHOICES["num_splits"] if x * programs <= slots and x * 32 <= topk]
    return max(fit, default=1)


def problem(tiles: SparseAttnTiles, dims: Dims) -> str | None:
    """Why these tiles do not fit these dimensions."""
    for name in ("kv_lora_rank", "qk_rope_head_dim"):
        value = getattr(dims, name)
        if value < MIN_DOT or value & (value - 1):
            return f"{name}: {value} is not a power of two of at least {MIN_DOT}; DeepSeek and GLM use 512 and 64"
    needed = padded_heads(dims.num_heads)
    if tiles.block_h > needed:
        return f"block_h: {tiles.block_h} rows for {dims.num_heads} heads would idle; use at most {needed}"
    return None


def accumulator(tiles: SparseAttnTiles, dims: Dims) -> int:
    """The mixed values of block_h heads."""
    return tiles.block_h * dims.kv_lora_rank


def shared_bytes(tiles: SparseAttnTiles, dims: Dims) -> int:
    """Queries and pipelined rows. A warp-group product reads both operands from shared memory and keeps one more block
    in flight; the older product passes its operands through registers."""
    stages, warps = tiles.num_stages, tiles.num_warps
    row = 2 * (dims.kv_lora_rank + dims.qk_rope_head_dim)
    queries, block = tiles.block_h * row, tiles.block_n * row
    if on_wgmma(tiles.block_h, warps):
        return queries + stages * block
    if stages == 1:
        # Not pipelined: the rows are laid out anew for either product, some warps sharing a copy.
        latent = 2 * tiles.block_n * dims.kv_lora_rank
        return queries + latent + min(latent, 16 * warps * dims.kv_lora_rank)
    return queries + (stages - 1) * block + 2 * tiles.block_h * tiles.block_n
