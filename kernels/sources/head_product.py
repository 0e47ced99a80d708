"""absorb, up_project and their Hopper forms: one product a head."""

from __future__ import annotations

from mlaprof.kernels.absorb import Tiles, head_product_kernel
from mlaprof.kernels.sources.build import Build, build
from mlaprof.kernels.tiles import Dims
from mlaprof.kernels.tiles.absorb import AbsorbTiles
from mlaprof.kernels.tiles.hopper_absorb import HopperAbsorbTiles
from mlaprof.kernels.tiles.up_project import UpProjectTiles

_POINTERS = dict.fromkeys(("x_ptr", "w_ptr", "out_ptr"), "*bf16") | {"cos_sin_ptr": "*fp32", "positions_ptr": "*i64"}


def head_product_build(tiles: Tiles, dims: Dims) -> Build:
    absorbs = isinstance(tiles, AbsorbTiles | HopperAbsorbTiles)
    n, k = (dims.kv_lora_rank, dims.qk_nope_head_dim) if absorbs else (dims.v_head_dim, dims.kv_lora_rank)
    constants: dict[str, int | None] = {"N": n, "K": k, "BLOCK_N": tiles.block_n, "BLOCK_K": tiles.block_k}
    constants |= {} if absorbs else {"cos_sin_ptr": None, "positions_ptr": None}
    rope = dims.qk_rope_head_dim if absorbs else 0
    warps = tiles.num_warps
    if isinstance(tiles, AbsorbTiles | UpProjectTiles):
        kernel, types = head_product_kernel, _POINTERS
        constants |= {"ROPE": rope, "BLOCK_M": tiles.block_m}
        options = {"num_warps": warps, "num_stages": tiles.num_stages}
    else:
        from mlaprof.kernels.hopper import head_product as hopper

        kernel = hopper.head_product_resident_kernel
        types = _POINTERS | hopper.descriptor_types(tiles)
        constants |= {"HALF": rope // 2, "STAGES": tiles.num_stages}
        options = {"num_warps": warps}
    strides = [name for name in kernel.arg_names if "stride" in name]
    return build(kernel, types, constants, strides, enable_fp_fusion=False, **options)
