"""A stack on a bench: small layers with caches and metadata, and a batch put through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mlaprof.layer import inputs
from mlaprof.layer.batch import Batch, Request, place
from mlaprof.layer.build import build_stack
from mlaprof.layer.cache import allocate
from mlaprof.layer.context import ForwardContext
from mlaprof.layer.metadata import AttnMetadata, MetadataLimits
from mlaprof.layer.mla import MLA, Form
from mlaprof.layer.ops import ATTN, MONOLITH, PROJ
from mlaprof.layer.stack import Stack
from mlaprof.layer.tiling import layer_tiles
from mlaprof.layer.weights import random_weights
from mlaprof.shapes import PRESETS, LayerShape
from mlaprof.study import PR_BOUNDARY, Boundary, MultiStream, kernel_dims

# GLM-5's geometry where it differs from V3.2's: nope 192, v 256, interleaved index rotation, no YaRN; six heads, too.
GLM_SMALL = replace(
    PRESETS["glm-5"],
    hidden_size=384,
    num_heads=6,
    q_lora_rank=192,
    kv_lora_rank=128,
    index_n_heads=4,
    index_topk=64,
    max_position_embeddings=4096,
    intermediate_size=512,
)
SHAPES = {"tiny": PRESETS["tiny"], "glm-like": GLM_SMALL}
PLAIN = replace(GLM_SMALL, index_topk=0, index_n_heads=0, index_head_dim=0)

Lengths = Sequence[tuple[int, int]]  # (new, cached) tokens a request


class Bench:
    """A stack of layers with everything that a forward needs. A batch never outlives the next `load`."""

    def __init__(
        self,
        shape: LayerShape,
        *,
        num_layers: int = 1,
        mlp: bool = False,
        num_blocks: int = 48,
        max_num_tokens: int = 256,
        max_seq_len: int = 512,
        indexer_max_chunk_size: int = 32_768,
        skip_indexer_for_short_seqs: bool = True,
        short_seq_mha_threshold: int = 0,
        device: str = "cpu",
    ) -> None:
        self.shape = shape
        self.device = torch.device(device)
        self.caches = allocate(shape, num_layers, num_blocks, self.device)
        inputs.fill_caches(self.caches, seed=3)
        self._pristine = [pool.clone() for pool in self.pools]
        self.weights = [random_weights(shape, seed=number, mlp=mlp, device=self.device) for number in range(num_layers)]
        self.metadata = AttnMetadata(
            MetadataLimits(
                max_num_tokens=max_num_tokens,
                max_num_requests=12,
                max_seq_len=max_seq_len,
                index_topk=shape.index_topk,
                indexer_max_chunk_size=indexer_max_chunk_size,
                skip_indexer_for_short_seqs=skip_indexer_for_short_seqs,
            ),
            self.caches,
            self.device,
        )
        self.tiles = layer_tiles(kernel_dims(shape), {})
        self.monolith = build_stack(
            shape,
            self.weights,
            caches=self.caches,
            tiles=self.tiles,
            form="monolithic",
            mlp=mlp,
            short_seq_mha_threshold=short_seq_mha_threshold,
        )
        self.split = self.monolith.variant(form="split", tiles=self.tiles) if shape.is_dsa else self.monolith

    @property
    def pools(self) -> list[Tensor]:
        return [self.caches.latent, *self.caches.index_k]

    @property
    def attn(self) -> MLA:
        """The first layer's attention, in split form where there is one."""
        return self.split.attention["0"]

    def cut(self, boundary: Boundary) -> None:
        """Split there from now on."""
        self.split = self.monolith.variant(form="split", tiles=self.tiles, boundary=boundary)

    def stack(self, form: Form) -> Stack:
        return self.split if form == "split" else self.monolith

    def batch(self, contexts: Lengths = (), generations: Lengths = (), *, seed: int = 1) -> Batch:
        """Requests with pages from a shuffled pool."""
        return place(
            tuple(Request(*lengths) for lengths in contexts),
            tuple(Request(*lengths) for lengths in generations),
            num_blocks=self.caches.num_blocks,
            seed=seed,
        )

    def load(self, batch: Batch, *, rows: int | None = None, seed: int = 9) -> tuple[Tensor, Tensor]:
        """Caches as new, metadata of batch; (hidden_states, position_ids) with rows - num_tokens rows of padding."""
        for pool, pristine in zip(self.pools, self._pristine, strict=True):
            pool.copy_(pristine)
        self.metadata.prepare(batch)
        rows = batch.num_tokens if rows is None else rows
        hidden = inputs.hidden_states(rows, self.shape.hidden_size, seed=seed, device=self.device)
        positions = torch.zeros(rows, dtype=torch.int64, device=self.device)
        positions[: batch.num_tokens] = inputs.position_ids(batch, self.device)
        return hidden, positions

    def context(
        self, *, compiled: bool = False, form: Form = "split", multi_stream: MultiStream = "off"
    ) -> ForwardContext:
        return ForwardContext(self.stack(form).attention, self.metadata, compiled=compiled, multi_stream=multi_stream)

    def forward(self, hidden: Tensor, positions: Tensor, *, form: Form = "split", compiled: bool = False) -> Tensor:
        with self.context(compiled=compiled, form=form):
            return self.stack(form)(hidden, positions)


class OpSpy(TorchDispatchMode):
    """mlaprof's ops in the order they begin, with arguments and results; looks into the layer's own ops, too.

    Tensors among the arguments are those of the call: clone what a later call overwrites.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if not name.startswith("mlaprof::"):
            return func(*args, **(kwargs or {}))
        place = len(self.calls)
        self.calls.append((name, args, None))
        if name in (PROJ, ATTN, MONOLITH):
            with self:
                result = func._op_dk(torch._C.DispatchKey.CPU, *args, **(kwargs or {}))
        else:
            result = func(*args, **(kwargs or {}))
        self.calls[place] = (name, args, result)
        return result

    @property
    def names(self) -> list[str]:
        """Without the namespace."""
        return [name.removeprefix("mlaprof::") for name, _, _ in self.calls]

    def of(self, name: str) -> list[tuple[tuple[Any, ...], Any]]:
        """(arguments, result) of every call of one op."""
        return [(args, result) for seen, args, result in self.calls if seen == f"mlaprof::{name}"]


@pytest.fixture
def spy() -> OpSpy:
    return OpSpy()


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    """The mode that workers run under."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def make_bench() -> Callable[..., Bench]:
    return Bench


@pytest.fixture(scope="session")
def shapes() -> dict[str, LayerShape]:
    return SHAPES


@pytest.fixture(scope="session")
def plain_shape() -> LayerShape:
    return PLAIN


@pytest.fixture(scope="module", params=list(SHAPES))
def bench(request: pytest.FixtureRequest) -> Bench:
    """One layer of either geometry. Tests load their own batch; what they patch they put back."""
    return Bench(SHAPES[request.param])


@pytest.fixture
def recut(bench: Bench) -> Iterator[Bench]:
    """bench, to be cut elsewhere."""
    yield bench
    bench.cut(PR_BOUNDARY)


@pytest.fixture(scope="module")
def tiny() -> Bench:
    return Bench(SHAPES["tiny"])


@pytest.fixture(scope="module")
def plain() -> Bench:
    """One layer of plain MLA, no indexer."""
    return Bench(PLAIN)
