"""Tile configurations as values: one frozen dataclass a kernel, one legality predicate, the space. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Dims:
    """The layer dimensions that decide which tiles are legal."""

    num_heads: int
    kv_lora_rank: int
    qk_rope_head_dim: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int


def label(kernel: str, values: Mapping[str, int]) -> str:
    """Short name of a tile configuration, e.g. `n64.w4.s3`."""
    return ".".join(f"{name[-1]}{value}" for name, value in values.items())
