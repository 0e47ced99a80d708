"""Everything token-wise between the layer's first products and its next ones, in one launch.

The fused A projection [q | kv | k_pe] gives the normed compressed q, the normed compressed kv, a copy of k_pe and the
two side by side; the index key is normed, rotated and quantised. Three norms: RMSNorm for q and kv, LayerNorm with a
bias for the index key. A program serves one of the three parts, so that a single token runs on three multiprocessors.
The order in which a row is summed depends on its width alone, so that a row's result is the same among any others.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor
from mlaprof.kernels.index_head import load_head, rotate_and_quantise
from mlaprof.kernels.rotation import ROPE, check_angles

INDEX_DIM = 128
ROWS_PER_PROGRAM = 2
NUM_WARPS = 2


@triton.jit
def rms_scaled(x, weight, WIDTH: tl.constexpr, eps):
    """x [rows, width] over its root mean square, times weight [1, width]; columns beyond WIDTH are zero. bf16."""
    mean_square = tl.sum(x * x, 1) * (1.0 / WIDTH)
    return (x * tl.rsqrt(mean_square + eps)[:, None] * weight).to(tl.bfloat16)


@triton.jit(do_not_specialize=["num_tokens"])  # one compiled kernel for every token count
def norm_rope_kernel(
    fused_ptr,  # [num_tokens, Q + KV + ROPE] bf16
    q_weight_ptr,  # [Q] bf16
    kv_weight_ptr,  # [KV] bf16
    index_k_ptr,  # [num_tokens, 128] fp32 or bf16
    k_weight_ptr,  # [128] bf16
    k_bias_ptr,  # [128] bf16
    cos_sin_ptr,  # [max_positions, 2, 32] fp32
    positions_ptr,  # [num_tokens] int64
    qr_ptr,  # [num_tokens, Q] bf16
    compressed_ptr,  # [num_tokens, KV] bf16
    k_pe_ptr,  # [num_tokens, ROPE] bf16
    latent_ptr,  # [num_tokens, KV + ROPE] bf16
    codes_ptr,  # [num_tokens, 128] e4m3
    scale_ptr,  # [num_tokens] fp32
    num_tokens,
    max_positions,
    eps,
    k_eps,
    fused_stride,
    index_stride,
    Q: tl.constexpr,
    Q_PADDED: tl.constexpr,
    KV: tl.constexpr,
    ROPE: tl.constexpr,
    NORMS: tl.constexpr,
    INDEX: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = rows < num_tokens
    if NORMS:
        part = tl.program_id(1)
        fused_rows = fused_ptr + rows[:, None] * fused_stride
        if part == 0:
            cols = tl.arange(0, Q_PADDED)[None, :]
            seen = is_row[:, None] & (cols < Q)
            x = tl.load(fused_rows + cols, mask=seen, other=0.0).to(tl.float32)
            weight = tl.load(q_weight_ptr + cols, mask=cols < Q, other=0.0).to(tl.float32)
            tl.store(qr_ptr + rows[:, None] * Q + cols, rms_scaled(x, weight, Q, eps), mask=seen)
        elif part == 1:
            cols = tl.arange(0, KV)[None, :]
            pe_cols = tl.arange(0, ROPE)[None, :]
            x = tl.load(fused_rows + Q + cols, mask=is_row[:, None], other=0.0).to(tl.float32)
            k_pe = tl.load(fused_rows + Q + KV + pe_cols, mask=is_row[:, None], other=0.0)
            weight = tl.load(kv_weight_ptr + cols).to(tl.float32)
            latent_rows = latent_ptr + rows[:, None] * (KV + ROPE)
            tl.store(k_pe_ptr + rows[:, None] * ROPE + pe_cols, k_pe, mask=is_row[:, None])
            tl.store(latent_rows + KV + pe_cols, k_pe, mask=is_row[:, None])
            normed = rms_scaled(x, weight, KV, eps)
            tl.store(compressed_ptr + rows[:, None] * KV + cols, normed, mask=is_row[:, None])
            tl.store(latent_rows + cols, normed, mask=is_row[:, None])
        elif INDEX:
            quantised_key(
                index_k_ptr + rows * index_stride, k_weight_ptr, k_bias_ptr, k_eps, positions_ptr + rows, cos_sin_ptr,
                max_positions, codes_ptr + rows * 128, scale_ptr + rows, is_row, INTERLEAVED, ROWS,
            )  # fmt: skip
    else:
        quantised_key(
            index_k_ptr + rows * index_stride, k_weight_ptr, k_bias_ptr, k_eps, positions_ptr + rows, cos_sin_ptr,
            max_positions, codes_ptr + rows * 128, scale_ptr + rows, is_row, INTERLEAVED, ROWS,
        )  # fmt: skip


@triton.jit
def quantised_key(
    rows_ptr, k_weight_ptr, k_bias_ptr, eps, positions_ptr, cos_sin_ptr, max_positions, codes_ptr, scale_ptr, is_row,
    INTERLEAVED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """LayerNorm, rotation and quantisation of ROWS index keys; all but the weights and the table by row."""
    positions = tl.load(positions_ptr, mask=is_row, other=0)
    a, b, c, d = load_head(rows_ptr, is_row, ROWS, INTERLEAVED)
    once = tl.zeros((1,), tl.int32)
    wa, wb, wc, wd = load_head(k_weight_ptr + once, once == 0, 1, INTERLEAVED)
    ba, bb, bc, bd = load_head(k_bias_ptr + once, once == 0, 1, INTERLEAVED)
    # The key is a bf16 tensor before its norm and after it.
    a, b, c, d = through_bf16(a), through_bf16(b), through_bf16(c), through_bf16(d)
    mean = tl.sum((a + b) + (c + d), 1)[:, None] * (1.0 / 128)
    a, b, c, d = a - mean, b - mean, c - mean, d - mean
    variance = tl.sum((a * a + b * b) + (c * c + d * d), 1)[:, None] * (1.0 / 128)
    rstd = tl.rsqrt(variance + eps)
    a, b = through_bf16(a * rstd * wa + ba), through_bf16(b * rstd * wb + bb)
    c, d = through_bf16(c * rstd * wc + bc), through_bf16(d * rstd * wd + bd)
    scale = rotate_and_quantise(a, b, c, d, codes_ptr, is_row, positions, cos_sin_ptr, max_positions, ROWS, INTERLEAVED)
    tl.store(scale_ptr, scale, mask=is_row)


@triton.jit
def through_bf16(x):
    return x.to(tl.bfloat16).to(tl.float32)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Both RMSNorms and the index key, from the two products that read the layer's input.

    fused      [num_tokens, q_lora_rank + kv_lora_rank + 64]  bf16          the fused A projection
    q_weight   [q_lora_rank]                                  bf16
    kv_weight  [kv_lora_rank]                                 bf16          a power of two
    eps                                                       of both RMSNorms
    index_k    [num_tokens, 128]                              fp32 or bf16  rounded to bf16 first; rows at any stride
    k_weight   [128]                                          bf16
    k_bias     [128]                                          bf16
    k_eps                                                     of the LayerNorm
    cos_sin    [max_positions, 2, 32]                         fp32
    positions  [num_tokens]                                   int64         outside the table: its nearest row
    Columns 0..63 of the index key turn in pairs (2i, 2i + 1) when interleaved, else (i, i + 32).

    Returns qr [num_tokens, q_lora_rank], compressed_kv [num_tokens, kv_lora_rank], k_pe [num_tokens, 64] not rotated
    and latent_cache [num_tokens, kv_lora_rank + 64], bf16; codes [num_tokens, 128] e4m3 and scales [num_tokens, 1]
    fp32 of the index key, as `act_quant` makes them. Raises ValueError on a wrong shape, dtype or device.
    """
    num_tokens, q, kv = _check_projection(fused, q_weight, kv_weight)
    max_positions = _check_key(num_tokens, index_k, k_weight, k_bias, cos_sin, positions, fused.device)
    projected = _empty_projection(fused, q, kv)
    codes, scale = _empty_key(num_tokens, fused.device)
    if num_tokens:
        norm_rope_kernel[(triton.cdiv(num_tokens, ROWS_PER_PROGRAM), 3)](
            fused, q_weight, kv_weight, index_k, k_weight, k_bias, cos_sin, positions, *projected, codes, scale,
            num_tokens, max_positions, eps, k_eps, fused.stride(0), index_k.stride(0),
            Q=q, Q_PADDED=triton.next_power_of_2(q), KV=kv, ROPE=ROPE, NORMS=True, INDEX=True, INTERLEAVED=interleaved,
            ROWS=ROWS_PER_PROGRAM, num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return *projected, codes, scale


def project_norms(
    fused: Tensor, q_weight: Tensor, kv_weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`norm_rope` without the index key: its first four results, from its first four arguments."""
    num_tokens, q, kv = _check_projection(fused, q_weight, kv_weight)
    projected = _empty_projection(fused, q, kv)
    if num_tokens:
        norm_rope_kernel[(triton.cdiv(num_tokens, ROWS_PER_PROGRAM), 2)](
            fused, q_weight, kv_weight, None, None, None, None, None, *projected, None, None,
            num_tokens, 0, eps, 0.0, fused.stride(0), 0,
            Q=q, Q_PADDED=triton.next_power_of_2(q), KV=kv, ROPE=ROPE, NORMS=True, INDEX=False, INTERLEAVED=False,
            ROWS=ROWS_PER_PROGRAM, num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return projected


def index_key(
    index_k: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    k_eps: float,
    cos_sin: Tensor,
    positions: Tensor,
    interleaved: bool,
) -> tuple[Tensor, Tensor]:
    """`norm_rope`'s index key alone: its last two results."""
    num_tokens = positions.shape[0]
    max_positions = _check_key(num_tokens, index_k, k_weight, k_bias, cos_sin, positions, index_k.device)
    codes, scale = _empty_key(num_tokens, index_k.device)
    if num_tokens:
        norm_rope_kernel[(triton.cdiv(num_tokens, ROWS_PER_PROGRAM), 1)](
            None, None, None, index_k, k_weight, k_bias, cos_sin, positions, None, None, None, None, codes, scale,
            num_tokens, max_positions, 0.0, k_eps, 0, index_k.stride(0),
            Q=0, Q_PADDED=0, KV=0, ROPE=ROPE, NORMS=False, INDEX=True, INTERLEAVED=interleaved,
            ROWS=ROWS_PER_PROGRAM, num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return codes, scale


def _check_projection(fused: Tensor, q_weight: Tensor, kv_weight: Tensor) -> tuple[int, int, int]:
    (q,) = check_tensor("q_weight", q_weight, shape=("q_lora_rank",), dtype=torch.bfloat16)
    (kv,) = check_tensor("kv_weight", kv_weight, shape=("kv_lora_rank",), dtype=torch.bfloat16, device=q_weight.device)
    if kv & (kv - 1):
        raise ValueError(f"kv_weight: expected a power of two of columns, got {kv}")
    (num_tokens,) = check_tensor(
        "fused", fused, shape=("num_tokens", q + kv + ROPE), dtype=torch.bfloat16, device=q_weight.device
    )
    return num_tokens, q, kv


def _check_key(
    num_tokens: int,
    index_k: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    device: torch.device,
) -> int:
    kinds = (torch.float32, torch.bfloat16)
    check_tensor("index_k", index_k, shape=(num_tokens, INDEX_DIM), dtype=kinds, device=device)
    check_tensor("k_weight", k_weight, shape=(INDEX_DIM,), dtype=torch.bfloat16, device=device)
    check_tensor("k_bias", k_bias, shape=(INDEX_DIM,), dtype=torch.bfloat16, device=device)
    return check_angles(num_tokens, cos_sin, positions, device)


def _empty_projection(fused: Tensor, q: int, kv: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = fused.shape[0]
    return (
        fused.new_empty((rows, q)),
        fused.new_empty((rows, kv)),
        fused.new_empty((rows, ROPE)),
        fused.new_empty((rows, kv + ROPE)),
    )


def _empty_key(num_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    codes = torch.empty(num_tokens, INDEX_DIM, dtype=torch.float8_e4m3fn, device=device)
    return codes, torch.empty(num_tokens, 1, dtype=torch.float32, device=device)
