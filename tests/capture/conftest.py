"""Toy operators in the shape of the real ones, and modules made of them. No layer is imported here."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.cpu_graph import CpuGraphs
from mlaprof.capture.graphs import GraphMaker

WIDTH = 8
MAX_TOKENS = 64
LIBRARY = torch.library.Library("toy", "DEF")
BATCH = SimpleNamespace(num_tokens=MAX_TOKENS, bad_rows=())  # the state that only attend and proj read


def _proj(x: Tensor, weight: Tensor) -> list[Tensor]:
    if x.shape[0] in BATCH.bad_rows:
        x.sum().item()
    return [torch.nn.functional.linear(x, weight), torch.sigmoid(x).contiguous()]


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
    BATCH.num_tokens, BATCH.bad_rows = MAX_TOKENS, ()
    yield BATCH
    BATCH.num_tokens, BATCH.bad_rows = MAX_TOKENS, ()


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
