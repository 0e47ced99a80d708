"""The CUDA side of the single-kernel operators: launchers, tiles unpacked from the schema's integers."""

from __future__ import annotations

import torch
from torch import Tensor

from mlaprof.kernels import (
    absorb,
    block_gemm,
    cache_write,
    group_quant,
    index_cache,
    index_convert,
    index_logits,
    index_query,
    norm_rope,
    paged_logits,
    sparse_attn,
    topk,
)
from mlaprof.kernels.tiles import unpack

CUBLASLT_ROWS = 16  # a multiple of which its block-scaled product takes


def _index_logits(
    q: Tensor, k: Tensor, k_scale: Tensor, weights: Tensor, ks: Tensor, ke: Tensor, packed: list[int]
) -> Tensor:
    return index_logits.index_logits(q, k, k_scale, weights, ks, ke, unpack(packed))


def _paged_index_logits(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    kv_lens: Tensor,
    block_table: Tensor,
    max_len: int,
    packed: list[int],
) -> Tensor:
    return paged_logits.paged_index_logits(q, cache, weights, kv_lens, block_table, max_len, unpack(packed))


def _topk(logits: Tensor, starts: Tensor | None, ends: Tensor, packed: list[int], out: Tensor) -> None:
    topk.topk(logits, starts, ends, out.shape[1], unpack(packed), out=out)


def _sparse_attn(q: Tensor, cache: Tensor, indices: Tensor, scale: float, packed: list[int], out: Tensor) -> None:
    sparse_attn.sparse_attn(q, cache, indices, scale, unpack(packed), out=out)


def _absorb(q: Tensor, w: Tensor, cos_sin: Tensor, positions: Tensor, packed: list[int], out: Tensor) -> None:
    absorb.absorb(q, w, cos_sin, positions, out, unpack(packed))


def _up_project(x: Tensor, w: Tensor, packed: list[int], out: Tensor) -> None:
    absorb.up_project(x, w, out, unpack(packed))


def _block_linear(codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, cublaslt: bool) -> Tensor:
    if not cublaslt:
        return block_gemm.block_gemm(codes, scale, weight, weight_scale)
    # It takes dense columns of scales, and refuses a single row.
    m, padding = codes.shape[0], -codes.shape[0] % CUBLASLT_ROWS
    codes = torch.nn.functional.pad(codes.view(torch.uint8), (0, 0, 0, padding)).view(codes.dtype)
    scale = torch.nn.functional.pad(scale.t(), (0, padding)).contiguous().t()
    product = torch._scaled_mm(codes, weight.t(), scale_a=scale, scale_b=weight_scale.t(), out_dtype=torch.bfloat16)
    return product[:m]


def register(library: torch.library.Library) -> None:
    """Add the CUDA kernels of every single-kernel op to library."""
    for name, launcher in (
        ("index_logits", _index_logits),
        ("paged_index_logits", _paged_index_logits),
        ("topk", _topk),
        ("sparse_attn", _sparse_attn),
        ("convert_indices", index_convert.convert_indices),
        ("project_norms", norm_rope.project_norms),
        ("norm_rope", norm_rope.norm_rope),
        ("index_key", norm_rope.index_key),
        ("index_query", index_query.index_query),
        ("append_latent", cache_write.append_latent),
        ("cache_write", cache_write.cache_write),
        ("gather_index_cache", index_cache.gather_index_cache),
        ("absorb", _absorb),
        ("up_project", _up_project),
        ("group_quant", group_quant.group_quant),
        ("block_linear", _block_linear),
    ):
        library.impl(name, launcher, "CUDA")
