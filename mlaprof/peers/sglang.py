"""SGLang's kernel package (sgl_kernel): top-k, quantisation, products, FlashMLA, and FlashAttention 3 for decode."""

from __future__ import annotations

import torch
from torch import Tensor

from mlaprof.peers import flash_mla
from mlaprof.peers.package import Package, Prepared, dense_columns, need, need_cuda, need_hopper

PACKAGE = Package(
    "sglang",
    modules=("sgl_kernel",),
    distributions=("sglang-kernel", "sgl-kernel"),
    remedy="pip install sglang-kernel",
)
TOPK = 2048  # the only k its fast_topk is built for
GROUP = 128
FP8_MAX = 448.0
VALUE_DIM = 512
GEMM_MULTIPLE = 128


def topk(logits: Tensor, ends: Tensor, k: int) -> Prepared:
    """fast_topk: positions in the row, -1 behind the last."""
    select = PACKAGE.function("fast_topk_v2")
    need_cuda(PACKAGE.name, logits.device)
    need(k == TOPK, f"sglang's fast_topk selects {TOPK}, not {k}", f"use k {TOPK}")
    return lambda: select(logits, ends, k)


def sparse_attn(
    q: Tensor, cache: Tensor, indices: Tensor, scale: float, *, next_n: int = 1, is_decode: bool = False
) -> Prepared:
    """What its backends run on Hopper: FlashMLA, but FlashAttention 3 with pages of one row to decode a bf16 cache."""
    if cache.dtype == torch.uint8 or not is_decode:
        return flash_mla.sparse_attn(q, cache, indices, scale, next_n=next_n, package=flash_mla.SGL_KERNEL)
    forward = PACKAGE.function("flash_attn_with_kvcache", submodule="flash_attn")
    need_hopper(PACKAGE.name, q.device)
    num_tokens = q.shape[0]
    latent, rope = q[..., :VALUE_DIM].contiguous(), q[..., VALUE_DIM:].contiguous()
    values = cache[:, :VALUE_DIM].unflatten(1, (1, 1, VALUE_DIM))
    keys = cache[:, VALUE_DIM:].unflatten(1, (1, 1, -1))
    # Its page table has no empty slots: a row's own ones come first, and its length ends them.
    filled = (indices >= 0) & (indices < cache.shape[0])
    order = torch.argsort((~filled).int(), dim=1, stable=True)
    table = torch.where(filled, indices, 0).gather(1, order).contiguous()
    lengths = filled.sum(1, dtype=torch.int32)
    starts = torch.arange(num_tokens + 1, dtype=torch.int32, device=q.device)

    def run() -> Tensor:
        out: Tensor = forward(
            q=rope,
            k_cache=keys,
            v_cache=values,
            qv=latent,
            page_table=table,
            cache_seqlens=lengths,
            cu_seqlens_q=starts,
            max_seqlen_q=1,
            softmax_scale=scale,
            causal=False,
        )
        return out

    return run


def block_gemm(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Prepared:
    """fp8_blockwise_scaled_mm (CUTLASS), which wants n in whole blocks of 128."""
    gemm = PACKAGE.function("fp8_blockwise_scaled_mm")
    need_cuda(PACKAGE.name, a.device)
    n = b.shape[0]
    need(n % GEMM_MULTIPLE == 0, f"sglang's blockwise product takes n in blocks of {GEMM_MULTIPLE}, not {n}")
    columns, row_scales, column_scales = b.t(), dense_columns(a_scale), b_scale.t()
    return lambda: gemm(a, columns, row_scales, column_scales, torch.bfloat16)


def group_quant(x: Tensor) -> Prepared:
    """sgl_per_token_group_quant_8bit with the scales in columns."""
    quantise = PACKAGE.function("sgl_per_token_group_quant_8bit")
    need_cuda(PACKAGE.name, x.device)
    m, k = x.shape
    codes = torch.empty(m, k, dtype=torch.float8_e4m3fn, device=x.device)
    # The layout that the product reads: columns of scales, padded to 16 bytes.
    scale = torch.empty(k // GROUP, -(-m // 4) * 4, dtype=torch.float32, device=x.device).t()[:m]

    def run() -> tuple[Tensor, Tensor]:
        quantise(x, codes, scale, GROUP, 1e-10, -FP8_MAX, FP8_MAX)
        return codes, scale

    return run


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Prepared:
    """rmsnorm into a given output."""
    norm = PACKAGE.function("rmsnorm")
    need_cuda(PACKAGE.name, x.device)
    out = torch.empty_like(x)

    def run() -> Tensor:
        norm(x, weight, eps, out)
        return out

    return run
