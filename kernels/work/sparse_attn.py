"""Work of sparse_attn: scores over a whole row, values over its latent part, every gather of a row counted."""

from __future__ import annotations

from mlaprof.kernels.work import Work

BF16_BYTES = 2
FP8_ROW_BYTES = 656  # 512 codes, four fp32 scales, 64 bf16 rope values


def sparse_attn(
    num_tokens: int,
    num_heads: int,
    topk: int,
    *,
    kv_lora_rank: int = 512,
    qk_rope_head_dim: int = 64,
    row_bytes: int | None = None,
    rows_read: int | None = None,
) -> Work:
    """Work of one launch over num_tokens query tokens.

    row_bytes  of a cache row; a bf16 row where not given, FP8_ROW_BYTES for the packed one
    rows_read  gathers that count as bytes; every one where not given, as for prefill. For decode the peers count
               each distinct row once
    """
    width = kv_lora_rank + qk_rope_head_dim
    rows = num_tokens * topk if rows_read is None else rows_read
    queries_and_outputs = num_tokens * num_heads * (width + kv_lora_rank) * BF16_BYTES
    return Work(
        flops=2 * num_tokens * topk * num_heads * (width + kv_lora_rank),
        bytes=rows * (width * BF16_BYTES if row_bytes is None else row_bytes) + queries_and_outputs,
    )
