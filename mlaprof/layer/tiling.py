"""The tile configuration of every tunable kernel of one layer, packed as the ops' schemas take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlaprof.kernels import tiles
from mlaprof.kernels.tiles import Dims


@dataclass(frozen=True)
class LayerTiles:
    """Per kernel what tiles.pack() made; empty where the launcher chooses."""

    sparse_attn: list[int] = field(default_factory=list)
    index_logits: list[int] = field(default_factory=list)
    paged_index_logits: list[int] = field(default_factory=list)
    topk: list[int] = field(default_factory=list)


def layer_tiles(dims: Dims, chosen: Mapping[str, Mapping[str, int]]) -> LayerTiles:
    """chosen[kernel] completed by the default's fields; a kernel not chosen is left to its launcher.

    Raises ValueError on an unknown kernel or field.
    """
    unknown = set(chosen) - set(tiles.KERNELS)
    if unknown:
        raise ValueError(f"tiles: expected kernels of {sorted(tiles.KERNELS)}, got {sorted(unknown)}")
    packed = {tiles.kernel_of(name): tiles.pack(tiles.complete(name, values, dims)) for name, values in chosen.items()}
    return LayerTiles(**packed)
