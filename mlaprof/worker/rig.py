"""The layer of one job, built once: weights, caches, buffers and metadata at fixed addresses, and an arm for every
Point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mlaprof.capture.buffers import InputBuffers
from mlaprof.layer import inputs
from mlaprof.layer.batch import Batch, Request, blocks_needed, place, requests_of
from mlaprof.layer.build import build_stack
from mlaprof.layer.cache import allocate
from mlaprof.layer.linear import through_blocks
from mlaprof.layer.metadata import AttnMetadata, MetadataLimits
from mlaprof.layer.saved import poison_rows, save_rows
from mlaprof.layer.tiling import layer_tiles
from mlaprof.layer.variations import SHORT, Variation, variations
from mlaprof.layer.weights import checkpoint_weights, random_weights
from mlaprof.measure.memory import tensor_bytes
from mlaprof.records import Job, Point
from mlaprof.shapes import TOKENS_PER_BLOCK
from mlaprof.study import BUCKETED_MODES, kernel_dims
from mlaprof.worker.arms import Arm, build_arm
from mlaprof.worker.group import Group

SPARE_BLOCKS = 8  # pages no request owns: a stray read lands in plausible data, not outside the pool
INPUT_SETS = 2  # one to capture with, another to replay with


class Rig:
    """Everything the Points of one job share, all of one phase and context length. Sized for the largest of them.

    group  the ranks that run the layer together; by default this one alone
    """

    def __init__(self, job: Job, group: Group | None = None) -> None:
        spec, shape = job.layer, job.layer.shape
        self.job = job
        self.group = group or Group()
        self.device = torch.device(job.device)
        self._variations: dict[tuple[int, int], tuple[Variation, ...]] = {}  # by size and `below`
        self.sizes = tuple(sorted({point.num_tokens for point in job.points}, reverse=True))
        every = [each for size in self._possible_sizes() for each in self.variations(size)]
        requests = [(*each.contexts, *each.generations) for each in every]
        max_tokens = max((*self.sizes, *(job.capture.sizes or ())))
        max_kv_len = max(request.kv_len for batch in requests for request in batch)
        self.num_blocks = max(blocks_needed(batch) for batch in requests) + SPARE_BLOCKS
        self.caches = allocate(shape, spec.num_layers, self.num_blocks, self.device)
        inputs.fill_caches(self.caches, seed=job.batch.seed)
        self.weights = [self._layer_weights(number) for number in range(spec.num_layers)]
        self.metadata = AttnMetadata(
            MetadataLimits(
                max_num_tokens=max_tokens,
                max_num_requests=max(len(batch) for batch in requests),
                max_seq_len=max(spec.options.max_seq_len, _whole_blocks(max_kv_len)),
                index_topk=shape.index_topk,
                indexer_max_chunk_size=spec.options.indexer_max_chunk_size,
                skip_indexer_for_short_seqs=spec.options.skip_indexer_for_short_seqs,
                max_ctx_kv_tokens=max(sum(request.kv_len for request in each.contexts) for each in every),
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
            linear=spec.options.linear,
            reduces=self.group.world > 1,
        )
        self._arms: dict[tuple[str, str], Arm] = {}
        self.load(self.sizes[0])  # sets batch and loaded: what is in place

    def settle(self) -> None:
        """Wait for the device: a fault of what was submitted shall show here, not in the stage of another Point."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def requests(self, num_tokens: int) -> tuple[tuple[Request, ...], tuple[Request, ...]]:
        """(contexts, generations) of the study's batch at this token count. Raises ValueError where there is none."""
        point, batch = self.job.points[0], self.job.batch
        return requests_of(
            point.phase,
            num_tokens,
            point.context_len,
            num_contexts=batch.num_contexts,
            num_generations=batch.num_generations,
            next_n=batch.next_n,
        )

    def variations(self, num_tokens: int, below: int = 0) -> tuple[Variation, ...]:
        """Batches to replay a graph of num_tokens with; below: the next smaller captured size."""
        if (num_tokens, below) not in self._variations:
            spec = self.job.layer
            short_len = spec.shape.index_topk if spec.options.skip_indexer_for_short_seqs else 0
            found = variations(*self.requests(num_tokens), num_tokens_below=below, short_len=short_len)
            self._variations[num_tokens, below] = found
        return self._variations[num_tokens, below]

    def captured_with(self, point: Point, size: int) -> list[tuple[int, Variation]]:
        """The batches that a size is captured with, the study's own last; by number.

        A full graph freezes whether the indexer is skipped, so engines capture decode short and long.
        """
        every = list(enumerate(self.variations(size)))
        return [each for each in every[1:] if point.mode == "full" and each[1].name == SHORT] + every[:1]

    def load(self, num_tokens: int) -> Batch:
        """Put the study's own batch of this token count in place."""
        return self.load_variation(self.variations(num_tokens)[0], 0)

    def load_variation(self, variation: Variation, number: int) -> Batch:
        """Describe a batch in the metadata and put its inputs into the buffers; number draws its pages and inputs."""
        seed = self.job.batch.seed + number
        batch = place(variation.contexts, variation.generations, num_blocks=self.num_blocks, seed=seed)
        self.metadata.prepare(batch)
        self.batch, self.loaded = batch, (number, variation)
        self.buffers.load(position_ids=inputs.position_ids(batch, self.device))
        self.load_hidden(number % INPUT_SETS, batch.num_tokens)
        return batch

    def load_hidden(self, number: int, num_tokens: int) -> None:
        """Put the first rows of input set `number` into the buffers."""
        self.buffers.load(hidden_states=self.hidden_sets[number][:num_tokens])

    def spoil_padding(self, num_tokens: int, rows: int) -> None:
        """NaN in the padding rows: whatever leaks from them shows."""
        hidden, _ = self.buffers.slice(rows)
        hidden[num_tokens:].fill_(torch.nan)

    @contextmanager
    def kept_caches(self) -> Iterator[None]:
        """The cache rows that the present batch writes, as they were, once the block is left."""
        saved = save_rows(self.caches, self.metadata)
        try:
            yield
        finally:
            saved.restore()

    def poison_caches(self) -> None:
        """NaN where the present batch will write: a cache that is not updated shows."""
        poison_rows(self.caches, self.metadata)

    def cache_sums(self) -> Tensor:
        """[pools] int64: a checksum of every page that requests may own."""
        pools = (self.caches.latent, *self.caches.index_k)
        return torch.stack([pool[: self.num_blocks].view(torch.int64).sum() for pool in pools])

    def cache_rows(self) -> Tensor:
        """[n] uint8: every byte of the cache rows that the present batch writes, copied."""
        rows = save_rows(self.caches, self.metadata)
        parts = (rows.latent, *rows.codes, *rows.scales)
        return torch.cat([part.contiguous().view(torch.uint8).flatten() for part in parts])

    def arm(self, point: Point) -> Arm:
        """The Point's runner; Points of one way and tiles share it, so the module is traced once."""
        key = (point.way, point.tiles_label)
        if key not in self._arms:
            self._arms[key] = build_arm(self.job, point, self.stack, self.buffers, self.metadata, self.group)
        return self._arms[key].at(point)

    def capture_sizes(self, point: Point) -> tuple[int, ...]:
        """What the Point's runner captures, largest first."""
        sizes = self.job.capture.sizes if point.mode in BUCKETED_MODES else None
        return self.sizes if sizes is None else tuple(sorted(sizes, reverse=True))

    @property
    def weights_bytes(self) -> int:
        return tensor_bytes(self.stack.parameters())

    @property
    def caches_bytes(self) -> int:
        return tensor_bytes((self.caches.latent, *self.caches.index_k))

    @property
    def buffers_bytes(self) -> int:
        return self.buffers.num_bytes + self.metadata.num_bytes

    def _possible_sizes(self) -> list[int]:
        """Token counts of the Points, and of those buckets for which the study's batch exists."""
        possible = list(self.sizes)
        for size in self.job.capture.sizes or ():
            try:
                self.requests(size)
            except ValueError:
                continue
            possible.append(size)
        return possible

    def _layer_weights(self, number: int) -> dict[str, Tensor]:
        weights = self._read_weights(number)
        return weights if self.job.layer.options.linear == "bf16" else through_blocks(weights)

    def _read_weights(self, number: int) -> dict[str, Tensor]:
        spec = self.job.layer
        mlp, source = spec.mlp == "dense", spec.weights
        if source.safetensors is None:
            rank = self.group.rank if self.group.world > 1 else None
            return random_weights(spec.shape, seed=source.seed + number, mlp=mlp, device=self.device, rank=rank)
        path, layer = Path(source.safetensors), source.layer + number
        return checkpoint_weights(path, layer, spec.shape, mlp=mlp, device=self.device, rank=self.group.rank)


def _whole_blocks(num_tokens: int) -> int:
    return -(-num_tokens // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK


def cells(points: Sequence[Point]) -> list[list[Point]]:
    """Points grouped by what an interleaved comparison shares, in order of first appearance."""
    grouped: dict[str, list[Point]] = {}
    for point in points:
        grouped.setdefault(point.cell, []).append(point)
    return list(grouped.values())
