"""The single-kernel operators: their schemas, the oracle as their CPU kernel, the launcher as their CUDA kernel.

`tiles` is what kernels.tiles.pack() made; an empty list leaves the choice to the launcher.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlaprof.kernels import reference, reference_fused

_PROJECTION = "Tensor fused, Tensor q_weight, Tensor kv_weight, float eps"
_INDEX_KEY = (
    "Tensor index_k, Tensor k_weight, Tensor k_bias, float k_eps, Tensor cos_sin, Tensor positions, bool interleaved"
)
_LATENT = (
    "Tensor compressed_kv, Tensor k_pe, Tensor cos_sin, Tensor positions, Tensor slots, int layer_offset, "
    "Tensor(a!) latent_rows"
)

SCHEMAS = {
    "index_logits": "(Tensor q, Tensor k, Tensor k_scale, Tensor weights, Tensor ks, Tensor ke, int[] tiles) -> Tensor",
    "paged_index_logits": "(Tensor q, Tensor cache, Tensor weights, Tensor kv_lens, Tensor block_table, int max_len, "
    "int[] tiles) -> Tensor",
    "topk": "(Tensor logits, Tensor? starts, Tensor ends, int[] tiles, Tensor(a!) out) -> ()",
    "sparse_attn": "(Tensor q, Tensor cache, Tensor indices, float scale, int[] tiles, Tensor(a!) out) -> ()",
    "convert_indices": "(Tensor topk, Tensor block_table, Tensor req_idx, int stride_factor, int layer_offset) "
    "-> Tensor",
    "project_norms": f"({_PROJECTION}) -> (Tensor, Tensor, Tensor, Tensor)",
    "norm_rope": f"({_PROJECTION}, {_INDEX_KEY}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "index_key": f"({_INDEX_KEY}) -> (Tensor, Tensor)",
    "index_query": "(Tensor q, Tensor weights, Tensor cos_sin, Tensor positions, float weight_scale, bool interleaved) "
    "-> (Tensor, Tensor)",
    "append_latent": f"({_LATENT}) -> ()",
    "cache_write": f"({_LATENT}, Tensor k, Tensor k_scale, Tensor slot_fp8, Tensor slot_scale, Tensor(b!) index_cache) "
    "-> ()",
    "gather_index_cache": "(Tensor cache, Tensor slot_fp8, Tensor slot_scale) -> (Tensor, Tensor)",
    "absorb": "(Tensor q, Tensor w, Tensor cos_sin, Tensor positions, int[] tiles, Tensor(a!) out) -> ()",
    "up_project": "(Tensor x, Tensor w, int[] tiles, Tensor(a!) out) -> ()",
    "group_quant": "(Tensor x) -> (Tensor, Tensor)",
    "block_linear": "(Tensor codes, Tensor scale, Tensor weight, Tensor weight_scale, bool cublaslt) -> Tensor",
}


def register(library: torch.library.Library) -> None:
    """Define every operator in library, with its CPU kernel and, where torch sees a GPU, its CUDA kernel."""
    for name, schema in SCHEMAS.items():
        library.define(name + schema)
        library.impl(name, _CPU[name], "CPU")
    # o_proj stands outside the layer's own operators, where a graph is traced.
    torch.library.register_fake("mlaprof::group_quant", _group_quant_fake, lib=library)
    torch.library.register_fake("mlaprof::block_linear", _block_linear_fake, lib=library)
    if torch.cuda.is_available():
        from mlaprof.layer import cuda_ops

        cuda_ops.register(library)


def _index_logits(
    q: Tensor, k: Tensor, k_scale: Tensor, weights: Tensor, ks: Tensor, ke: Tensor, tiles: list[int]
) -> Tensor:
    return reference.index_logits(q, k, k_scale, weights, ks, ke)


def _paged_index_logits(
    q: Tensor,
    cache: Tensor,
    weights: Tensor,
    kv_lens: Tensor,
    block_table: Tensor,
    max_len: int,
    tiles: list[int],
) -> Tensor:
    return reference.paged_index_logits(q, cache, weights, kv_lens, block_table, max_len)


def _topk(logits: Tensor, starts: Tensor | None, ends: Tensor, tiles: list[int], out: Tensor) -> None:
    out.copy_(reference.topk(logits, starts, ends, out.shape[1]))


def _sparse_attn(q: Tensor, cache: Tensor, indices: Tensor, scale: float, tiles: list[int], out: Tensor) -> None:
    reference.sparse_attn(q, cache, indices, scale, out=out)


def _absorb(q: Tensor, w: Tensor, cos_sin: Tensor, positions: Tensor, tiles: list[int], out: Tensor) -> None:
    reference_fused.absorb(q, w, cos_sin, positions, out)


def _up_project(x: Tensor, w: Tensor, tiles: list[int], out: Tensor) -> None:
    reference_fused.up_project(x, w, out)


def _block_linear(codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, cublaslt: bool) -> Tensor:
    return reference.block_gemm(codes, scale, weight, weight_scale)


def _block_linear_fake(codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, cublaslt: bool) -> Tensor:
    return codes.new_empty((codes.shape[0], weight.shape[0]), dtype=torch.bfloat16)


def _group_quant_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    m, k = x.shape
    columns = x.new_empty((k // 128, -(-m // 4) * 4), dtype=torch.float32)  # each at a multiple of 16 bytes
    return x.new_empty(x.shape, dtype=torch.float8_e4m3fn), columns.T[:m]


_CPU = {
    "index_logits": _index_logits,
    "paged_index_logits": _paged_index_logits,
    "topk": _topk,
    "sparse_attn": _sparse_attn,
    "convert_indices": reference.convert_indices,
    "project_norms": reference_fused.project_norms,
    "norm_rope": reference_fused.norm_rope,
    "index_key": reference_fused.index_key,
    "index_query": reference_fused.index_query,
    "append_latent": reference_fused.append_latent,
    "cache_write": reference_fused.append,
    "gather_index_cache": reference.gather_index_cache,
    "absorb": _absorb,
    "up_project": _up_project,
    "group_quant": reference.group_quant,
    "block_linear": _block_linear,
}
