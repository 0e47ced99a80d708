"""The attention itself, on rows already chosen: absorbed into the latent space, or dense over expanded heads.

Neither reads the batch's metadata nor knows the layer it serves: which rows, which weights and where to write are
arguments.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlaprof.layer.ops import OPS
from mlaprof.layer.rope import rotate
from mlaprof.layer.tiling import LayerTiles
from mlaprof.shapes import LayerShape


def absorbed(
    q: Tensor,
    cos_sin: Tensor,
    position_ids: Tensor,
    rows: Tensor,
    latent_rows: Tensor,
    *,
    shape: LayerShape,
    k_b_proj_trans: Tensor,
    v_b_proj: Tensor,
    tiles: LayerTiles,
    out: Tensor,
) -> None:
    """Attend in the latent space: one 576-wide KV head whose first 512 columns are also the value.

    q               [n, H * qk_head_dim]         not rotated
    cos_sin         [max_positions, 2, rope/2]   fp32
    position_ids    [n] int64
    rows            [n, index_topk] int32        rows of latent_rows that a query sees; -1 is empty
    latent_rows     [num_rows, latent_dim]       the flat paged cache, this step's rows included
    k_b_proj_trans  [H, kv_lora, nope]
    v_b_proj        [H, v_head_dim, kv_lora]
    out             [n, H * v_head_dim]
    """
    count = q.shape[0]
    query = q.new_empty((count, shape.num_heads, shape.latent_dim))
    heads = q.view(count, shape.num_heads, shape.qk_head_dim)
    OPS.absorb(heads, k_b_proj_trans, cos_sin, position_ids, tiles.absorb, query)
    latent = q.new_empty((count, shape.num_heads, shape.kv_lora_rank))
    OPS.sparse_attn(query, latent_rows, rows, shape.softmax_scale, tiles.sparse_attn, latent)
    OPS.up_project(latent, v_b_proj, tiles.up_project, out.view(count, shape.num_heads, shape.v_head_dim))


def dense(
    q: Tensor,
    cos_sin: Tensor,
    latent: Tensor,
    lengths: Sequence[tuple[int, int]],
    *,
    shape: LayerShape,
    kv_b_proj: nn.Module,
    out: Tensor,
) -> None:
    """Causal attention without absorption: the latent rows of each request, cached ones included, are expanded to every
    head's keys and values.

    q        [n, H * qk_head_dim]      not rotated, request after request
    cos_sin  [n, 2, rope/2] fp32
    latent   [m, latent_dim]           cached and new rows, request after request
    lengths                            (new, total) tokens of each request; they sum to n and m
    out      [n, H * v_head_dim]
    """
    q = q.view(-1, shape.num_heads, shape.qk_head_dim)
    q_pe = rotate(q[..., shape.qk_nope_head_dim :], cos_sin, interleaved=True)
    q = torch.cat((q[..., : shape.qk_nope_head_dim], q_pe), dim=-1)
    heads = out.view(-1, shape.num_heads, shape.v_head_dim)
    q_at = k_at = 0
    for new, total in lengths:
        k, v = _expand(latent[k_at : k_at + total], shape, kv_b_proj)
        queries = q[q_at : q_at + new].transpose(0, 1)
        ones = torch.ones((new, total), dtype=torch.bool, device=q.device)
        visible = ones.tril(diagonal=total - new)
        attended = F.scaled_dot_product_attention(
            queries[None], k[None], v[None], attn_mask=visible, scale=shape.softmax_scale
        )
        heads[q_at : q_at + new].copy_(attended[0].transpose(0, 1))
        q_at, k_at = q_at + new, k_at + total


def _expand(latent: Tensor, shape: LayerShape, kv_b_proj: nn.Module) -> tuple[Tensor, Tensor]:
    """Latent rows [n, 576] to keys [H, n, qk_head_dim] and values [H, n, v_head_dim]."""
    count = latent.shape[0]
    compressed, k_pe = latent.split((shape.kv_lora_rank, shape.qk_rope_head_dim), dim=-1)
    k_nope, v = kv_b_proj(compressed).split(
        (shape.num_heads * shape.qk_nope_head_dim, shape.num_heads * shape.v_head_dim), dim=-1
    )
    k_nope = k_nope.view(count, shape.num_heads, shape.qk_nope_head_dim)
    k = torch.cat((k_nope, k_pe[:, None].expand(-1, shape.num_heads, -1)), dim=-1)
    return k.transpose(0, 1), v.view(count, shape.num_heads, shape.v_head_dim).transpose(0, 1)
