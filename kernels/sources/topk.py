"""topk and its Hopper form, for a decoding step whose rows fit a program: ends given, starts not."""

from __future__ import annotations

from mlaprof.kernels.sources.build import Build, build
from mlaprof.kernels.tiles import Dims
from mlaprof.kernels.tiles.hopper_topk import HopperTopkTiles
from mlaprof.kernels.tiles.topk import TopkTiles
from mlaprof.kernels.topk import topk_kernel

_TYPES = {"logits_ptr": "*fp32", "ends_ptr": "*i32", "out_ptr": "*i32", "between_ptr": "*i64"}


def topk_build(tiles: TopkTiles | HopperTopkTiles, dims: Dims) -> Build:
    threads = 32 * tiles.num_warps
    constants: dict[str, int | None] = {
        "starts_ptr": None,
        "C": threads,
        "R": tiles.block // (threads * tiles.num_pieces),
        "PIECES": tiles.num_pieces,
        "AMBIGUOUS": tiles.ambiguous,
    }
    options = {"num_warps": tiles.num_warps, "maxnreg": tiles.num_registers or None}
    if isinstance(tiles, HopperTopkTiles):
        from mlaprof.kernels.hopper.topk import topk_kernel as hopper_topk_kernel

        return build(hopper_topk_kernel, _TYPES, constants | {"EAGER": True}, (), **options)
    return build(topk_kernel, _TYPES, constants | {"LONG": False}, (), **options)
