"""The tile configuration of every tunable kernel of one layer, packed as the ops' schemas take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlaprof.kernels import tiles
from mlaprof.kernels.tiles import Dims


@dataclass(frozen=True)
class LayerTiles:
    sparse_attn: list[int]
    index_logits: list[int]
    paged_index_logits: list[int]


def layer_tiles(dims: Dims, chosen: Mapping[str, Mapping[str, int]]) -> LayerTiles:
    """Defaults for dims, with chosen[kernel] laid over them. Raises ValueError on an unknown kernel or field."""
    unknown = set(chosen) - set(tiles.KERNELS)
    if unknown:
        raise ValueError(f"tiles: expected kernels of {sorted(tiles.KERNELS)}, got {sorted(unknown)}")
    packed = {name: tiles.pack(tiles.complete(name, chosen.get(name, {}), dims)) for name in tiles.KERNELS}
    return LayerTiles(**packed)
