"""block_gemm and the kernels of its Hopper form."""

from __future__ import annotations

from mlaprof.kernels.block_gemm import BAND, block_gemm_kernel
from mlaprof.kernels.sources.build import Build, build
from mlaprof.kernels.tiles import Dims
from mlaprof.kernels.tiles.block_gemm import BlockGemmTiles
from mlaprof.kernels.tiles.hopper_block_gemm import UNEVEN, HopperBlockGemmTiles, out_columns

_TYPES = {
    "a_ptr": "*fp8e4nv",
    "a_scale_ptr": "*fp32",
    "b_ptr": "*fp8e4nv",
    "b_scale_ptr": "*fp32",
    "out_ptr": "*bf16",
}


def block_gemm_build(tiles: BlockGemmTiles | HopperBlockGemmTiles, dims: Dims) -> Build:
    if isinstance(tiles, HopperBlockGemmTiles):
        return _hopper(tiles)
    constants: dict[str, int | None] = {"BLOCK_M": tiles.block_m, "BLOCK_N": tiles.block_n, "BAND": BAND}
    multiples = ("n", "a_stride", "b_stride", "out_stride")
    warps, stages = tiles.num_warps, tiles.num_stages
    return build(block_gemm_kernel, _TYPES, constants, multiples, num_warps=warps, num_stages=stages)


def _hopper(tiles: HopperBlockGemmTiles) -> Build:
    from mlaprof.kernels.hopper import block_gemm as hopper
    from mlaprof.kernels.hopper.block_gemm_stream import block_gemm_stream_kernel
    from mlaprof.kernels.hopper.block_gemm_uneven import block_gemm_uneven_kernel
    from mlaprof.kernels.hopper.block_gemm_wide import block_gemm_wide_kernel

    types = hopper.descriptor_types(tiles) | {"b_scale_ptr": "*fp32"}
    warps, level = hopper.FIRST_WARPS, hopper.PTXAS_LEVEL
    if tiles.block_n == UNEVEN:
        stages = {"STAGES": tiles.num_stages}
        return build(block_gemm_uneven_kernel, types, stages, (), num_warps=warps, ptx_options=level)
    if tiles.specialised:
        constants: dict[str, int | None] = {
            "BLOCK_M": tiles.block_m,
            "BLOCK_N": tiles.block_n,
            "STAGES": tiles.num_stages,
            "OUT_N": out_columns(tiles),
        }
        return build(block_gemm_wide_kernel, types, constants, (), num_warps=warps, ptx_options=level)
    constants = {
        "TOKENS": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "DEPTH": tiles.depth,
        "SPLITS": tiles.splits,
        "STAGES": tiles.num_stages,
    }
    types["out_ptr"] = "*fp32" if tiles.splits > 1 else "*bf16"
    multiples = ("n", "out_stride")
    return build(block_gemm_stream_kernel, types, constants, multiples, num_warps=tiles.num_warps)
