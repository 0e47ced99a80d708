"""Toy operators in the shape of the real ones, and modules made of them. No layer is imported here."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlaprof.capture.breakable import BreakableRunner
from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.captured import CapturedRunner
from mlaprof.capture.cpu_graph import CpuGraphs
from mlaprof.capture.eager import EagerRunner
from mlaprof.capture.full import FullRunner
from mlaprof.capture.graphs import GraphMaker
from mlaprof.capture.piecewise import PiecewiseRunner

WIDTH = 8
MAX_TOKENS = 64
LIBRARY = torch.library.Library("toy", "DEF")
# The state that only attend and proj read. lengths: what decides proj's kernels beside the token count; arity: how many
# tensors it returns
USUAL = {"num_tokens": MAX_TOKENS, "bad_rows": (), "lengths": "short", "arity": 2}
BATCH = SimpleNamespace(**USUAL)


def _proj(x: Tensor, weight: Tensor) -> list[Tensor]:
    if x.shape[0] in BATCH.bad_rows:
        x.sum().item()
    gate = torch.sigmoid(x) if BATCH.lengths == "short" else torch.tanh(x)
    return [torch.nn.functional.linear(x, weight), gate, x.clone()][: BATCH.arity]


def _attend(q: Tensor, gate: Tensor, output: Tensor) -> None:
    rows = BATCH.num_tokens
    output[:rows] = q[:rows].flip(0) * gate[:rows]


def _ragged(x: Tensor) -> Tensor:
    return x[: 1 + int(x[0].abs().item())].clone()


def _busy(x: Tensor) -> Tensor:
    return x * 2 + len(x[x > 0]) + x.sum().item()


LIBRARY.define("proj(Tensor x, Tensor weight) -> Tensor[]")
LIBRARY.define("attend(Tensor q, Tensor gate, Tensor(a!) output) -> ()")
LIBRARY.define("fresh(Tensor x) -> Tensor")
LIBRARY.define("ragged(Tensor x) -> Tensor")
LIBRARY.define("busy(Tensor x) -> Tensor")
LIBRARY.define("note(Tensor x) -> ()")
for _key in ("CPU", "CUDA"):
    LIBRARY.impl("proj", _proj, _key)
    LIBRARY.impl("attend", _attend, _key)
    LIBRARY.impl("fresh", torch.exp, _key)
    LIBRARY.impl("ragged", _ragged, _key)
    LIBRARY.impl("busy", _busy, _key)
    LIBRARY.impl("note", lambda x: None, _key)
torch.library.register_fake("toy::proj", lambda x, weight: [x @ weight.T, torch.empty_like(x)], lib=LIBRARY)
torch.library.register_fake("toy::attend", lambda q, gate, output: None, lib=LIBRARY)
torch.library.register_fake("toy::note", lambda x: None, lib=LIBRARY)
torch.library.register_fake("toy::fresh", torch.empty_like, lib=LIBRARY)


class Layer(nn.Module):
    """Norm, proj, attend into an output allocated before it, projection: the skeleton of the split layer."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.weight = nn.Parameter(torch.randn(width, width))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        normed = self.norm(x) + 0.01 * position_ids[:, None]
        output = normed.new_empty((x.shape[0], x.shape[1]))
        parts = torch.ops.toy.proj(normed, self.weight)
        torch.ops.toy.attend(parts[0], parts[1], output)
        return self.out(output)


class Stack(nn.Module):
    def __init__(self, num_layers: int, width: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width) for _ in range(num_layers))

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x, position_ids)
        return x


@pytest.fixture(autouse=True)
def batch() -> Iterator[SimpleNamespace]:
    """What attend reads in Python, as the real one reads metadata; restored after each test."""
    torch.manual_seed(0)
    vars(BATCH).update(USUAL)
    yield BATCH
    vars(BATCH).update(USUAL)


@pytest.fixture(params=[torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def mode(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both modes that a worker may run under."""
    with request.param():
        yield


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def graphs(device: str) -> GraphMaker:
    if device == "cpu":
        return CpuGraphs(see_through=("toy::proj", "toy::attend"))
    from mlaprof.capture.cuda_graph import CudaGraphs

    return CudaGraphs()


@pytest.fixture
def buffers(device: str) -> InputBuffers:
    return InputBuffers(
        {
            "x": torch.randn(MAX_TOKENS, WIDTH, device=device),
            "position_ids": torch.arange(MAX_TOKENS, device=device),
        }
    )


@pytest.fixture
def stack(device: str) -> Stack:
    """Two layers."""
    return Stack(2).to(device)


@pytest.fixture
def make_stack() -> type[Stack]:
    return Stack


@pytest.fixture
def eager(stack: Stack, buffers: InputBuffers) -> EagerRunner:
    return EagerRunner(stack, buffers)


@pytest.fixture
def make_runner(graphs: GraphMaker, buffers: InputBuffers, stack: Stack) -> Callable[..., CapturedRunner]:
    """A runner by name: full, piecewise, breakable."""

    def make(name: str, module: nn.Module = stack, graphs: GraphMaker = graphs, **options: Any) -> CapturedRunner:
        if name == "full":
            return FullRunner(module, buffers, graphs, **options)
        kind = {"piecewise": PiecewiseRunner, "breakable": BreakableRunner}[name]
        return kind(module, buffers, graphs, ["toy::attend"], **options)

    return make


@pytest.fixture
def full(make_runner: Callable[..., CapturedRunner]) -> CapturedRunner:
    return make_runner("full")


@pytest.fixture
def piecewise(make_runner: Callable[..., CapturedRunner]) -> CapturedRunner:
    return make_runner("piecewise")


@pytest.fixture(params=["piecewise", "breakable"])
def pieces(request: pytest.FixtureRequest, make_runner: Callable[..., CapturedRunner]) -> CapturedRunner:
    """Both runners that leave attend eager, one test each."""
    return make_runner(request.param)


@pytest.fixture(params=["full", "piecewise", "breakable"])
def captured(request: pytest.FixtureRequest, make_runner: Callable[..., CapturedRunner]) -> CapturedRunner:
    """Every runner with graphs, one test each."""
    return make_runner(request.param)


@pytest.fixture
def reload(buffers: InputBuffers) -> Callable[[int], None]:
    """Puts other hidden states into the first rows of the buffers."""

    def load(num_tokens: int) -> None:
        buffers.load(x=torch.randn(num_tokens, WIDTH, device=buffers.device))

    return load


@pytest.fixture
def churn(device: str) -> Callable[[], None]:
    """Allocates, fills and frees blocks of many sizes, so that a freed address would hold something else."""

    def fill() -> None:
        sizes = [random.randrange(1, 5000) for _ in range(50)]
        del [torch.full((size,), float("nan"), device=device) for size in sizes][:]

    return fill
