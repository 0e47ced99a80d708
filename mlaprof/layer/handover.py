"""What Op 1 hands to Op 2 at each boundary: always tensors, as many and as wide whatever the batch.

| boundary | behind q, compressed_kv, k_pe and latent_cache |
|---|---|
| proj | the normed compressed q; Op 2 is given Op 1's hidden_states, too |
| index_quant, cache_update | q_fp8, k_fp8, k_scale, weights: `Indexer.pre_indexer_proj`'s four |
| logits | the selection |
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlaprof.shapes import LayerShape
from mlaprof.study import Boundary

CACHES_IN_OP1: tuple[Boundary, ...] = ("cache_update", "logits")


def empty_parts(shape: LayerShape, boundary: Boundary, hidden_states: Tensor) -> list[Tensor]:
    """Empty tensors of Op 1's shapes and dtypes for hidden_states [T, hidden_size], for its fake kernel."""
    rows = hidden_states.shape[0]
    widths = [shape.num_heads * shape.qk_head_dim, shape.kv_lora_rank, shape.qk_rope_head_dim, shape.latent_dim]
    parts = [hidden_states.new_empty((rows, width)) for width in widths]
    if boundary == "proj":
        return [*parts, hidden_states.new_empty((rows, shape.q_lora_rank))]
    if boundary == "logits":
        return [*parts, hidden_states.new_empty((rows, shape.index_topk), dtype=torch.int32)]
    heads, dim, fp8 = shape.index_n_heads, shape.index_head_dim, torch.float8_e4m3fn
    return [
        *parts,
        hidden_states.new_empty((rows, heads, dim), dtype=fp8),
        hidden_states.new_empty((rows, dim), dtype=fp8),
        hidden_states.new_empty((rows, 1), dtype=torch.float32),
        hidden_states.new_empty((rows, heads), dtype=torch.float32),
    ]


def for_indexer(boundary: Boundary, rest: list[Tensor], hidden_states: Tensor) -> list[Tensor]:
    """Op 2's indexer_intermediates, from what Op 1 returned beyond its first four.

    hidden_states is added by who called Op 1: an op must not return what it was given.
    """
    return [*rest, hidden_states] if boundary == "proj" else rest
