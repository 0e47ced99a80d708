"""What goes into a batch: seeded, never zeros, never NaN."""

from __future__ import annotations

import torch

from mlaprof.layer import inputs
from mlaprof.layer.cache import INDEX_SCALE_OFFSET, allocate
from mlaprof.layer.weights import random_weights

CPU = torch.device("cpu")


def test_a_shorter_batch_has_the_first_rows_of_a_longer_one():
    """So that sizes are compared on the same tokens."""
    long, short = (inputs.hidden_states(n, 96, seed=4, device=CPU) for n in (33, 7))
    assert long.dtype == torch.bfloat16 and long.shape == (33, 96)
    assert torch.equal(long[:7], short)
    assert not torch.equal(long, inputs.hidden_states(33, 96, seed=5, device=CPU))
    assert 0.8 < float(long.float().std()) < 1.2


def test_positions_count_on_from_the_cached_tokens(tiny):
    """Contexts first, then generations."""
    batch = tiny.batch([(3, 0), (2, 70)], [(2, 9)])
    assert inputs.position_ids(batch, CPU).tolist() == [0, 1, 2, 70, 71, 9, 10]


def test_every_page_holds_plausible_numbers(tiny, shapes):
    """A kernel that reads a wrong page reads finite values of the right size; the same pools on the same seed."""
    pools = []
    for seed in (3, 3, 4):
        caches = allocate(shapes["tiny"], 2, 5, CPU)
        for pool in (caches.latent.view(torch.uint8), *caches.index_k):
            pool.fill_(0xFF)  # NaN, were it left
        inputs.fill_caches(caches, seed=seed)
        pools.append([caches.latent.view(torch.uint8), *caches.index_k])
        assert bool(caches.latent.isfinite().all())
        assert 0.9 < float(caches.latent.float().std()) < 1.1
        for pool in caches.index_k:
            codes = pool[:, :INDEX_SCALE_OFFSET].view(torch.float8_e4m3fn).float()
            scales = pool[:, INDEX_SCALE_OFFSET:].view(torch.float32)
            assert bool(codes.isfinite().all()) and 0.9 < float((codes * 2.0**-7).std()) < 1.1
            assert set(scales.unique().tolist()) == {2.0**-7}
    assert all(torch.equal(a, b) for a, b in zip(pools[0], pools[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(pools[0][:2], pools[2][:2], strict=True))
    assert not torch.equal(pools[0][1], pools[0][2]), "each layer has keys of its own"


def test_inputs_and_weights_of_one_seed_have_nothing_in_common(shapes):
    """No hidden row is a row of a weight: their product would be an outlier of many standard deviations."""
    shape = shapes["tiny"]
    weights = random_weights(shape, seed=1, mlp=False, device=CPU)["kv_a_proj_with_mqa.weight"].float()
    hidden = inputs.hidden_states(300, shape.hidden_size, seed=1, device=CPU).float()
    products = torch.nn.functional.linear(hidden, weights)
    assert float(products.abs().max()) < 7 * float(products.std())
