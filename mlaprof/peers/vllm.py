"""vLLM's compiled kernels, called by their operators: FlashMLA, top-k, products, norms, the indexer's cache."""

from __future__ import annotations

import torch
from torch import Tensor

from mlaprof.peers import deep_gemm, flash_mla
from mlaprof.peers.package import Package, Prepared, dense_columns, need, need_cuda

PACKAGE = Package("vllm", modules=("vllm",), distributions=("vllm",), remedy="pip install vllm")
OPERATORS = "_custom_ops"  # importing it registers the namespace _C
COOPERATIVE_ROWS = 32
PERSISTENT_K = (512, 1024, 2048)
WORKSPACE_BYTES = 1 << 20
GROUP = 128
FP8_MAX = 448.0
VALUE_DIM = 512


def index_logits(q: Tensor, k: Tensor, k_scale: Tensor, weights: Tensor, ks: Tensor, ke: Tensor) -> Prepared:
    """Its own copy of DeepGEMM."""
    return deep_gemm.index_logits(q, k, k_scale, weights, ks, ke, package=deep_gemm.VENDORED)


def paged_index_logits(
    q: Tensor, cache: Tensor, weights: Tensor, kv_lens: Tensor, block_table: Tensor, max_len: int
) -> Prepared:
    """Its own copy of DeepGEMM."""
    return deep_gemm.paged_index_logits(q, cache, weights, kv_lens, block_table, max_len, package=deep_gemm.VENDORED)


def topk(logits: Tensor, ends: Tensor, k: int) -> Prepared:
    """What its indexer would choose: cooperative for few rows, persistent for the usual k, else one block a row."""
    num_rows, width = logits.shape
    # The cooperative one loads rows by TMA, so that they must begin at 16 bytes.
    is_cooperative = num_rows <= COOPERATIVE_ROWS and logits.stride(0) % 4 == 0
    if k not in PERSISTENT_K:
        name = "top_k_per_row_decode"
    else:
        name = "cooperative_topk" if is_cooperative else "persistent_topk"
    select = PACKAGE.operator("_C", name, registered_by=OPERATORS)
    need_cuda(PACKAGE.name, logits.device)
    out = torch.empty(num_rows, k, dtype=torch.int32, device=logits.device)
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=logits.device)
    operands: tuple[object, ...] = (logits, ends, out, workspace, k, width)
    if k not in PERSISTENT_K:
        operands = (logits, 1, ends, out, num_rows, logits.stride(0), logits.stride(1), k)

    def run() -> Tensor:
        select(*operands)
        return out

    return run


def sparse_attn(q: Tensor, cache: Tensor, indices: Tensor, scale: float, *, next_n: int = 1) -> Prepared:
    """Its build of FlashMLA, by the operators."""
    is_fp8 = cache.dtype == torch.uint8
    name = "sparse_decode_fwd" if is_fp8 else "sparse_prefill_fwd"
    forward = PACKAGE.operator("_flashmla_C", name, registered_by="_flashmla_C")
    flash_mla.check_shape(PACKAGE, q, indices)
    heads, padded = q.shape[1], flash_mla.pad_heads(q)
    num_tokens, topk = indices.shape
    if not is_fp8:
        rows, picked = cache[:, None], indices[:, None]
        return lambda: forward(padded, rows, picked, scale, VALUE_DIM, None, None, None)[0][:, :heads]
    batch = num_tokens // next_n
    pages = cache.view(-1, flash_mla.TOKENS_PER_BLOCK, 1, flash_mla.FP8_ROW_BYTES)
    query, picked = padded.view(batch, next_n, *padded.shape[1:]), indices.view(batch, next_n, topk)
    before, behind = (query, pages, picked, None, None), (None, None, None, VALUE_DIM, scale, None)
    # Called without a schedule it makes one and returns it.
    schedule, splits = forward(*before, None, None, *behind)[2:4]

    def run() -> Tensor:
        out: Tensor = forward(*before, schedule, splits, *behind)[0]
        return out.view(num_tokens, -1, VALUE_DIM)[:, :heads]

    return run


def block_gemm(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Prepared:
    """cutlass_scaled_mm with block scales."""
    gemm = PACKAGE.operator("_C", "cutlass_scaled_mm", registered_by=OPERATORS)
    need_cuda(PACKAGE.name, a.device)
    out = torch.empty(a.shape[0], b.shape[0], dtype=torch.bfloat16, device=a.device)
    columns, row_scales, column_scales = b.t(), dense_columns(a_scale), b_scale.t()

    def run() -> Tensor:
        gemm(out, a, columns, row_scales, column_scales, None)
        return out

    return run


def group_quant(x: Tensor) -> Prepared:
    """per_token_group_fp8_quant with the scales in columns, aligned for TMA."""
    quantise = PACKAGE.operator("_C", "per_token_group_fp8_quant", registered_by=OPERATORS)
    need_cuda(PACKAGE.name, x.device)
    m, k = x.shape
    codes = torch.empty(m, k, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(k // GROUP, -(-m // 4) * 4, dtype=torch.float32, device=x.device).t()[:m]

    def run() -> tuple[Tensor, Tensor]:
        quantise(x, codes, scale, GROUP, 1e-10, -FP8_MAX, FP8_MAX, False, True, True)
        return codes, scale

    return run


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Prepared:
    """rms_norm into a given output."""
    norm = PACKAGE.operator("_C", "rms_norm", registered_by=OPERATORS)
    need_cuda(PACKAGE.name, x.device)
    out = torch.empty_like(x)

    def run() -> Tensor:
        norm(out, x, weight, eps)
        return out

    return run


def rmsnorm_quant(x: Tensor, weight: Tensor, eps: float) -> Prepared:
    """rms_norm_per_block_quant in groups of 128."""
    norm = PACKAGE.operator("_C", "rms_norm_per_block_quant", registered_by=OPERATORS)
    need_cuda(PACKAGE.name, x.device)
    m, k = x.shape
    codes = torch.empty(m, k, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(k // GROUP, m, dtype=torch.float32, device=x.device).t()

    def run() -> tuple[Tensor, Tensor]:
        norm(codes, x, weight, scale, eps, None, None, GROUP, True)
        return codes, scale

    return run


def gather_index_cache(cache: Tensor, block_table: Tensor, num_tokens: int) -> Prepared:
    """cp_gather_indexer_k_quant_cache of one request: its keys and scales out of the pages, in order.

    block_table  [1, blocks] int32  the request's pages
    """
    gather = PACKAGE.operator("_C_cache_ops", "cp_gather_indexer_k_quant_cache", registered_by=OPERATORS)
    need_cuda(PACKAGE.name, cache.device)
    need(block_table.shape[0] == 1, "one request is gathered", "use one")
    pages = cache.view(cache.shape[0], flash_mla.TOKENS_PER_BLOCK, -1)
    keys = torch.empty(num_tokens, GROUP, dtype=torch.uint8, device=cache.device)
    scale = torch.empty(num_tokens, 4, dtype=torch.uint8, device=cache.device)
    bounds = torch.tensor([0, num_tokens], dtype=torch.int32, device=cache.device)

    def run() -> tuple[Tensor, Tensor]:
        gather(pages, keys, scale, block_table, bounds)
        return keys.view(torch.float8_e4m3fn), scale.view(torch.float32)

    return run
