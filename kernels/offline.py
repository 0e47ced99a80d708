"""Compiling a tunable kernel for a GPU that is not there: what it would take, never how fast it would be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from mlaprof.kernels.cubin import read_cubin
from mlaprof.kernels.sources.block_gemm import block_gemm_build
from mlaprof.kernels.sources.build import Build
from mlaprof.kernels.sources.head_product import head_product_build
from mlaprof.kernels.sources.index_logits import index_logits_build
from mlaprof.kernels.sources.paged_index_logits import paged_index_logits_build
from mlaprof.kernels.sources.sparse_attn import sparse_attn_build
from mlaprof.kernels.sources.topk import topk_build
from mlaprof.kernels.tiles import Dims, Tiles, kernel_of, tiles_type

WARP_SIZE = 32

_BUILDS: dict[str, Callable[[Any, Dims], Build]] = {
    "sparse_attn": sparse_attn_build,
    "index_logits": index_logits_build,
    "paged_index_logits": paged_index_logits_build,
    "topk": topk_build,
    "block_gemm": block_gemm_build,
    "absorb": head_product_build,
    "up_project": head_product_build,
}


@dataclass(frozen=True)
class Resources:
    """What one program of a compiled kernel needs; registers and stack are per thread."""

    registers: int
    stack_bytes: int
    shared_bytes: int


def compile_kernel(kernel: str, tiles: Tiles, dims: Dims, target: int = 90) -> Any:
    """What Triton compiles kernel to with tiles for compute capability target (90: Hopper). No GPU or driver.

    Arguments are specialised as a launch from the layer would: rows start at multiples of 16 elements, one new token a
    request. Where that is not known (numbers of keys, widths of tables) no divisibility is assumed.
    Raises ValueError for an unknown kernel or another kernel's tiles; Triton's own errors when it does not compile.
    """
    expected = tiles_type(kernel)
    if not isinstance(tiles, expected):
        raise ValueError(f"tiles: expected {expected.__name__} for {kernel}, got {type(tiles).__name__}")
    build = _BUILDS[kernel_of(kernel)](tiles, dims)
    return triton.compile(build.source, target=GPUTarget("cuda", target, WARP_SIZE), options=build.options)


def compile_resources(kernel: str, tiles: Tiles, dims: Dims, target: int = 90) -> Resources:
    """What kernel needs with tiles, as compile_kernel() makes it. Raises what that raises."""
    compiled = compile_kernel(kernel, tiles, dims, target)
    facts = read_cubin(compiled.asm["cubin"])
    return Resources(facts.registers, facts.stack_bytes, compiled.metadata.shared)
