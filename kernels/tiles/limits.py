"""What every kernel's tiles are judged by: the layer's dimensions and Hopper's limits."""

from __future__ import annotations

from dataclasses import dataclass

SHARED_LIMIT_BYTES = 232_448  # what one program may use on Hopper
NUM_SMS = 132  # multiprocessors of an H100; a default that fills another GPU less well is still right there
MIN_DOT = 16  # smallest side of a tile product
MAX_STAGES = 6

STAGES = tuple(range(1, MAX_STAGES + 1))
WARPS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Dims:
    """The layer dimensions that decide which tiles are legal."""

    num_heads: int
    kv_lora_rank: int
    qk_rope_head_dim: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    qk_nope_head_dim: int = 128
    v_head_dim: int = 128


def padded_heads(num_heads: int) -> int:
    """num_heads rounded up to a power of two of at least 16, the smallest side of a tile product."""
    return max(MIN_DOT, 1 << (num_heads - 1).bit_length())


def on_wgmma(rows: int, num_warps: int) -> bool:
    """Whether Triton uses Hopper's warp-group product: 64 rows and four warps at least."""
    return rows >= 64 and num_warps >= 4
