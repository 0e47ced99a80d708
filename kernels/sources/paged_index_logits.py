"""paged_index_logits and its Hopper form, for one new token a request."""

from __future__ import annotations

from mlaprof.kernels.paged_logits import LEAST_BATCH, TOKENS_PER_BLOCK, paged_index_logits_kernel
from mlaprof.kernels.sources.build import Build, build
from mlaprof.kernels.tiles import Dims, PagedIndexLogitsTiles, padded_heads
from mlaprof.kernels.tiles.hopper_paged_index_logits import HopperPagedIndexLogitsTiles

_TYPES = {
    "q_ptr": "*fp8e4nv",
    "codes_ptr": "*fp8e4nv",
    "scales_ptr": "*fp32",
    "weights_ptr": "*fp32",
    "kv_lens_ptr": "*i32",
    "block_table_ptr": "*i32",
    "logits_ptr": "*fp32",
}


def paged_index_logits_build(tiles: PagedIndexLogitsTiles | HopperPagedIndexLogitsTiles, dims: Dims) -> Build:
    multiples = {"q_stride_b", "q_stride_j", "q_stride_h"}
    multiples |= {"num_heads", "weights_stride"} if dims.index_n_heads % 16 == 0 else set()
    constants: dict[str, int | None] = {"NEXT_N": 1, "HEADS": padded_heads(dims.index_n_heads), "BATCH": LEAST_BATCH}
    warps, stages = tiles.num_warps, tiles.num_stages
    if isinstance(tiles, HopperPagedIndexLogitsTiles):
        from mlaprof.kernels.hopper.paged_logits import paged_index_logits_hopper_kernel

        constants |= {"STAGES": stages}
        return build(paged_index_logits_hopper_kernel, _TYPES, constants, multiples, num_warps=warps)
    constants |= {"DIM": dims.index_head_dim, "PAGE": TOKENS_PER_BLOCK, "BLOCK_N": tiles.block_n}
    return build(paged_index_logits_kernel, _TYPES, constants, multiples, num_warps=warps, num_stages=stages)
