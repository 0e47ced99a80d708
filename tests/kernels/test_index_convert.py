"""Request-local positions to pool rows: the table of rules, kernel against oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.kernels import reference

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
TABLE = torch.tensor([[4, 0, -1], [2, INT_MAX, 3]], dtype=torch.int32)


def int32(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def check(launch: Any, *args: Any) -> Tensor:
    got = launch("index_convert.convert_indices", *args)
    assert torch.equal(reference.convert_indices(*args), got)
    return got


@pytest.mark.parametrize(
    "request_id,position,want",
    [
        pytest.param(0, 0, 4 * 320 + 128, id="first token of a block"),
        pytest.param(0, 63, 4 * 320 + 63 + 128, id="last token of a block"),
        pytest.param(0, 64, 0 + 128, id="block 0 is a block"),
        pytest.param(0, -1, -1, id="an empty slot"),
        pytest.param(0, INT_MIN, -1, id="the most negative slot"),
        pytest.param(0, 128, -1, id="a block that is not mapped"),
        pytest.param(0, 192, -1, id="beyond the table"),
        pytest.param(1, INT_MAX, -1, id="far beyond the table"),
        pytest.param(1, 65, -1, id="a row that int32 cannot hold"),
        pytest.param(1, 190, 3 * 320 + 62 + 128, id="another request"),
        pytest.param(2, 0, -1, id="a request beyond the table"),
        pytest.param(-1, 0, -1, id="a negative request"),
    ],
)
def test_rule(launch, request_id, position, want):
    """row = block * stride_factor + position % 64 + layer_offset, or -1."""
    assert check(launch, int32([position]), TABLE, int32(request_id), 320, 128).tolist() == [[want]]


@pytest.mark.parametrize("num_tokens,width", [(1, 2048), (7, 513), (33, 64)])
def test_any_size(launch, num_tokens, width):
    """Neither tokens nor slots need fill a tile."""
    g = torch.Generator().manual_seed(width)
    topk = torch.randint(-20, 700, (num_tokens, width), generator=g, dtype=torch.int32)
    table = torch.randint(-2, 50, (5, 10), generator=g, dtype=torch.int32)
    requests = torch.randint(0, 5, (num_tokens,), generator=g, dtype=torch.int32)
    check(launch, topk, table, requests, 61 * 64, 3 * 64)


def test_strided_inputs(launch):
    """The table and the slots may be slices of wider buffers, as the generation part of a batch is."""
    topk = torch.arange(40, dtype=torch.int32).reshape(4, 10)[1:, 3:8]
    check(launch, topk, TABLE[:, :2], int32(0, 1, 1), 64, 0)


@pytest.mark.parametrize("shape", [(0, 64), (3, 0)], ids=str)
def test_nothing_to_convert(launch, shape):
    """An empty side gives an empty result."""
    topk = torch.zeros(shape, dtype=torch.int32)
    assert check(launch, topk, TABLE, torch.zeros(shape[0], dtype=torch.int32), 64, 0).shape == shape


def test_wrong_operand_is_named(launch):
    """The complaint names the tensor, what was expected and what came."""
    with pytest.raises(ValueError, match=r"req_idx: expected shape \[1\], got \[2\]"):
        launch("index_convert.convert_indices", int32([1]), TABLE, int32(0, 1), 64, 0)
