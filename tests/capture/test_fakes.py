"""Operators whose fake kernel promises what the real one does not keep."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mlaprof.capture.fakes import check_fakes
from mlaprof.capture.graphs import CaptureError
from mlaprof.capture.trace import trace

pytestmark = pytest.mark.usefixtures("mode")

LIBRARY = torch.library.Library("toyfake", "DEF")
REAL = {
    "true": lambda x: x[:, :4].clone(),
    "narrow": lambda x: x[:, :3].clone(),
    "fixed": lambda x: x.new_zeros(5, 4),
    "dtype": lambda x: x[:, :4].double(),
    "rank": lambda x: x[:, :4].clone()[None],
}
for _name, _kernel in REAL.items():
    LIBRARY.define(f"{_name}(Tensor x) -> Tensor")
    LIBRARY.impl(_name, _kernel, "CPU")
    torch.library.register_fake(f"toyfake::{_name}", lambda x: x.new_empty(x.shape[0], 4), lib=LIBRARY)
LIBRARY.define("nothing(Tensor x) -> Tensor?")
LIBRARY.impl("nothing", lambda x: None, "CPU")
torch.library.register_fake("toyfake::nothing", torch.empty_like, lib=LIBRARY)


class Fn(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)


def check(fn, num_tokens: int) -> None:
    traced = trace(Fn(fn), (torch.randn(5, 8),))
    inputs = (torch.randn(num_tokens, 8),)
    check_fakes(traced, traced.arguments(inputs), num_tokens)


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 64])
def test_kernels_that_keep_their_promise_pass_at_every_token_count(num_tokens):
    """Sizes that follow from the token count are compared as what they are at this one."""
    check(lambda x: torch.ops.toyfake.true(x).repeat(3, 1).chunk(3)[0].sum(1), num_tokens)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("narrow", r"traced as \(7, 4\) torch.float32, is \(7, 3\) torch.float32"),
        ("fixed", r"traced as \(7, 4\) torch.float32, is \(5, 4\)"),
        ("dtype", r"traced as \(7, 4\) torch.float32, is \(7, 4\) torch.float64"),
        ("rank", r"traced as \(7, 4\) torch.float32, is \(1, 7, 4\)"),
    ],
)
def test_a_kernel_that_does_not_is_named(name, complaint):
    with pytest.raises(CaptureError, match=f"toyfake::{name}: tensor 0 was {complaint}") as caught:
        check(lambda x: getattr(torch.ops.toyfake, name)(x).sin(), 7)
    assert caught.value.op == f"toyfake::{name}"


def test_a_wrong_size_may_hide_at_the_token_count_of_the_trace():
    """So every captured size is checked, not one."""
    check(lambda x: torch.ops.toyfake.fixed(x) * 2, 5)


def test_a_missing_tensor_is_told_before_anything_reads_it():
    with pytest.raises(CaptureError, match="toyfake::nothing: traced with 1 tensors returned, returns 0 for 7"):
        check(lambda x: torch.ops.toyfake.nothing(x).sin(), 7)
