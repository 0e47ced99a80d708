"""index_logits and its Hopper form."""

from __future__ import annotations

from mlaprof.kernels.index_logits import KEY_BLOCKS_PER_PROGRAM, index_logits_kernel
from mlaprof.kernels.sources.build import Build, build
from mlaprof.kernels.tiles import Dims, IndexLogitsTiles, padded_heads
from mlaprof.kernels.tiles.hopper_index_logits import HopperIndexLogitsTiles

_TYPES = {
    "q_ptr": "*fp8e4nv",
    "k_ptr": "*fp8e4nv",
    "k_scale_ptr": "*fp32",
    "weights_ptr": "*fp32",
    "ks_ptr": "*i32",
    "ke_ptr": "*i32",
    "logits_ptr": "*fp32",
}


def index_logits_build(tiles: IndexLogitsTiles | HopperIndexLogitsTiles, dims: Dims) -> Build:
    multiples = {"q_stride_n", "q_stride_h", "k_stride"}
    multiples |= {"num_heads", "weights_stride"} if dims.index_n_heads % 16 == 0 else set()
    if isinstance(tiles, HopperIndexLogitsTiles):
        from mlaprof.kernels.hopper import index_logits as hopper

        types = _TYPES | hopper.descriptor_types(dims.index_n_heads, tiles)
        numbers = multiples & {"num_heads", "weights_stride"}
        sizes: dict[str, int | None] = {**hopper.constants(dims.index_n_heads, tiles)}
        return build(hopper.index_logits_kernel, types, sizes, numbers, num_warps=hopper.FIRST_WARPS)
    constants: dict[str, int | None] = {
        "DIM": dims.index_head_dim,
        "HEADS": padded_heads(dims.index_n_heads),
        "BLOCK_Q": tiles.block_q,
        "BLOCK_N": tiles.block_n,
        "SPAN": tiles.block_n * KEY_BLOCKS_PER_PROGRAM,
    }
    warps, stages = tiles.num_warps, tiles.num_stages
    return build(index_logits_kernel, _TYPES, constants, multiples, num_warps=warps, num_stages=stages)
