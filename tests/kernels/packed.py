"""Rows of a packed cache for tests: 512 e4m3 codes, four fp32 scales, 64 bf16 values; 656 bytes."""

from __future__ import annotations

import torch
from torch import Tensor

PITCH = 704  # bytes from row to row of a pool whose rows are slices of wider ones


def pack_fp8(cache: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of 656 bytes, and what they stand for in bf16. Scales are any floats, not powers of two."""
    latent = cache[:, :512].float().unflatten(1, (4, 128))
    scales = latent.abs().amax(-1, keepdim=True).clamp(min=1e-4) / 448
    codes = (latent / scales).to(torch.float8_e4m3fn)
    parts = (codes.flatten(1), scales.flatten(1), cache[:, 512:].contiguous())
    packed = torch.cat([part.view(torch.uint8) for part in parts], 1)
    return packed, torch.cat([(codes.float() * scales).flatten(1).bfloat16(), cache[:, 512:]], 1)


def packed_pool(cache: Tensor) -> tuple[Tensor, Tensor]:
    """pack_fp8 of the rows without NaN, in a strided pool; whatever is not such a row is NaN in every format."""
    packed, meaning = pack_fp8(cache.nan_to_num())
    pool = torch.full((len(cache), PITCH), 0xFF, dtype=torch.uint8, device=cache.device)
    used = ~cache.isnan().any(1)
    pool[used, 16:672] = packed[used]
    return pool[:, 16:672], meaning.masked_fill(~used[:, None], torch.nan)
