"""Work of norm_rope: nothing multiplied but row by row, so bytes alone."""

from __future__ import annotations

from mlaprof.kernels.work import Work

ROPE, INDEX_DIM = 64, 128
ANGLES = 8 + 4 * ROPE  # a position, and the row of cosines and sines that it gathers


def norm_rope(num_tokens: int, *, q_lora_rank: int = 1536, kv_lora_rank: int = 512) -> Work:
    """Reads the fused projection (bf16) and the index key (fp32); writes both norms, k_pe, the two side by side, and
    the key's codes and scale."""
    norms, key = project_norms(num_tokens, q_lora_rank=q_lora_rank, kv_lora_rank=kv_lora_rank), index_key(num_tokens)
    return Work(0, norms.bytes + key.bytes)


def project_norms(num_tokens: int, *, q_lora_rank: int = 1536, kv_lora_rank: int = 512) -> Work:
    """norm_rope without the index key."""
    read = 2 * (q_lora_rank + kv_lora_rank + ROPE)
    written = read + 2 * (kv_lora_rank + ROPE)
    return Work(0, num_tokens * (read + written) + 2 * (q_lora_rank + kv_lora_rank))


def index_key(num_tokens: int) -> Work:
    """The index key alone."""
    return Work(0, num_tokens * (4 * INDEX_DIM + ANGLES + INDEX_DIM + 4) + 2 * 2 * INDEX_DIM)
