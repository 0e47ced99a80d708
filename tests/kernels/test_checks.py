"""check_tensor: what it returns and what it says."""

from __future__ import annotations

import pytest
import torch

from mlaprof.kernels.checks import check_tensor


def test_returns_the_sizes_of_the_wildcards():
    """Fixed sizes are checked, named ones are returned in order."""
    assert check_tensor("x", torch.zeros(3, 5, 7), shape=("a", 5, "*"), dtype=torch.float32) == (3, 7)


@pytest.mark.parametrize(
    "x,kwargs,complaint",
    [
        pytest.param(torch.zeros(3, 4), {"shape": ("n", 5)}, r"x: expected shape \[n, 5\], got \[3, 4\]", id="size"),
        pytest.param(torch.zeros(3), {"shape": ("n", "m")}, r"x: expected shape \[n, m\], got \[3\]", id="rank"),
        pytest.param(
            torch.zeros(3).int(), {"shape": ("n",)}, r"x: expected torch.float32, got torch.int32", id="dtype"
        ),
        pytest.param(
            torch.zeros(3),
            {"shape": ("n",), "device": torch.device("meta")},
            "x: expected a tensor on meta",
            id="device",
        ),
        pytest.param(
            torch.zeros(4, 3).T, {"shape": ("n", "m")}, "x: expected a contiguous last dimension", id="last stride"
        ),
        pytest.param(
            torch.zeros(4, 6)[:, :3],
            {"shape": ("n", "m"), "contiguous": "all"},
            "x: expected a contiguous tensor",
            id="row stride",
        ),
    ],
)
def test_complaint_names_expected_and_got(x, kwargs, complaint):
    """Every refusal is a ValueError that names the tensor."""
    with pytest.raises(ValueError, match=complaint):
        check_tensor("x", x, dtype=torch.float32, **kwargs)


def test_stride_of_a_single_element_does_not_matter():
    """A last dimension of size 1 has no neighbour to be adjacent to."""
    x = torch.zeros(4, 6)[:, 2:3]
    assert check_tensor("x", x, shape=("n", 1), dtype=torch.float32) == (4,)
