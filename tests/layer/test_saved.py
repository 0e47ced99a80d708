"""Cache rows kept aside, put back and spoilt: exactly those that the batch writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mlaprof.layer.saved import poison_rows, save_rows

BATCHES: list[dict[str, Any]] = [
    {"contexts": [(1, 0)]},
    {"contexts": [(33, 0), (1, 100), (64, 64)]},
    {"generations": [(1, 0), (1, 63), (1, 300)]},
    {"contexts": [(7, 5)], "generations": [(3, 130), (3, 1)]},
]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def layers(request: Any, make_bench: Any, shapes: Any) -> Any:
    return make_bench(shapes["glm-like"], num_layers=2, device=request.param)


def owned(bench: Any, batch: Any) -> torch.Tensor:
    """[blocks + 1, 64]: the slots of the batch's new tokens."""
    slots = torch.zeros(len(bench.caches.latent), 64, dtype=torch.bool)
    for request, pages in zip(batch.requests, batch.pages, strict=True):
        for position in range(request.cached_tokens, request.kv_len):
            slots[pages[position // 64], position % 64] = True
    return slots


@pytest.mark.parametrize("lengths", BATCHES)
def test_poison_is_nan_where_the_batch_writes_and_nowhere_else(layers, lengths):
    """Latent rows, codes and scales of every layer, slot by slot."""
    batch = layers.batch(**lengths)
    layers.load(batch)
    slots = owned(layers, batch)
    poison_rows(layers.caches, layers.metadata)
    latent = layers.caches.latent.isnan().cpu()  # [blocks + 1, layers, 64, width]
    assert torch.equal(latent.all(-1), slots[:, None].expand(latent.shape[:-1]))
    assert torch.equal(latent.any(-1), latent.all(-1))
    for pool in layers.caches.index_k:
        codes = pool[:, : 64 * 128].view(torch.float8_e4m3fn).float().isnan().view(-1, 64, 128).cpu()
        scales = pool[:, 64 * 128 :].view(torch.float32).isnan().cpu()
        assert torch.equal(codes.all(-1), slots) and torch.equal(codes.any(-1), slots)
        assert torch.equal(scales, slots)


@pytest.mark.parametrize("lengths", BATCHES)
def test_restore_brings_back_every_byte_after_another_batch_was_prepared(layers, lengths):
    """What is kept belongs to the batch of its own time."""
    layers.load(layers.batch(**lengths))
    before = [pool.clone() for pool in layers.pools]
    saved = save_rows(layers.caches, layers.metadata)
    poison_rows(layers.caches, layers.metadata)
    layers.metadata.prepare(layers.batch([(200, 0)], seed=8))
    saved.restore()
    for old, pool in zip(before, layers.pools, strict=True):
        assert torch.equal(old.view(torch.uint8), pool.view(torch.uint8))


def test_a_step_repairs_what_was_poisoned(layers):
    """Both caches are written before they are read, so a step over NaN gives the same bits; a step that does not write
    its rows gives others."""
    batch = layers.batch([(40, 30)], [(1, 90)])
    hidden, positions = layers.load(batch)
    want = layers.forward(hidden, positions)
    layers.load(batch)
    poison_rows(layers.caches, layers.metadata)
    assert torch.equal(want, layers.forward(hidden, positions))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(layers.attn), "_write_caches", lambda self, *args: None)
        layers.load(batch)
        poison_rows(layers.caches, layers.metadata)
        assert not torch.equal(want, layers.forward(hidden, positions))


def test_plain_mla_has_latent_rows_only(plain):
    """No index pool, nothing to keep of it."""
    plain.load(plain.batch([(5, 0)]))
    before = plain.caches.latent.clone()
    saved = save_rows(plain.caches, plain.metadata)
    poison_rows(plain.caches, plain.metadata)
    assert int(plain.caches.latent.isnan().any(-1).sum()) == 5
    saved.restore()
    assert torch.equal(before, plain.caches.latent)
