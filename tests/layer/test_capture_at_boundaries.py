"""The layer cut elsewhere under the real runners: what is captured replays for batches it has not seen."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.capture.breakable import BreakableRunner
from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.cpu_graph import CpuGraphs
from mlaprof.capture.full import FullRunner
from mlaprof.capture.graphs import GraphMaker
from mlaprof.capture.piecewise import PiecewiseRunner
from mlaprof.layer.batch import Batch, Request, place
from mlaprof.layer.ops import ATTN, MONOLITH, PROJ
from mlaprof.layer.saved import poison_rows
from mlaprof.layer.variations import variations
from mlaprof.study import BOUNDARIES, PR_BOUNDARY, Boundary

MAX_TOKENS = 96


class Harness:
    """Two layers cut at one boundary, with buffers and a runner over them."""

    def __init__(self, bench: Any, boundary: Boundary, runner: str) -> None:
        self.bench = bench
        bench.cut(boundary)
        self.stack = bench.split
        self.buffers = InputBuffers(
            {
                "hidden_states": torch.randn(MAX_TOKENS, bench.shape.hidden_size, device=bench.device).bfloat16(),
                "position_ids": torch.zeros(MAX_TOKENS, dtype=torch.int64, device=bench.device),
            }
        )
        metadata = bench.metadata
        graphs = make_graphs(bench.device)
        key = functools.partial(metadata.proj_control_flow, boundary)
        if runner == "full":
            self.runner: Any = FullRunner(self.stack, self.buffers, graphs, variant=metadata.control_flow)
        elif runner == "breakable":
            self.runner = BreakableRunner(self.stack, self.buffers, graphs, [ATTN], variant=key)
        else:
            self.runner = PiecewiseRunner(self.stack, self.buffers, graphs, [ATTN], variant=key)
        self.context = bench.context(compiled=True)

    def load(self, batch: Batch, *, seed: int) -> int:
        hidden, positions = self.bench.load(batch, seed=seed)
        self.buffers.load(hidden_states=hidden, position_ids=positions)
        return batch.num_tokens

    def place(self, contexts: tuple[Request, ...], generations: tuple[Request, ...], seed: int) -> Batch:
        return place(contexts, generations, num_blocks=self.bench.caches.num_blocks, seed=seed)

    def prepare(self, batch: Batch) -> None:
        with self.context:
            self.runner.prepare([self.load(batch, seed=1)])

    def check(self, batch: Batch, *, seed: int) -> bool:
        """Replay with the cache rows spoilt and NaN behind the batch, against eager at the padded size: output and
        pages, bit for bit. Whether a graph ran at all."""
        num_tokens = self.load(batch, seed=seed)
        hidden, _ = self.buffers.slice(MAX_TOKENS)
        hidden[num_tokens:] = torch.nan
        poison_rows(self.bench.caches, self.bench.metadata)
        with self.context:
            facts = self.runner.facts(num_tokens)
            got = [self.runner.run(num_tokens).clone(), *self.pages()]
            self.load(batch, seed=seed)
            hidden[num_tokens:] = torch.nan
            rows = facts.num_tokens
            want = [self.stack(*self.buffers.slice(rows))[:num_tokens].clone(), *self.pages()]
        assert bool(want[0].isfinite().all())
        assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(got, want, strict=True))
        return facts.graph_launches > 0

    def pages(self) -> list[Tensor]:
        return [pool[: self.bench.caches.num_blocks].clone() for pool in self.bench.pools]


def make_graphs(device: torch.device) -> GraphMaker:
    if device.type == "cpu":
        return CpuGraphs(see_through=(PROJ, ATTN, MONOLITH))
    from mlaprof.capture.cuda_graph import CudaGraphs

    return CudaGraphs()


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def two_layers(request: Any, make_bench: Any, shapes: Any) -> Any:
    bench = make_bench(shapes["glm-like"], num_layers=2, device=request.param)
    yield bench
    bench.cut(PR_BOUNDARY)


@pytest.mark.parametrize("runner", ["piecewise", "breakable"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_op1_captured_at_any_boundary_serves_every_variation_of_its_batch(two_layers, boundary, runner):
    """Own batch, other pages, other lengths, fewer tokens: one capture, one graph for all."""
    harness = Harness(two_layers, boundary, runner)
    own = (Request(90, 0),)
    harness.prepare(harness.place(own, (), 1))
    ran = {}
    for seed, variation in enumerate(variations(own, (), num_tokens_below=24), start=2):
        batch = harness.place(variation.contexts, variation.generations, seed)
        ran[variation.name] = harness.check(batch, seed=seed)
    # 90 tokens in one request exceed index_topk, in several none does: at logits another graph.
    same_flow = boundary != "logits"
    assert ran == {"own batch": True, "other pages": True, "other lengths": same_flow, "fewer tokens": same_flow}


@pytest.mark.parametrize("boundary", ["proj", "index_quant", "cache_update"])
def test_op1_captured_on_prompts_serves_cached_and_mixed_batches(two_layers, boundary):
    """It reads nothing of the batch but where its rows go."""
    harness = Harness(two_layers, boundary, "piecewise")
    harness.prepare(harness.place((Request(32, 0),), (), 1))
    for seed, (contexts, generations) in enumerate(
        [
            ((Request(20, 100), Request(12, 1)), ()),
            ((Request(9, 70),), (Request(2, 130), Request(2, 62))),
            ((Request(1, 0),), ()),
        ],
        start=2,
    ):
        assert harness.check(harness.place(contexts, generations, seed), seed=seed)


def test_at_logits_short_and_long_prompts_have_a_graph_each(two_layers):
    """The shortcut for short sequences is Python: the answer of proj_control_flow tells the two apart."""
    harness = Harness(two_layers, "logits", "piecewise")
    short, long = (Request(64, 0), Request(6, 0)), (Request(66, 0), Request(4, 0))
    harness.prepare(harness.place(short, (), 1))
    assert harness.check(harness.place((Request(40, 0), Request(30, 0)), (), 2), seed=2)
    assert not harness.check(harness.place(long, (), 3), seed=3)
    harness.prepare(harness.place(long, (), 4))
    assert harness.check(harness.place((Request(65, 0), Request(3, 0)), (), 5), seed=5)
    assert harness.check(harness.place(short, (), 6), seed=6)


FULL: dict[str, tuple[tuple[tuple[Request, ...], tuple[Request, ...]], ...]] = {
    "decode": (
        ((), (Request(1, 150), Request(1, 90), Request(1, 64))),
        ((), (Request(1, 70), Request(1, 1), Request(1, 200))),
    ),
    "decode of two": (((), (Request(2, 150), Request(2, 62))), ((), (Request(2, 3), Request(2, 163)))),
    "prefill": (((Request(70, 0), Request(9, 0)), ()), ((Request(5, 0), Request(74, 0)), ())),
    "mixed": (((Request(70, 0),), (Request(1, 90),)), ((Request(70, 0),), (Request(1, 140),))),
}


@pytest.mark.parametrize("boundary", ["index_quant", "cache_update"])
@pytest.mark.parametrize("name", FULL)
def test_a20_batches_of_equal_control_flow_share_one_full_graph(two_layers, name, boundary):
    """Captured with one, replayed with the other, on other pages: bit for bit what eager gives."""
    harness = Harness(two_layers, boundary, "full")
    first, second = FULL[name]
    harness.prepare(harness.place(*first, 1))
    flow = two_layers.metadata.control_flow()
    for seed, requests in ((2, second), (3, first)):
        assert harness.check(harness.place(*requests, seed), seed=seed)
        assert two_layers.metadata.control_flow() == flow


def test_a_decode_graph_serves_idle_and_shorter_requests(two_layers):
    """The engine's padding requests, and lengths that all differ, as long as one is long: the same control flow."""
    harness = Harness(two_layers, "index_quant", "full")
    own = (Request(1, 200),) * 4
    harness.prepare(harness.place((), own, 1))
    ran = {}
    for seed, variation in enumerate(variations((), own, num_tokens_below=0), start=2):
        ran[variation.name] = harness.check(harness.place((), variation.generations, seed), seed=seed)
    assert ran.pop("fewer tokens") is False
    assert ran == dict.fromkeys(("own batch", "other pages", "other lengths", "idle requests"), True)
