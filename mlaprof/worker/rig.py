"""The layer of one job, built once: weights, caches, buffers and metadata at fixed addresses, and an arm for every
Point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.eager import EagerRunner
from mlaprof.capture.full import FullRunner
from mlaprof.capture.graphs import GraphMaker
from mlaprof.capture.piecewise import PiecewiseRunner
from mlaprof.capture.program import Runner
from mlaprof.layer import inputs
from mlaprof.layer.batch import Batch, Request, blocks_needed, place, requests_of
from mlaprof.layer.build import build_stack
from mlaprof.layer.cache import allocate
from mlaprof.layer.context import ForwardContext
from mlaprof.layer.metadata import AttnMetadata, MetadataLimits
from mlaprof.layer.mla import Form
from mlaprof.layer.ops import ATTN, MONOLITH, PROJ
from mlaprof.layer.stack import Stack
from mlaprof.layer.tiling import layer_tiles
from mlaprof.layer.weights import checkpoint_weights, random_weights
from mlaprof.measure.memory import tensor_bytes
from mlaprof.records import Job, Point
from mlaprof.shapes import TOKENS_PER_BLOCK
from mlaprof.study import Mode, kernel_dims

SPARE_BLOCKS = 8  # pages no request owns: a stray read lands in plausible data, not outside the pool
INPUT_SETS = 2  # one to capture with, another to replay with


@dataclass(frozen=True)
class Arm:
    """One Point, ready to run. `with arm.context` around every call of runner or stack."""

    point: Point
    stack: Stack
    runner: Runner
    graphs: GraphMaker | None  # None in eager modes
    context: ForwardContext


class Rig:
    """Everything the Points of one job share. Sized for the largest of them."""

    def __init__(self, job: Job) -> None:
        spec, shape = job.layer, job.layer.shape
        self.job = job
        self.device = torch.device(job.device)
        requests = [_requests(job, point) for point in job.points]
        max_kv_len = max(request.kv_len for contexts, gens in requests for request in contexts + gens)
        max_tokens = max(point.num_tokens for point in job.points)
        self.num_blocks = max(blocks_needed(contexts + gens) for contexts, gens in requests) + SPARE_BLOCKS
        self.caches = allocate(shape, spec.num_layers, self.num_blocks, self.device)
        inputs.fill_caches(self.caches, seed=job.batch.seed)
        self.weights = [self._layer_weights(number) for number in range(spec.num_layers)]
        self.metadata = AttnMetadata(
            MetadataLimits(
                max_num_tokens=max_tokens,
                max_num_requests=max(len(contexts + gens) for contexts, gens in requests),
                max_seq_len=max(spec.options.max_seq_len, _whole_blocks(max_kv_len)),
                index_topk=shape.index_topk,
                indexer_max_chunk_size=spec.options.indexer_max_chunk_size,
                skip_indexer_for_short_seqs=spec.options.skip_indexer_for_short_seqs,
                max_ctx_kv_tokens=max(sum(request.kv_len for request in contexts) for contexts, _ in requests),
            ),
            self.caches,
            self.device,
        )
        self.hidden_sets = [
            inputs.hidden_states(max_tokens, shape.hidden_size, seed=job.batch.seed + number, device=self.device)
            for number in range(INPUT_SETS)
        ]
        self.buffers = InputBuffers(
            {
                "hidden_states": torch.empty_like(self.hidden_sets[0]),
                "position_ids": torch.zeros(max_tokens, dtype=torch.int64, device=self.device),
            }
        )
        self.stack = build_stack(
            shape,
            self.weights,
            caches=self.caches,
            tiles=layer_tiles(kernel_dims(shape), {}),
            form="monolithic",
            mlp=spec.mlp == "dense",
            short_seq_mha_threshold=spec.options.short_seq_mha_threshold,
        )
        self._arms: dict[tuple[Mode, str], Arm] = {}

    def load(self, point: Point) -> Batch:
        """Describe the Point's batch in the metadata and put its inputs into the buffers."""
        contexts, generations = _requests(self.job, point)
        batch = place(contexts, generations, num_blocks=self.num_blocks, seed=self.job.batch.seed)
        self.metadata.prepare(batch)
        self.buffers.load(position_ids=inputs.position_ids(batch, self.device))
        self.load_hidden(0, point.num_tokens)
        return batch

    def load_hidden(self, number: int, num_tokens: int) -> None:
        """Put the first rows of input set `number` into the buffers."""
        self.buffers.load(hidden_states=self.hidden_sets[number][:num_tokens])

    def arm(self, point: Point) -> Arm:
        """The Point's runner; Points of one mode and tiles share it, so the module is traced once."""
        key = (point.mode, point.tiles_label)
        if key not in self._arms:
            self._arms[key] = self._build_arm(point)
        shared = self._arms[key]
        return Arm(point, shared.stack, shared.runner, shared.graphs, shared.context)

    def release(self) -> None:
        """Drop every arm and its graphs."""
        self._arms.clear()

    @property
    def weights_bytes(self) -> int:
        return tensor_bytes(self.stack.parameters())

    @property
    def caches_bytes(self) -> int:
        return tensor_bytes((self.caches.latent, *self.caches.index_k))

    @property
    def buffers_bytes(self) -> int:
        return self.buffers.num_bytes + self.metadata.num_bytes

    def _layer_weights(self, number: int) -> dict[str, Tensor]:
        spec = self.job.layer
        mlp, source = spec.mlp == "dense", spec.weights
        if source.safetensors is None:
            return random_weights(spec.shape, seed=source.seed + number, mlp=mlp, device=self.device)
        path, layer = Path(source.safetensors), source.layer + number
        return checkpoint_weights(path, layer, spec.shape, mlp=mlp, device=self.device)

    def _build_arm(self, point: Point) -> Arm:
        mode = point.mode
        chosen = {choice.kernel: choice.values for choice in point.tiles}
        form = _form(mode, is_dsa=self.job.layer.shape.is_dsa)
        stack = self.stack.variant(form=form, tiles=layer_tiles(kernel_dims(self.job.layer.shape), chosen))
        eager = mode.endswith("_eager")
        graphs = None if eager else self._graph_maker()
        runner: Runner
        if graphs is None:
            runner = EagerRunner(stack, self.buffers)
        elif mode == "full":
            runner = FullRunner(stack, self.buffers, graphs)
        else:
            boundary = ATTN if form == "split" else MONOLITH
            runner = PiecewiseRunner(stack, self.buffers, graphs, boundaries=(boundary,))
        return Arm(point, stack, runner, graphs, ForwardContext(stack.attention, self.metadata, compiled=not eager))

    def _graph_maker(self) -> GraphMaker:
        if self.device.type == "cuda":
            from mlaprof.capture.cuda_graph import CudaGraphs

            return CudaGraphs()
        from mlaprof.capture.cpu_graph import CpuGraphs

        return CpuGraphs(see_through=(PROJ, ATTN, MONOLITH))


def _requests(job: Job, point: Point) -> tuple[tuple[Request, ...], tuple[Request, ...]]:
    batch = job.batch
    return requests_of(
        point.phase,
        point.num_tokens,
        point.context_len,
        num_contexts=batch.num_contexts,
        num_generations=batch.num_generations,
        next_n=batch.next_n,
    )


def _form(mode: Mode, *, is_dsa: bool) -> Form:
    return "split" if is_dsa and not mode.startswith("monolithic") else "monolithic"


def _whole_blocks(num_tokens: int) -> int:
    return -(-num_tokens // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK


def cells(points: Sequence[Point]) -> list[list[Point]]:
    """Points grouped by what an interleaved comparison shares, in order of first appearance."""
    grouped: dict[str, list[Point]] = {}
    for point in points:
        grouped.setdefault(point.cell, []).append(point)
    return list(grouped.values())
