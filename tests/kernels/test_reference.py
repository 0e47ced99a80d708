"""What all oracles promise: they can be recorded by a capture, and mismatch() can fail."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mlaprof.kernels import reference
from mlaprof.kernels.reference import Tolerance, mismatch

STRICT = Tolerance(relative=1e-3, peak=1e-4, cosine=1e-6)


def calls(n: int) -> dict[str, object]:
    e4m3, i32 = torch.float8_e4m3fn, torch.int32
    cache = torch.zeros(3, 64 * 132, dtype=torch.uint8)
    slots = torch.zeros(n, dtype=torch.int64)
    codes = torch.zeros(n, 128).to(e4m3)
    q = torch.zeros(n, 4, 128).to(e4m3)
    bounds = torch.zeros(n, dtype=i32)
    latent = torch.zeros(n, 4, 80).bfloat16()
    table = torch.zeros(n, 3, dtype=i32)
    return {
        "index_logits": lambda r: r.index_logits(q, codes, torch.ones(n), torch.ones(n, 4), bounds, bounds + 1),
        "paged_index_logits": lambda r: r.paged_index_logits(q[:, None], cache, torch.ones(n, 4), bounds, table, 150),
        "sparse_attn": lambda r: r.sparse_attn(
            latent,
            torch.zeros(9, 80).bfloat16(),
            torch.zeros(n, 16, dtype=i32),
            1.0,
            out=torch.zeros_like(latent[..., :64]),
        ),
        "act_quant": lambda r: r.act_quant(latent.new_zeros(n, 128)),
        "update_index_cache": lambda r: r.update_index_cache(codes, torch.ones(n, 1), slots, slots + 8192, cache),
        "gather_index_cache": lambda r: r.gather_index_cache(cache, slots, slots + 8192),
        "convert_indices": lambda r: r.convert_indices(torch.zeros(n, 16, dtype=i32), table, bounds, 64, 0),
    }


@pytest.mark.parametrize("n", [0, 1, 5], ids="{} rows".format)
@pytest.mark.parametrize("name", calls(0))
def test_oracle_needs_no_data(name, n):
    """Run on tensors without data: a wait for the device or a shape made of data would raise. 0 rows are taken."""
    with FakeTensorMode():
        calls(n)[name](reference)


def test_recording_test_can_fail():
    """The same run refuses a function that looks at its data."""
    with FakeTensorMode(), pytest.raises(Exception, match=r"data-dependent|_local_scalar_dense|item"):
        torch.zeros(3).max().item()


@pytest.mark.parametrize(
    "got,complaint",
    [
        pytest.param([1.0, 2.0, 3.1], "1 of 3 elements beyond tolerance, the worst at \\[2\\]", id="one element off"),
        pytest.param([1.0, float("nan"), 3.0], "NaN: 0 in the oracle, 1 in the result", id="NaN"),
        pytest.param([1.0, 2.0, float("inf")], "1 infinities differ", id="infinity"),
        pytest.param([[1.0, 2.0, 3.0]], "expected shape", id="shape"),
    ],
)
def test_mismatch_says_why(got, complaint):
    """What is not close is named with its place."""
    import re

    reason = mismatch(torch.tensor([1.0, 2.0, 3.0]), torch.tensor(got), STRICT)
    assert reason is not None and re.search(complaint, reason)


def test_mismatch_compares_infinities_by_sign():
    """-inf agrees with -inf only."""
    want = torch.tensor([float("-inf"), 1.0])
    assert mismatch(want, want.clone(), STRICT) is None
    assert mismatch(want, torch.tensor([float("inf"), 1.0]), STRICT) is not None


def test_mismatch_sees_many_small_errors():
    """Errors that pass one by one are seen in the angle."""
    g = torch.Generator().manual_seed(0)
    want = torch.randn(1000, generator=g)
    loose = Tolerance(relative=0.1, peak=0.1, cosine=1e-6)
    assert mismatch(want, want + 0.05 * torch.randn(1000, generator=g), loose) is not None
