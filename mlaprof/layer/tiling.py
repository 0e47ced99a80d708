"""The tile configuration of every tunable kernel of one layer, packed as the ops' schemas take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from mlaprof.kernels import tiles
from mlaprof.kernels.tiles import Dims


@dataclass(frozen=True)
class LayerTiles:
    """Per kernel what tiles.pack() made; empty where the launcher chooses."""

    sparse_attn: list[int] = field(default_factory=list)
    index_logits: list[int] = field(default_factory=list)
    paged_index_logits: list[int] = field(default_factory=list)
    topk: list[int] = field(default_factory=list)
    absorb: list[int] = field(default_factory=list)
    up_project: list[int] = field(default_factory=list)


def layer_tiles(dims: Dims, chosen: Mapping[str, Mapping[str, int]]) -> LayerTiles:
    """chosen[kernel] completed by the default's fields; a kernel not chosen is left to its launcher.

    Raises ValueError on a kernel that is unknown or that the layer gives no tiles, and on an unknown field.
    """
    kernels = {each.name for each in fields(LayerTiles)}
    known = [name for name in tiles.KERNELS if tiles.kernel_of(name) in kernels]
    if unknown := set(chosen) - set(known):
        raise ValueError(f"tiles: expected kernels of {sorted(known)}, got {sorted(unknown)}")
    packed = {tiles.kernel_of(name): tiles.pack(tiles.complete(name, values, dims)) for name, values in chosen.items()}
    return LayerTiles(**packed)
