"""The tile configuration of every tunable kernel of one layer, packed as the ops' schemas take it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mlaprof.kernels import tiles
from mlaprof.kernels.tiles import Dims


@dataclass(frozen=True)
class LayerTiles:
    """Per kernel what tiles.pack() made; empty where the launcher chooses.

    by_tokens  what takes the place of all of it in a step of just so many tokens: tuned tiles hold for sizes
    """

    sparse_attn: list[int] = field(default_factory=list)
    index_logits: list[int] = field(default_factory=list)
    paged_index_logits: list[int] = field(default_factory=list)
    topk: list[int] = field(default_factory=list)
    absorb: list[int] = field(default_factory=list)
    up_project: list[int] = field(default_factory=list)
    by_tokens: Mapping[int, LayerTiles] = field(default_factory=dict, repr=False)

    def at(self, num_tokens: int) -> LayerTiles:
        """The tiles of a step of num_tokens."""
        return self.by_tokens.get(num_tokens, self)


def layer_tiles(dims: Dims, chosen: Mapping[str, Mapping[str, int]]) -> LayerTiles:
    """chosen[kernel] completed by the default's fields; a kernel not chosen is left to its launcher.

    Raises ValueError on a kernel that is unknown or that the layer gives no tiles, and on an unknown field.
    """
    kernels = {each.name for each in fields(LayerTiles)} - {"by_tokens"}
    known = [name for name in tiles.KERNELS if tiles.kernel_of(name) in kernels]
    if unknown := set(chosen) - set(known):
        raise ValueError(f"tiles: expected kernels of {sorted(known)}, got {sorted(unknown)}")
    packed: dict[str, Any] = {
        tiles.kernel_of(name): tiles.pack(tiles.complete(name, values, dims)) for name, values in chosen.items()
    }
    return LayerTiles(**packed)


def tuned_tiles(
    dims: Dims,
    chosen: Mapping[str, Mapping[str, int]],
    tuned: Iterable[tuple[int, str, Mapping[str, int]]],
) -> LayerTiles:
    """As layer_tiles, and (num_tokens, kernel, values) beside them for kernels of which nothing is chosen."""
    pinned = {tiles.kernel_of(name) for name in chosen}
    by_tokens: dict[int, dict[str, Mapping[str, int]]] = {}
    for num_tokens, kernel, values in tuned:
        if tiles.kernel_of(kernel) not in pinned:
            by_tokens.setdefault(num_tokens, {})[kernel] = values
    found = {num_tokens: layer_tiles(dims, {**chosen, **each}) for num_tokens, each in by_tokens.items()}
    return replace(layer_tiles(dims, chosen), by_tokens=found)
