"""The CUDA side of the single-kernel ops: Triton launchers, tiles unpacked from the schema's integers."""

from __future__ import annotations

import torch
from torch import Tensor

from mlaprof.kernels import act_quant, index_cache, index_convert, index_logits, paged_logits, sparse_attn
from mlaprof.kernels.tiles import unpack


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


def _sparse_attn(q: Tensor, cache: Tensor, indices: Tensor, scale: float, packed: list[int], out: Tensor) -> None:
    sparse_attn.sparse_attn(q, cache, indices, scale, unpack(packed), out=out)


def register(library: torch.library.Library) -> None:
    """Add the CUDA kernels of every single-kernel op to library."""
    for name, launcher in (
        ("index_logits", _index_logits),
        ("paged_index_logits", _paged_index_logits),
        ("sparse_attn", _sparse_attn),
        ("act_quant", act_quant.act_quant),
        ("update_index_cache", index_cache.update_index_cache),
        ("gather_index_cache", index_cache.gather_index_cache),
        ("convert_indices", index_convert.convert_indices),
    ):
        library.impl(name, launcher, "CUDA")
