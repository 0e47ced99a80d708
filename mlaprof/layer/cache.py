"""The two paged caches and the byte formulas of their slots.

Latent cache: [num_blocks, num_layers, 64, latent_dim] bf16, interleaved by layer inside each block and viewed flat
as rows. Indexer K cache: one pool a layer, [num_blocks, 64 * 132] uint8; inside a block first 64 x 128 e4m3 codes,
then 64 fp32 scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlaprof.shapes import INDEX_HEAD_DIM, INDEX_ROW_BYTES, TOKENS_PER_BLOCK, LayerShape

INDEX_BLOCK_BYTES = TOKENS_PER_BLOCK * INDEX_ROW_BYTES  # 8,448
INDEX_SCALE_OFFSET = TOKENS_PER_BLOCK * INDEX_HEAD_DIM  # 8,192


@dataclass(frozen=True)
class Caches:
    """Both pools of a stack of layers, their last page scratch. index_k is empty for plain MLA."""

    latent: Tensor  # [num_blocks + 1, num_layers, 64, latent_dim] bf16
    index_k: tuple[Tensor, ...]  # num_layers x [num_blocks + 1, 64 * 132] uint8

    @property
    def num_blocks(self) -> int:
        """Pages that requests may own."""
        return self.latent.shape[0] - 1

    @property
    def scratch_block(self) -> int:
        """The page that no request owns: captured code writes its padding rows there."""
        return self.num_blocks

    @property
    def num_layers(self) -> int:
        return self.latent.shape[1]

    @property
    def latent_rows(self) -> Tensor:
        """[(num_blocks + 1) * num_layers * 64, latent_dim]: the flat view that attention gathers from."""
        return self.latent.view(-1, self.latent.shape[-1])

    @property
    def stride_factor(self) -> int:
        """Flat rows from one block to the next."""
        return self.num_layers * TOKENS_PER_BLOCK


def allocate(shape: LayerShape, num_layers: int, num_blocks: int, device: torch.device) -> Caches:
    """Pools of num_blocks pages of 64 tokens and one of scratch; contents undefined."""
    latent = torch.empty(
        (num_blocks + 1, num_layers, TOKENS_PER_BLOCK, shape.latent_dim), dtype=torch.bfloat16, device=device
    )
    index_k = tuple(
        torch.empty((num_blocks + 1, INDEX_BLOCK_BYTES), dtype=torch.uint8, device=device)
        for _ in range(num_layers if shape.is_dsa else 0)
    )
    return Caches(latent, index_k)


def checked_blocks(block_indices: Tensor, max_blocks: int) -> Tensor:
    """Block numbers inside a request, held within [0, max_blocks).

    On the CPU, where prepare() computes the mapping, a number outside is an AssertionError that names it. On CUDA it
    is clamped without a look: stale mappings occur in replay, and reading the tensor back would stall the host for
    12 to 15 ms (TensorRT-LLM #12445).
    """
    if block_indices.device.type != "cpu":
        return block_indices.clamp(0, max_blocks - 1)
    if block_indices.numel():
        low, high = int(block_indices.min()), int(block_indices.max())
        worst = high if high >= max_blocks else low
        assert low >= 0 and high < max_blocks, f"block index: expected 0..{max_blocks - 1}, got {worst}"
    return block_indices


def slots(block_table: Tensor, req_idx: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """(block_id, position in block), both int64, of absolute positions.

    block_table  [num_requests, max_blocks] int32
    req_idx      [n] int32 or int64     request of each position
    positions    [n] int64              absolute token position
    """
    inside = checked_blocks(positions // TOKENS_PER_BLOCK, block_table.shape[1])
    return block_table[req_idx.long(), inside].long(), positions % TOKENS_PER_BLOCK


def index_slot_bytes(block_id: Tensor, pos_in_block: Tensor) -> tuple[Tensor, Tensor]:
    """Byte offsets (fp8 codes, fp32 scale) in one layer's indexer pool; int64."""
    base = block_id * INDEX_BLOCK_BYTES
    return base + pos_in_block * INDEX_HEAD_DIM, base + INDEX_SCALE_OFFSET + pos_in_block * 4


def latent_slot_rows(block_id: Tensor, pos_in_block: Tensor, stride_factor: int) -> Tensor:
    """Flat latent rows of layer 0; layer l adds l * 64. int64."""
    return block_id * stride_factor + pos_in_block
