"""Work of the cache writes: bytes alone."""

from __future__ import annotations

from mlaprof.kernels.work import Work

ROPE, INDEX_DIM = 64, 128


def cache_write(num_tokens: int, *, kv_lora_rank: int = 512) -> Work:
    """The latent row and the index key with its scale."""
    return Work(0, append_latent(num_tokens, kv_lora_rank=kv_lora_rank).bytes + update_index_cache(num_tokens).bytes)


def append_latent(num_tokens: int, *, kv_lora_rank: int = 512) -> Work:
    """A row read and written as bf16, its slot and its position read, its angles gathered."""
    return Work(0, num_tokens * (2 * 2 * (kv_lora_rank + ROPE) + 8 + 8 + 4 * ROPE))


def update_index_cache(num_tokens: int) -> Work:
    """132 bytes read and written, two slots read."""
    return Work(0, num_tokens * (2 * (INDEX_DIM + 4) + 2 * 8))


def gather_index_cache(num_tokens: int) -> Work:
    """As many bytes as writing them."""
    return update_index_cache(num_tokens)
