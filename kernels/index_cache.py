"""Writing to and reading from the indexer's paged key cache, by byte offset.

A block of 64 tokens is 8,448 bytes: 64 x 128 e4m3 codes, then 64 fp32 scales. The token at `pos` of `block` has its
codes at block * 8448 + pos * 128 and its scale at block * 8448 + 8192 + pos * 4.
Source: the indexer K cache of TensorRT-LLM's DSA backend; DeepGEMM reads the same layout.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor

WRITES_PER_PROGRAM, WRITE_WARPS = 16, 4
READS_PER_PROGRAM, READ_WARPS = 64, 8  # of a long context: whole pages


@triton.jit
def store_keys(
    k_ptr, k_scale_ptr, slot_fp8_ptr, slot_scale_ptr, bytes_ptr, floats_ptr, rows, is_row, cache_bytes, k_stride,
    k_scale_stride, DIM: tl.constexpr,
):  # fmt: skip
    """Rows `rows` of the keys and scales into the cache; what lies outside of it is left out."""
    slot = tl.load(slot_fp8_ptr + rows, mask=is_row, other=-1)
    scale_slot = tl.load(slot_scale_ptr + rows, mask=is_row, other=-1)
    dims = tl.arange(0, DIM)[None, :]
    k = tl.load(k_ptr + rows[:, None] * k_stride + dims, mask=is_row[:, None], other=0)
    k_scale = tl.load(k_scale_ptr + rows * k_scale_stride, mask=is_row, other=0.0)
    # Both kinds of offset are multiples of what they point at; said so, a row is a few wide stores.
    inside = (slot >= 0) & (slot <= cache_bytes - DIM)
    tl.store(bytes_ptr + (slot // DIM * DIM)[:, None] + dims, k, mask=inside[:, None])
    inside = (scale_slot >= 0) & (scale_slot <= cache_bytes - 4)
    tl.store(floats_ptr + scale_slot // 4, k_scale, mask=inside)


@triton.jit(do_not_specialize=["n"])
def update_index_cache_kernel(
    k_ptr,  # [n, DIM] bytes
    k_scale_ptr,  # [n, 1] fp32
    slot_fp8_ptr,  # [n] int64
    slot_scale_ptr,  # [n] int64
    bytes_ptr,  # the cache as bytes
    floats_ptr,  # the cache as fp32
    n,
    cache_bytes,
    k_stride,
    k_scale_stride,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    store_keys(
        k_ptr, k_scale_ptr, slot_fp8_ptr, slot_scale_ptr, bytes_ptr, floats_ptr, rows, rows < n, cache_bytes, k_stride,
        k_scale_stride, DIM,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def gather_index_cache_kernel(
    k_ptr,  # [n, DIM] bytes
    k_scale_ptr,  # [n, 1] fp32
    slot_fp8_ptr,  # [n] int64
    slot_scale_ptr,  # [n] int64
    bytes_ptr,  # the cache as bytes
    floats_ptr,  # the cache as fp32
    n,
    cache_bytes,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)[None, :]
    is_row = rows < n

    slot = tl.load(slot_fp8_ptr + rows, mask=is_row, other=-1)
    scale_slot = tl.load(slot_scale_ptr + rows, mask=is_row, other=-1)
    inside = (slot >= 0) & (slot <= cache_bytes - DIM)
    k = tl.load(bytes_ptr + (slot // DIM * DIM)[:, None] + dims, mask=inside[:, None], other=0)
    inside = (scale_slot >= 0) & (scale_slot <= cache_bytes - 4)
    k_scale = tl.load(floats_ptr + scale_slot // 4, mask=inside, other=0.0)
    tl.store(k_ptr + rows[:, None] * DIM + dims, k, mask=is_row[:, None])
    tl.store(k_scale_ptr + rows, k_scale, mask=is_row)


def update_index_cache(k: Tensor, k_scale: Tensor, slot_fp8: Tensor, slot_scale: Tensor, cache: Tensor) -> None:
    """Write n keys and their scales at byte offsets of the indexer's cache.

    k           [n, 128]               e4m3
    k_scale     [n, 1]                 fp32
    slot_fp8    [n]                    int64  block * 8448 + pos * 128, distinct
    slot_scale  [n]                    int64  block * 8448 + 8192 + pos * 4, distinct
    cache       [num_blocks, 64 * 132] uint8

    A row whose offset lies outside the cache is not written: the device cannot complain without a wait.
    Raises ValueError on a wrong shape, dtype or device.
    """
    (n,) = check_tensor("k", k, shape=("n", 128), dtype=torch.float8_e4m3fn)
    check_tensor("k_scale", k_scale, shape=(n, 1), dtype=torch.float32, device=k.device)
    check_cache(n, slot_fp8, slot_scale, cache, k.device)
    if n == 0:
        return
    update_index_cache_kernel[(triton.cdiv(n, WRITES_PER_PROGRAM),)](
        k.view(torch.uint8),
        k_scale,
        slot_fp8,
        slot_scale,
        cache,
        cache.view(torch.float32),
        n,
        cache.numel(),
        k.stride(0),
        k_scale.stride(0),
        DIM=128,
        ROWS=WRITES_PER_PROGRAM,
        num_warps=WRITE_WARPS,
    )


def gather_index_cache(cache: Tensor, slot_fp8: Tensor, slot_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Read n keys [n, 128] e4m3 and scales [n, 1] fp32 from byte offsets of the indexer's cache.

    Arguments as in update_index_cache; offsets may repeat, and a row outside the cache reads as zeros.
    Raises ValueError on a wrong shape, dtype or device.
    """
    n = slot_fp8.shape[0]
    check_cache(n, slot_fp8, slot_scale, cache, cache.device)
    k = torch.empty(n, 128, dtype=torch.float8_e4m3fn, device=cache.device)
    k_scale = torch.empty(n, 1, dtype=torch.float32, device=cache.device)
    if n == 0:
        return k, k_scale
    gather_index_cache_kernel[(triton.cdiv(n, READS_PER_PROGRAM),)](
        k.view(torch.uint8),
        k_scale,
        slot_fp8,
        slot_scale,
        cache,
        cache.view(torch.float32),
        n,
        cache.numel(),
        DIM=128,
        ROWS=READS_PER_PROGRAM,
        num_warps=READ_WARPS,
    )
    return k, k_scale


def check_cache(n: int, slot_fp8: Tensor, slot_scale: Tensor, cache: Tensor, device: torch.device) -> None:
    """What every access to the cache checks of its n pairs of offsets and of the cache."""
    check_tensor("slot_fp8", slot_fp8, shape=(n,), dtype=torch.int64, device=device)
    check_tensor("slot_scale", slot_scale, shape=(n,), dtype=torch.int64, device=device)
    check_tensor("cache", cache, shape=("num_blocks", 64 * 132), dtype=torch.uint8, device=device, contiguous="all")
