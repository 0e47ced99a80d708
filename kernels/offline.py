"""Compiling a tunable kernel for a GPU that is not there: what it would take, never how fast it would be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mlaprof.kernels.cubin import read_cubin
from mlaprof.kernels.head_product_source import HEAD_PRODUCTS, head_product_source
from mlaprof.kernels.index_logits import KEY_BLOCKS_PER_PROGRAM, index_logits_kernel
from mlaprof.kernels.paged_logits import LEAST_BATCH, TOKENS_PER_BLOCK, paged_index_logits_kernel
from mlaprof.kernels.sparse_attn import sparse_attn_kernel
from mlaprof.kernels.tiles import (
    Dims,
    IndexLogitsTiles,
    SparseAttnTiles,
    Tiles,
    kernel_of,
    padded_heads,
    tiles_type,
)
from mlaprof.kernels.tiles.hopper_index_logits import HopperIndexLogitsTiles
from mlaprof.kernels.tiles.hopper_paged_index_logits import HopperPagedIndexLogitsTiles

WARP_SIZE = 32

# Arguments that are neither int32 numbers nor compile-time constants.
_TYPES = {
    "sparse_attn": {
        "q_ptr": "*bf16",
        "cache_ptr": "*bf16",
        "indices_ptr": "*i32",
        "out_ptr": "*bf16",
        "scale_log2": "fp32",
    },
    "index_logits": {
        "q_ptr": "*fp8e4nv",
        "k_ptr": "*fp8e4nv",
        "k_scale_ptr": "*fp32",
        "weights_ptr": "*fp32",
        "ks_ptr": "*i32",
        "ke_ptr": "*i32",
        "logits_ptr": "*fp32",
    },
    "paged_index_logits": {
        "q_ptr": "*fp8e4nv",
        "codes_ptr": "*fp8e4nv",
        "scales_ptr": "*fp32",
        "weights_ptr": "*fp32",
        "kv_lens_ptr": "*i32",
        "block_table_ptr": "*i32",
        "logits_ptr": "*fp32",
    },
}
_TYPES["index_logits@hopper"] = _TYPES["index_logits"]
_TYPES["paged_index_logits@hopper"] = _TYPES["paged_index_logits"]


@dataclass(frozen=True)
class Resources:
    """What one program of a compiled kernel needs; registers and stack are per thread."""

    registers: int
    stack_bytes: int
    shared_bytes: int


def compile_resources(kernel: str, tiles: Tiles, dims: Dims, target: int = 90) -> Resources:
    """Compile kernel with tiles for compute capability target (90: Hopper) and read what it needs. No GPU or driver.

    Arguments are specialised as a launch from the layer would: rows start at multiples of 16 elements, one new token a
    request. Where that is not known (numbers of keys, widths of tables) no divisibility is assumed.
    Raises ValueError for an unknown kernel or another kernel's tiles; Triton's own errors when it does not compile.
    """
    expected = tiles_type(kernel)
    if not isinstance(tiles, expected):
        raise ValueError(f"tiles: expected {expected.__name__} for {kernel}, got {type(tiles).__name__}")
    source = head_product_source(tiles, dims) if kernel_of(kernel) in HEAD_PRODUCTS else _source(kernel, tiles, dims)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", target, WARP_SIZE),
        options={"num_warps": _launched_warps(tiles), "num_stages": tiles.num_stages},
    )
    facts = read_cubin(compiled.asm["cubin"])
    return Resources(facts.registers, facts.stack_bytes, compiled.metadata.shared)


def _source(kernel: str, tiles: Tiles, dims: Dims) -> Any:
    function, constants, multiples = _specialisation(tiles, dims)
    types = _TYPES[kernel] | _descriptor_types(tiles, dims)
    signature = {name: types.get(name, "i32") for name in function.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    place = {name: (i,) for i, name in enumerate(function.arg_names)}
    aligned = [name for name, kind in signature.items() if kind.startswith("*") or name in multiples]
    return _source_type(kernel)(
        fn=function,
        signature=signature,
        constexprs={place[name]: value for name, value in constants.items()},
        attrs={place[name]: [["tt.divisibility", 16]] for name in aligned},
    )


def _launched_warps(tiles: Tiles) -> int:
    """Where warp groups have roles, those of the first; the kernel itself adds the others."""
    first_group: int = 4 if isinstance(tiles, HopperIndexLogitsTiles) else tiles.num_warps
    return first_group


def _descriptor_types(tiles: Tiles, dims: Dims) -> dict[str, str]:
    if not isinstance(tiles, HopperIndexLogitsTiles):
        return {}
    from mlaprof.kernels.hopper.index_logits import descriptor_types

    return descriptor_types(dims.index_n_heads, tiles)


def _source_type(kernel: str) -> Any:
    if not kernel.endswith("@hopper"):
        return ASTSource
    from mlaprof.kernels.hopper.source import GluonASTSource

    return GluonASTSource


def _specialisation(tiles: Tiles, dims: Dims) -> tuple[Any, dict[str, int | None], set[str]]:
    """The jit function, the constants its launcher would pass, and the numbers that are multiples of 16."""
    if isinstance(tiles, SparseAttnTiles):
        constants = {
            "D_LATENT": dims.kv_lora_rank,
            "D_ROPE": dims.qk_rope_head_dim,
            "BLOCK_H": tiles.block_h,
            "BLOCK_N": tiles.block_n,
            "FP8": False,
            "lse_ptr": None,
            "max_ptr": None,
        }
        multiples = {"num_rows", "q_stride_t", "q_stride_h", "cache_stride"}
        multiples |= {"out_stride_t", "out_stride_s", "out_stride_h"}
        multiples |= {"num_heads"} if dims.num_heads % 16 == 0 else set()
        multiples |= {"topk", "indices_stride"} if dims.index_topk % 16 == 0 else set()
        return sparse_attn_kernel, constants, multiples
    heads = padded_heads(dims.index_n_heads)
    multiples = {"num_heads", "weights_stride"} if dims.index_n_heads % 16 == 0 else set()
    if isinstance(tiles, IndexLogitsTiles):
        constants = {
            "DIM": dims.index_head_dim,
            "HEADS": heads,
            "BLOCK_Q": tiles.block_q,
            "BLOCK_N": tiles.block_n,
            "SPAN": tiles.block_n * KEY_BLOCKS_PER_PROGRAM,
        }
        return index_logits_kernel, constants, multiples | {"q_stride_n", "q_stride_h", "k_stride"}
    if isinstance(tiles, HopperIndexLogitsTiles):
        from mlaprof.kernels.hopper import index_logits as hopper

        return hopper.index_logits_kernel, dict(hopper.constants(dims.index_n_heads, tiles)), multiples
    multiples |= {"q_stride_b", "q_stride_j", "q_stride_h"}
    constants = {"HEADS": heads, "NEXT_N": 1, "BATCH": LEAST_BATCH}
    if isinstance(tiles, HopperPagedIndexLogitsTiles):
        from mlaprof.kernels.hopper.paged_logits import paged_index_logits_hopper_kernel

        return paged_index_logits_hopper_kernel, constants | {"STAGES": tiles.num_stages}, multiples
    constants |= {"DIM": dims.index_head_dim, "PAGE": TOKENS_PER_BLOCK, "BLOCK_N": tiles.block_n}
    return paged_index_logits_kernel, constants, multiples
