"""Tiles of the Hopper form of index_logits."""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.kernels.tiles.limits import NUM_SMS, Dims

INDEX_DIM = 128
MAX_HEADS = 64
PAIRS = 128  # (query, head) pairs of a warp group: the widest product whose scores and weights fit its registers
QUERY_SLOTS = 2
UNIT_KEYS = 256  # keys that could be scored while a program turns to its next unit


@dataclass(frozen=True)
class HopperIndexLogitsTiles:
    """One program: four warp groups with their own queries each, over keys they share, block_n at a time.

    The keys are cut into num_spans parts, which programs take in turn.
    """

    block_n: int
    num_warps: int
    num_stages: int
    num_spans: int


TILES = HopperIndexLogitsTiles
CHOICES = {
    "block_n": (64, 128, 256),
    "num_warps": (16,),
    "num_stages": (2, 3, 4, 5, 6),
    "num_spans": tuple(range(1, 33)),
}
LETTERS = {"block_n": "n", "num_warps": "w", "num_stages": "s", "num_spans": "p"}


def queries_of_group(num_heads: int) -> int:
    """Queries of one warp group."""
    return PAIRS // padded(num_heads)


def padded(num_heads: int) -> int:
    """num_heads as the products see them."""
    return 32 if num_heads <= 32 else MAX_HEADS


def choose(n: int, m: int, num_heads: int) -> HopperIndexLogitsTiles:
    """The default for n queries over m keys: cut so that the last round of units leaves few multiprocessors idle."""
    warps = 16
    groups = -(-n // (warps // 4 * queries_of_group(num_heads)))

    def cost(spans: int) -> float:
        return -(-groups * spans // NUM_SMS) * (m / spans + UNIT_KEYS)

    spans = 1 if groups > 4 * NUM_SMS else min(CHOICES["num_spans"], key=cost)
    return HopperIndexLogitsTiles(block_n=128, num_warps=warps, num_stages=4, num_spans=spans)


def default(dims: Dims) -> HopperIndexLogitsTiles:
    """Those of a prefill."""
    return choose(4096, 4096, dims.index_n_heads)


def problem(tiles: HopperIndexLogitsTiles, dims: Dims) -> str | None:
    """Heads must fit the widest product."""
    if dims.index_n_heads > MAX_HEADS:
        return f"index_n_heads: {dims.index_n_heads} exceed the {MAX_HEADS} of a warp group; use the portable form"
    if dims.index_head_dim != INDEX_DIM:
        return f"index_head_dim: {dims.index_head_dim} is not {INDEX_DIM}; use the portable form"
    return None


def accumulator(tiles: HopperIndexLogitsTiles, dims: Dims) -> int:
    """64 keys a warp group."""
    return 64 * PAIRS * (tiles.num_warps // 4)


def shared_bytes(tiles: HopperIndexLogitsTiles, dims: Dims) -> int:
    """Queries twice, keys of every stage, and their barriers."""
    queries = QUERY_SLOTS * (tiles.num_warps // 4) * PAIRS * INDEX_DIM
    return queries + tiles.num_stages * tiles.block_n * INDEX_DIM + 1024
