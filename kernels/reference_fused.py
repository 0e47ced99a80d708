"""The oracles of the fused token-wise kernels: the chain of torch operations that each one replaces.

They round where the kernels round, so most results are the same bits; kept apart from `reference` for length only, and
bound by the same rules.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mlaprof.kernels.reference import act_quant, update_index_cache


def rotated(x: Tensor, cos_sin: Tensor, positions: Tensor, *, interleaved: bool) -> Tensor:
    """The last dimension of x turned by its token's angles, fp32 inside, in x's dtype.

    x          [num_tokens, ..., dim]          any float dtype
    cos_sin    [max_positions, 2, dim/2] fp32  cosines, then sines
    positions  [num_tokens] int64              one outside the table takes its nearest row
    Pairs are (2i, 2i + 1) when interleaved, else (i, i + dim/2).
    """
    angles = cos_sin[positions.clamp(0, cos_sin.shape[0] - 1)]
    shape = (x.shape[0], *([1] * (x.ndim - 2)), x.shape[-1] // 2)
    cos, sin = angles[:, 0].view(shape), angles[:, 1].view(shape)
    wide = x.float()
    if interleaved:
        even, odd = wide[..., 0::2], wide[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)
    first, second = wide.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def project_norms(fused: Tensor, q_weight: Tensor, kv_weight: Tensor, eps: float) -> tuple[Tensor, ...]:
    """qr, compressed_kv, k_pe, latent_cache of the fused A projection [num_tokens, q | kv | rope] bf16."""
    q, kv = q_weight.shape[0], kv_weight.shape[0]
    qr = F.rms_norm(fused[:, :q], (q,), q_weight, eps)
    compressed_kv = F.rms_norm(fused[:, q : q + kv], (kv,), kv_weight, eps)
    k_pe = fused[:, q + kv :].clone(memory_format=torch.contiguous_format)
    return qr, compressed_kv, k_pe, torch.cat((compressed_kv, k_pe), dim=-1)


def index_key(
    index_k: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """Codes [num_tokens, 128] e4m3 and scales [num_tokens, 1] fp32 of index keys: LayerNorm, rotation, quantisation."""
    k = F.layer_norm(index_k.to(k_weight.dtype), (k_weight.shape[0],), k_weight, k_bias, eps)
    return act_quant(_head_rotated(k, cos_sin, positions, interleaved))


def norm_rope(
    fused: Tensor,
    q_weight: Tensor,
    kv_weight: Tensor,
    eps: float,
    index_k: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    k_eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    interleaved: bool,
) -> tuple[Tensor, ...]:
    """`project_norms` and `index_key` together."""
    keys = index_key(index_k, k_weight, k_bias, k_eps, cos_sin, positions, interleaved=interleaved)
    return *project_norms(fused, q_weight, kv_weight, eps), *keys


def index_query(
    q: Tensor, weights: Tensor, cos_sin: Tensor, positions: Tensor, weight_scale: float, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """Codes [num_tokens, heads, 128] e4m3 of rotated index queries, and weights * scale * weight_scale fp32."""
    heads = q.view(q.shape[0], weights.shape[1], -1)
    codes, scale = act_quant(_head_rotated(heads, cos_sin, positions, interleaved))
    return codes, weights * scale.squeeze(-1) * weight_scale


def append_latent(
    compressed_kv: Tensor,
    k_pe: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    layer_offset: int,
    latent_rows: Tensor,
) -> None:
    """Write compressed_kv and the rotated k_pe side by side into rows slots + layer_offset of latent_rows.

    Raises IndexError on a row outside the cache (on the CPU).
    """
    row = torch.cat((compressed_kv, rotated(k_pe, cos_sin, positions, interleaved=True)), dim=-1)
    latent_rows.index_copy_(0, slots + layer_offset, row)


def append(
    compressed_kv: Tensor,
    k_pe: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    layer_offset: int,
    latent_rows: Tensor,
    k: Tensor,
    k_scale: Tensor,
    slot_fp8: Tensor,
    slot_scale: Tensor,
    index_cache: Tensor,
) -> None:
    """`append_latent` and `update_index_cache` together."""
    append_latent(compressed_kv, k_pe, cos_sin, positions, slots, layer_offset, latent_rows)
    update_index_cache(k, k_scale, slot_fp8, slot_scale, index_cache)


def query_rope(q_pe: Tensor, cos_sin: Tensor, positions: Tensor, out: Tensor) -> None:
    """Write q_pe [num_tokens, heads, rope], turned in pairs (2i, 2i + 1), to out of the same shape."""
    out.copy_(rotated(q_pe, cos_sin, positions, interleaved=True))


def absorb(q: Tensor, w: Tensor, cos_sin: Tensor, positions: Tensor, out: Tensor) -> None:
    """out [num_tokens, heads, latent + rope]: q's first columns through w [heads, latent, nope], its others turned."""
    latent, nope = w.shape[1:]
    up_project(q[..., :nope], w, out[..., :latent])
    query_rope(q[..., nope:], cos_sin, positions, out[..., latent:])


def up_project(x: Tensor, w: Tensor, out: Tensor) -> None:
    """out[t, h] = x[t, h] w[h]^T, fp32 inside: x [tokens, heads, k], w [heads, n, k], out [tokens, heads, n]."""
    product = torch.bmm(x.transpose(0, 1).float(), w.transpose(1, 2).float())
    out.copy_(product.transpose(0, 1))


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [num_rows, width] bf16 over its rows' root mean squares, times weight."""
    return F.rms_norm(x, weight.shape, weight, eps)


def rmsnorm_quant(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`rmsnorm`'s codes [num_rows, width] e4m3 in groups of 128 and their scales [num_rows, width / 128] fp32."""
    codes, scale = act_quant(rmsnorm(x, weight, eps).unflatten(-1, (-1, 128)))
    return codes.flatten(-2), scale.squeeze(-1)


def _head_rotated(x: Tensor, cos_sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    # Order inside an index head is [rope | nope], the opposite of the main q.
    rope = 2 * cos_sin.shape[-1]
    turned = rotated(x[..., :rope], cos_sin, positions, interleaved=interleaved)
    return torch.cat((turned, x[..., rope:]), dim=-1)
