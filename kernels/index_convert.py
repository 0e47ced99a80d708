"""From request-local token positions to rows of a latent pool that interleaves the layers inside each block.

row = block_table[request, position // 64] * stride_factor + position % 64 + layer_offset, in int64, where stride_factor
is the rows of one block over all layers of the pool. Source: the index conversion of TensorRT-LLM's DSA backend.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor

MAX_SLOTS_PER_PROGRAM = 2048  # all of a token's: its request is looked up once
NUM_WARPS = 8


@triton.jit
def convert_indices_kernel(
    topk_ptr,  # [num_tokens, topk] int32
    block_table_ptr,  # [num_requests, max_blocks] int32
    req_idx_ptr,  # [num_tokens] int32
    rows_ptr,  # [num_tokens, topk] int32
    topk,
    num_requests,
    max_blocks,
    stride_factor,
    layer_offset,
    topk_stride,
    table_stride,
    PAGE: tl.constexpr,
    SLOTS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slots = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    is_slot = slots < topk

    request = tl.load(req_idx_ptr + token).to(tl.int64)
    position = tl.load(topk_ptr + token * topk_stride + slots, mask=is_slot, other=-1)
    page = position.to(tl.uint32, bitcast=True) // PAGE  # a negative position lands beyond every table
    mapped = (page < max_blocks) & (request >= 0) & (request < num_requests)
    block = tl.load(block_table_ptr + request * table_stride + page, mask=mapped, other=-1).to(tl.int64)
    row = block * stride_factor + (position & (PAGE - 1)) + layer_offset
    mapped = mapped & (block >= 0) & (row <= 0x7FFFFFFF)
    tl.store(rows_ptr + token * topk + slots, tl.where(mapped, row, -1).to(tl.int32), mask=is_slot)


def convert_indices(
    topk: Tensor, block_table: Tensor, req_idx: Tensor, stride_factor: int, layer_offset: int
) -> Tensor:
    """Turn request-local token positions into rows of the pool [num_tokens, topk] int32; -1 where there is none.

    topk         [num_tokens, topk]           int32  request-local positions, -1 is empty
    block_table  [num_requests, max_blocks]   int32  negative where no block is mapped
    req_idx      [num_tokens]                 int32  the request of each token

    A position beyond the table, an unmapped block, an unknown request and a row beyond int32 all give -1.
    Raises ValueError on a wrong shape, dtype or device.
    """
    num_tokens, width = check_tensor("topk", topk, shape=("num_tokens", "topk"), dtype=torch.int32)
    num_requests, max_blocks = check_tensor(
        "block_table", block_table, shape=("num_requests", "max_blocks"), dtype=torch.int32, device=topk.device
    )
    check_tensor("req_idx", req_idx, shape=(num_tokens,), dtype=torch.int32, device=topk.device)
    rows = torch.empty(num_tokens, width, dtype=torch.int32, device=topk.device)
    if rows.numel() == 0:
        return rows
    slots = min(MAX_SLOTS_PER_PROGRAM, triton.next_power_of_2(width))
    convert_indices_kernel[(num_tokens, triton.cdiv(width, slots))](
        topk,
        block_table,
        req_idx,
        rows,
        width,
        num_requests,
        max_blocks,
        stride_factor,
        layer_offset,
        topk.stride(0),
        block_table.stride(0),
        PAGE=64,
        SLOTS=slots,
        num_warps=NUM_WARPS,
    )
    return rows
