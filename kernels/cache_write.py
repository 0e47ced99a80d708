"""Writing one step's tokens into the paged caches: the latent row with its rotated key, the index key with its scale.

Both writes are one launch where both are due. The latent cache is written by flat row, the index cache by byte offset
(`index_cache`). Source: the append kernels of TensorRT-LLM's MLA and DSA backends.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor
from mlaprof.kernels.index_cache import check_cache, store_keys
from mlaprof.kernels.rotation import ROPE, check_angles, join_pairs, load_angles, split_pairs, turn

ROWS_PER_PROGRAM = 2
NUM_WARPS = 4


@triton.jit(do_not_specialize=["num_tokens", "layer_offset"])  # one compiled kernel for every token count and layer
def cache_write_kernel(
    compressed_ptr,  # [num_tokens, KV] bf16
    k_pe_ptr,  # [num_tokens, ROPE] bf16
    cos_sin_ptr,  # [max_positions, 2, ROPE / 2] fp32
    positions_ptr,  # [num_tokens] int64
    slots_ptr,  # [num_tokens] int64
    latent_ptr,  # [num_rows, KV + ROPE] bf16
    k_ptr,  # [num_tokens, 128] bytes
    k_scale_ptr,  # [num_tokens, 1] fp32
    slot_fp8_ptr,  # [num_tokens] int64
    slot_scale_ptr,  # [num_tokens] int64
    bytes_ptr,  # the index cache as bytes
    floats_ptr,  # the index cache as fp32
    num_tokens,
    max_positions,
    layer_offset,
    num_rows,
    cache_bytes,
    compressed_stride,
    k_pe_stride,
    k_stride,
    k_scale_stride,
    KV: tl.constexpr,
    ROPE: tl.constexpr,
    INDEX: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = rows < num_tokens
    cols = tl.arange(0, KV)[None, :]
    pe_cols = tl.arange(0, ROPE)[None, :]

    slot = tl.load(slots_ptr + rows, mask=is_row, other=-1)
    positions = tl.load(positions_ptr + rows, mask=is_row, other=0)
    compressed = tl.load(compressed_ptr + rows[:, None] * compressed_stride + cols, mask=is_row[:, None], other=0.0)
    k_pe = tl.load(k_pe_ptr + rows[:, None] * k_pe_stride + pe_cols, mask=is_row[:, None], other=0.0)
    inside = ((slot >= 0) & (slot < num_rows - layer_offset))[:, None]
    slot_rows = latent_ptr + (slot + layer_offset)[:, None] * (KV + ROPE)
    tl.store(slot_rows + cols, compressed, mask=inside)
    cos, sin = load_angles(cos_sin_ptr, positions, max_positions, ROPE // 2)
    even, odd = split_pairs(k_pe, ROWS, ROPE // 2)
    even, odd = turn(even, odd, cos, sin)
    tl.store(slot_rows + KV + pe_cols, join_pairs(even, odd, ROWS, ROPE // 2), mask=inside)
    if INDEX:
        store_keys(
            k_ptr, k_scale_ptr, slot_fp8_ptr, slot_scale_ptr, bytes_ptr, floats_ptr, rows, is_row, cache_bytes,
            k_stride, k_scale_stride, 128,
        )  # fmt: skip


def append_latent(
    compressed_kv: Tensor,
    k_pe: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    layer_offset: int,
    latent_rows: Tensor,
) -> None:
    """Write the latent rows alone: the first seven arguments of `cache_write`."""
    num_tokens, kv, max_positions = _check_latent(compressed_kv, k_pe, cos_sin, positions, slots, latent_rows)
    if num_tokens == 0:
        return
    cache_write_kernel[(triton.cdiv(num_tokens, ROWS_PER_PROGRAM),)](
        compressed_kv, k_pe, cos_sin, positions, slots, latent_rows, None, None, None, None, None, None,
        num_tokens, max_positions, layer_offset, latent_rows.shape[0], 0,
        compressed_kv.stride(0), k_pe.stride(0), 0, 0,
        KV=kv, ROPE=ROPE, INDEX=False, ROWS=ROWS_PER_PROGRAM, num_warps=NUM_WARPS, enable_fp_fusion=False,
    )  # fmt: skip


def cache_write(
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
    """Write one step's tokens into the latent cache and the indexer's key cache.

    compressed_kv  [num_tokens, kv_lora_rank]       bf16   normed; a power of two of columns
    k_pe           [num_tokens, 64]                 bf16   not rotated; turns in pairs (2i, 2i + 1) on its way
    cos_sin        [max_positions, 2, 32]           fp32
    positions      [num_tokens]                     int64  outside the table: its nearest row
    slots          [num_tokens]                     int64  rows of latent_rows less layer_offset, distinct
    layer_offset                                           rows from the first layer's part of a block to this layer's
    latent_rows    [num_rows, kv_lora_rank + 64]    bf16
    k, k_scale, slot_fp8, slot_scale, index_cache          as in `update_index_cache`

    What lies outside a cache is not written: the device cannot complain without a wait.
    Raises ValueError on a wrong shape, dtype or device.
    """
    num_tokens, kv, max_positions = _check_latent(compressed_kv, k_pe, cos_sin, positions, slots, latent_rows)
    device = compressed_kv.device
    check_tensor("k", k, shape=(num_tokens, 128), dtype=torch.float8_e4m3fn, device=device)
    check_tensor("k_scale", k_scale, shape=(num_tokens, 1), dtype=torch.float32, device=device)
    check_cache(num_tokens, slot_fp8, slot_scale, index_cache, device)
    if num_tokens == 0:
        return
    cache_write_kernel[(triton.cdiv(num_tokens, ROWS_PER_PROGRAM),)](
        compressed_kv, k_pe, cos_sin, positions, slots, latent_rows,
        k.view(torch.uint8), k_scale, slot_fp8, slot_scale, index_cache, index_cache.view(torch.float32),
        num_tokens, max_positions, layer_offset, latent_rows.shape[0], index_cache.numel(),
        compressed_kv.stride(0), k_pe.stride(0), k.stride(0), k_scale.stride(0),
        KV=kv, ROPE=ROPE, INDEX=True, ROWS=ROWS_PER_PROGRAM, num_warps=NUM_WARPS, enable_fp_fusion=False,
    )  # fmt: skip


def _check_latent(
    compressed_kv: Tensor, k_pe: Tensor, cos_sin: Tensor, positions: Tensor, slots: Tensor, latent_rows: Tensor
) -> tuple[int, int, int]:
    num_tokens, kv = check_tensor(
        "compressed_kv", compressed_kv, shape=("num_tokens", "kv_lora_rank"), dtype=torch.bfloat16
    )
    device = compressed_kv.device
    if kv & (kv - 1):
        raise ValueError(f"compressed_kv: expected a power of two of columns, got {kv}")
    check_tensor("k_pe", k_pe, shape=(num_tokens, ROPE), dtype=torch.bfloat16, device=device)
    max_positions = check_angles(num_tokens, cos_sin, positions, device)
    check_tensor("slots", slots, shape=(num_tokens,), dtype=torch.int64, device=device)
    check_tensor(
        "latent_rows",
        latent_rows,
        shape=("num_rows", kv + ROPE),
        dtype=torch.bfloat16,
        device=device,
        contiguous="all",
    )
    return num_tokens, kv, max_positions
