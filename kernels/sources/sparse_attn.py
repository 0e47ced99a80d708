"""sparse_attn and both its Hopper forms, for the layer's bf16 cache and without statistics."""

from __future__ import annotations

from mlaprof.kernels.sources.build import Build, build
from mlaprof.kernels.sparse_attn import Tiles, sparse_attn_kernel
from mlaprof.kernels.tiles import Dims, SparseAttnTiles
from mlaprof.kernels.tiles.hopper_sparse_attn import HopperSparseAttnTiles
from mlaprof.kernels.tiles.hopper_sparse_decode import HopperSparseDecodeTiles

_TYPES = {"q_ptr": "*bf16", "cache_ptr": "*bf16", "indices_ptr": "*i32", "scale_log2": "fp32"}
_WHOLE = dict.fromkeys(("out_ptr", "lse_ptr", "max_ptr"), "*bf16")  # out stands in for what is not written
_PARTS = dict.fromkeys(("out_ptr", "lse_ptr", "max_ptr"), "*fp32")


def sparse_attn_build(tiles: Tiles, dims: Dims) -> Build:
    multiples = {"num_rows", "q_stride_t", "q_stride_h", "cache_stride", "out_stride_t", "out_stride_h"}
    multiples |= {"num_heads"} if dims.num_heads % 16 == 0 else set()
    has_whole_lines = dims.index_topk % 16 == 0
    multiples |= {"indices_stride"} if has_whole_lines else set()
    if isinstance(tiles, HopperSparseAttnTiles):
        from mlaprof.kernels.hopper.sparse_attn import sparse_attn_hopper_kernel

        split = tiles.lists > 1
        constants: dict[str, int | None] = {"LISTS": tiles.lists, "STATS": int(split), "PACKED": False}
        types = _TYPES | (_PARTS if split else _WHOLE)
        multiples |= {"list_rows"} if dims.index_topk // tiles.lists % 16 == 0 else set()
        return build(sparse_attn_hopper_kernel, types, constants, multiples, num_warps=tiles.num_warps)
    split = tiles.num_splits > 1
    multiples |= {"out_stride_s"} | ({"topk"} if has_whole_lines else set())
    types = _TYPES | (_PARTS if split else _WHOLE)
    if isinstance(tiles, HopperSparseDecodeTiles):
        from mlaprof.kernels.hopper.sparse_decode import REGISTERS, sparse_decode_kernel

        registers, gather_registers = REGISTERS[tiles.block_h]
        constants = {"HEADS": tiles.block_h, "STATS": int(split), "PACKED": False, "GATHER_REGISTERS": gather_registers}
        return build(sparse_decode_kernel, types, constants, multiples, num_warps=tiles.num_warps, maxnreg=registers)
    return _portable(tiles, dims, types, multiples)


def _portable(tiles: SparseAttnTiles, dims: Dims, types: dict[str, str], multiples: set[str]) -> Build:
    constants: dict[str, int | None] = {
        "D_LATENT": dims.kv_lora_rank,
        "D_ROPE": dims.qk_rope_head_dim,
        "BLOCK_H": tiles.block_h,
        "BLOCK_N": tiles.block_n,
        "FP8": False,
        "max_ptr": None,
    }
    constants |= {} if tiles.num_splits > 1 else {"lse_ptr": None}
    stages = tiles.num_stages
    return build(sparse_attn_kernel, types, constants, multiples, num_warps=tiles.num_warps, num_stages=stages)
