"""Cache rows that a batch will write: kept aside, put back, or spoilt so that a step that fails to write them shows.

What a step writes twice it must write the same, so a comparison of two runs needs the caches as they were; and a graph
that writes no cache, or writes it elsewhere, passes as long as the right rows are there from an earlier run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlaprof.layer.cache import Caches
from mlaprof.layer.metadata import AttnMetadata
from mlaprof.shapes import INDEX_HEAD_DIM, TOKENS_PER_BLOCK

NAN_CODE = 0x7F  # NaN in e4m3


@dataclass(frozen=True)
class SavedRows:
    """Rows of both caches, of every layer, as they were; independent of what the metadata describes later."""

    places: _Places
    latent: Tensor  # [layers * n, latent_dim] bf16
    codes: tuple[Tensor, ...]  # a layer: [n, 128] uint8
    scales: tuple[Tensor, ...]  # a layer: [n] fp32

    def restore(self) -> None:
        """Put them back."""
        places = self.places
        places.caches.latent_rows.index_copy_(0, places.latent, self.latent)
        for pool, codes, scales in zip(places.caches.index_k, self.codes, self.scales, strict=True):
            _codes(pool).index_copy_(0, places.codes, codes)
            _scales(pool).index_copy_(0, places.scales, scales)


@dataclass(frozen=True)
class _Places:
    """Where the new tokens of a batch go."""

    caches: Caches
    latent: Tensor  # [layers * n] int64: rows of caches.latent_rows
    codes: Tensor  # [n] int64: rows of a pool's 128-byte view
    scales: Tensor  # [n] int64: elements of a pool's fp32 view


def save_rows(caches: Caches, metadata: AttnMetadata) -> SavedRows:
    """The latent rows and index slots, in every layer, that the new tokens of metadata's batch will take."""
    places = _places(caches, metadata)
    return SavedRows(
        places,
        caches.latent_rows.index_select(0, places.latent),
        tuple(_codes(pool).index_select(0, places.codes) for pool in caches.index_k),
        tuple(_scales(pool).index_select(0, places.scales) for pool in caches.index_k),
    )


def poison_rows(caches: Caches, metadata: AttnMetadata) -> None:
    """The same rows and slots all NaN: latent, index codes and their scales."""
    places = _places(caches, metadata)
    caches.latent_rows.index_fill_(0, places.latent, torch.nan)
    for pool in caches.index_k:
        _codes(pool).index_fill_(0, places.codes, NAN_CODE)
        _scales(pool).index_fill_(0, places.scales, torch.nan)


def _places(caches: Caches, metadata: AttnMetadata) -> _Places:
    layers = torch.arange(caches.num_layers, device=metadata.device) * TOKENS_PER_BLOCK
    latent = (layers[:, None] + metadata.latent_rows).flatten()
    # Quotients are new tensors, so a later prepare() does not move them.
    codes, scales = metadata.index_slots(metadata.num_tokens)
    return _Places(caches, latent, codes // INDEX_HEAD_DIM, scales // 4)


def _codes(pool: Tensor) -> Tensor:
    """[blocks * 66, 128] uint8: every code of a slot is one row."""
    return pool.view(-1, INDEX_HEAD_DIM)


def _scales(pool: Tensor) -> Tensor:
    """[blocks * 2112] fp32: every scale of a slot is one element."""
    return pool.view(-1).view(torch.float32)
