"""Work of the two products that are one small matrix a head."""

from __future__ import annotations

from mlaprof.kernels.work import Work

ROPE = 64


def absorb(
    num_tokens: int, *, num_heads: int = 128, qk_nope_head_dim: int = 128, kv_lora_rank: int = 512, rope: int = ROPE
) -> Work:
    """The product, and the rotary part read and written beside it; rope 0 counts the product alone."""
    product = head_product(num_tokens, num_heads, qk_nope_head_dim, kv_lora_rank)
    angles = 8 + 4 * rope if rope else 0
    return Work(product.flops, product.bytes + num_tokens * (num_heads * 2 * 2 * rope + angles))


def up_project(num_tokens: int, *, num_heads: int = 128, kv_lora_rank: int = 512, v_head_dim: int = 128) -> Work:
    """From the latent space to a head's values."""
    return head_product(num_tokens, num_heads, kv_lora_rank, v_head_dim)


def head_product(num_tokens: int, num_heads: int, k: int, n: int) -> Work:
    """num_heads products of [num_tokens, k] with [k, n], all bf16."""
    return Work(2 * num_tokens * num_heads * k * n, 2 * num_heads * (num_tokens * (k + n) + k * n))
