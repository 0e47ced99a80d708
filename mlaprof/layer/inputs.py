"""Tensors of a batch: hidden states, positions, and caches filled as an earlier part of the sequence would have.

Normally distributed, seeded, never zeros; every page of the pool is filled, so a kernel that reads a wrong page reads
plausible numbers and only the oracle can tell.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from mlaprof.layer.batch import Batch
from mlaprof.layer.cache import INDEX_SCALE_OFFSET, Caches
from mlaprof.layer.streams import stream

FILL_BLOCKS = 4096  # pages drawn at a time, to bound the fp32 intermediate


def hidden_states(num_tokens: int, hidden_size: int, *, seed: int, device: torch.device) -> Tensor:
    """[num_tokens, hidden_size] bf16; the first n rows are the same for every num_tokens >= n."""
    generator = stream("hidden states", seed)
    rows = [torch.randn(hidden_size, generator=generator) for _ in range(num_tokens)]
    return torch.stack(rows).to(torch.bfloat16).to(device)


def position_ids(batch: Batch, device: torch.device) -> Tensor:
    """[num_tokens] int64, contexts first, then generations."""
    spans = [torch.arange(request.cached_tokens, request.kv_len) for request in batch.requests]
    return torch.cat(spans).to(device)


def fill_caches(caches: Caches, *, seed: int) -> None:
    """Random latent rows ~ N(0, 1), and random indexer keys quantised as the layer would: e4m3 codes of rows whose
    power-of-two scale stands in the block's tail."""
    device = caches.latent.device
    generator = stream("caches", seed, device)
    scratch = caches.scratch_block  # by itself and last, so that it does not change what the others hold
    for start, stop in pairwise([*range(0, scratch, FILL_BLOCKS), scratch, scratch + 1]):
        blocks = caches.latent[start:stop]
        blocks.copy_(torch.randn(blocks.shape, generator=generator, device=device))
        for pool in caches.index_k:
            part = pool[start:stop]
            codes = torch.randn((part.shape[0], INDEX_SCALE_OFFSET), generator=generator, device=device) * 128
            part[:, :INDEX_SCALE_OFFSET].copy_(codes.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8))
            scales = torch.full((part.shape[0], (part.shape[1] - INDEX_SCALE_OFFSET) // 4), 2.0**-7, device=device)
            part[:, INDEX_SCALE_OFFSET:].copy_(scales.view(torch.uint8))
