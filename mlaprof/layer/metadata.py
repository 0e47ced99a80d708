"""Everything Op 2 knows of a batch: host counts and fixed-address device buffers.

`prepare` fills pinned host twins and copies them, non-blocking, into prefixes of buffers that are never re-allocated,
so a captured graph keeps reading the right addresses. That goes for the full-KV mapping and the bounds of the prefill
chunks too, which upstream allocates afresh each step: a full graph with context requests would replay dead pointers.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mlaprof.layer import cache
from mlaprof.layer.batch import Batch
from mlaprof.layer.buffers import FixedBuffers
from mlaprof.layer.chunks import Chunk, causal_bounds, split_prefill_chunks
from mlaprof.shapes import TOKENS_PER_BLOCK
from mlaprof.study import Boundary


@dataclass(frozen=True)
class MetadataLimits:
    """Sizes of the fixed buffers; the largest batch that prepare() will take."""

    max_num_tokens: int
    max_num_requests: int
    max_seq_len: int  # width of decode's logits too, so that replay covers growth
    index_topk: int
    indexer_max_chunk_size: int = 32_768
    skip_indexer_for_short_seqs: bool = True
    max_ctx_kv_tokens: int | None = None  # cached and new tokens of all contexts together; None: no tighter limit

    @property
    def ctx_kv_tokens(self) -> int:
        loose = self.max_num_requests * self.max_seq_len
        return loose if self.max_ctx_kv_tokens is None else min(self.max_ctx_kv_tokens, loose)


class ControlFlow(NamedTuple):
    """What the Python of a compiled step reads of a batch, and a graph freezes."""

    num_contexts: int
    num_generations: int
    num_ctx_tokens: int
    num_tokens: int
    num_ctx_kv_tokens: int
    next_n: int
    has_cached_context: bool
    skip_indexer_for_ctx_reqs: bool
    skip_indexer_for_gen_reqs: bool
    chunks: tuple[tuple[int, int, int, int], ...] | None  # (q_start, q_end, k_start, k_end)
    ctx_lens: tuple[tuple[int, int], ...]  # of plain MLA, whose dense attention goes request by request; else empty


@dataclass(frozen=True)
class DeviceChunk:
    """A Chunk whose causal bounds are on the device: int32 views at fixed addresses."""

    plan: Chunk
    ks: Tensor
    ke: Tensor


class AttnMetadata(FixedBuffers):
    """One batch at a time; see MetadataLimits for how large. Host values are plain ints."""

    def __init__(self, limits: MetadataLimits, caches: cache.Caches, device: torch.device) -> None:
        self.limits = limits
        self.max_blocks_per_seq = -(-limits.max_seq_len // TOKENS_PER_BLOCK)
        super().__init__(
            caches,
            device,
            tokens=limits.max_num_tokens,
            requests=limits.max_num_requests,
            blocks_per_seq=self.max_blocks_per_seq,
            ctx_kv_tokens=limits.ctx_kv_tokens,
            topk_width=limits.index_topk or limits.max_seq_len,
        )
        self._dense_rows = 0  # rows of dense_topk that hold something else than -1
        self._uploaded = torch.cuda.Event() if device.type == "cuda" else None
        self._clear()

    def _clear(self) -> None:
        self.num_contexts = self.num_generations = 0
        self.num_ctx_tokens = self.num_tokens = self.num_ctx_kv_tokens = 0
        self.max_ctx_kv_len = self.max_gen_kv_len = 0
        self.next_n = 1
        self.ctx_lens: tuple[tuple[int, int], ...] = ()  # (new, total) tokens of each context request
        self.has_cached_context = False
        self.skip_indexer_for_ctx_reqs = self.skip_indexer_for_gen_reqs = False
        self.prefill_chunks: tuple[DeviceChunk, ...] | None = None
        self._control_flow: ControlFlow | None = None

    # Prefix views of the fixed buffers; their addresses never change.
    @property
    def kv_lens(self) -> Tensor:
        """[num_requests] int32: cached and new tokens."""
        return self._kv_lens.device[: self.num_contexts + self.num_generations]

    @property
    def block_table(self) -> Tensor:
        """[num_requests, max_blocks_per_seq] int32; -1 beyond a request's pages."""
        return self._block_table.device[: self.num_contexts + self.num_generations]

    @property
    def req_idx_per_token(self) -> Tensor:
        return self._req_idx_per_token.device[: self.num_tokens]

    @property
    def positions(self) -> Tensor:
        """[num_tokens] int64: absolute position of each new token."""
        return self._positions.device[: self.num_tokens]

    @property
    def visible(self) -> Tensor:
        """[num_tokens] int32: how many positions of its request each new token sees, its own included."""
        return self._visible.device[: self.num_tokens]

    @property
    def slot_mapping_fp8(self) -> Tensor:
        return self._slot_mapping_fp8.device[: self.num_tokens]

    @property
    def slot_mapping_scale(self) -> Tensor:
        return self._slot_mapping_scale.device[: self.num_tokens]

    @property
    def latent_rows(self) -> Tensor:
        """[num_tokens] int64: flat latent rows of layer 0 that take this step's tokens."""
        return self._latent_rows.device[: self.num_tokens]

    @property
    def cu_seqlen_ks(self) -> Tensor:
        return self._cu_seqlen_ks.device[: self.num_ctx_tokens]

    @property
    def cu_seqlen_ke(self) -> Tensor:
        return self._cu_seqlen_ke.device[: self.num_ctx_tokens]

    @property
    def slot_mapping_fp8_fullkv(self) -> Tensor:
        """[cached and new tokens of all contexts] int64; without cached tokens, that of the new ones."""
        twin = self._fullkv_fp8 if self.has_cached_context else self._slot_mapping_fp8
        return twin.device[: self.num_ctx_kv_tokens]

    @property
    def slot_mapping_scale_fullkv(self) -> Tensor:
        twin = self._fullkv_scale if self.has_cached_context else self._slot_mapping_scale
        return twin.device[: self.num_ctx_kv_tokens]

    @property
    def ctx_kv_rows(self) -> Tensor:
        """[cached and new tokens of all contexts] int64: flat latent rows of layer 0, request after request."""
        return self._ctx_kv_rows.device[: self.num_ctx_kv_tokens]

    def control_flow(self) -> Hashable:
        """Batches with equal values may share one graph of the whole step, captured under the compile flag."""
        return self._control_flow

    def proj_control_flow(self, boundary: Boundary) -> Hashable:
        """The same for a graph of Op 1 alone: nothing, unless it selects."""
        if boundary != "logits":
            return ()
        selects_from_new_keys = self.num_generations == 0 and self.prefill_chunks is None
        return self.skip_indexer_for_ctx_reqs, selects_from_new_keys

    def prepare(self, batch: Batch) -> None:
        """Describe batch in the buffers. Raises ValueError when it exceeds the limits."""
        self._check(batch)
        if self._uploaded is not None:
            self._uploaded.synchronize()  # the host twins may still be read for the batch before
        self._clear()
        self._count(batch)
        requests = batch.requests
        table = torch.full((len(requests), self.max_blocks_per_seq), -1, dtype=torch.int32)
        for row, (request, pages) in enumerate(zip(requests, batch.pages, strict=True)):
            table[row, : request.num_blocks] = torch.tensor(pages[: request.num_blocks], dtype=torch.int32)
        new = torch.tensor([r.new_tokens for r in requests], dtype=torch.int64)
        cached = torch.tensor([r.cached_tokens for r in requests], dtype=torch.int64)
        req_idx = torch.repeat_interleave(torch.arange(len(requests)), new)
        positions = torch.arange(self.num_tokens) - (new.cumsum(0) - new)[req_idx] + cached[req_idx]
        block_id, in_block = cache.slots(table, req_idx, positions)
        fp8, scale = cache.index_slot_bytes(block_id, in_block)

        self._kv_lens.upload(new + cached)
        self._block_table.upload(table)
        self._req_idx_per_token.upload(req_idx)
        self._positions.upload(positions)
        self._visible.upload(positions + 1)
        self._slot_mapping_fp8.upload(fp8)
        self._slot_mapping_scale.upload(scale)
        self._latent_rows.upload(cache.latent_slot_rows(block_id, in_block, self.caches.stride_factor))
        self._prepare_contexts(batch, table)
        if self._uploaded is not None:
            self._uploaded.record()
        self._fill_dense_topk()
        self.dense_topk[self.num_tokens : self._dense_rows].fill_(-1)
        self._dense_rows = self.num_tokens
        self._control_flow = self._frozen()

    def on_update_kv_lens(self) -> None:
        """Re-derive positions, slots and the dense table of the generation tokens from kv_lens on the device.

        The formulas are those of prepare(); nothing is read back, nothing re-allocated in the buffers, so it may run
        inside a capture.
        """
        start, count = self.num_ctx_tokens, self.num_tokens - self.num_ctx_tokens
        req_idx = self.req_idx_per_token[start:].long()
        offset = torch.arange(count, device=self.device) % self.next_n
        positions = self.kv_lens[req_idx].long() - self.next_n + offset
        block_id, in_block = cache.slots(self.block_table, req_idx, positions)
        # Graph padding may carry stale negatives.
        fp8, scale = cache.index_slot_bytes(block_id.clamp_min(0), in_block)
        self.positions[start:].copy_(positions)
        self.visible[start:].copy_(positions + 1)
        self.slot_mapping_fp8[start:].copy_(fp8)
        self.slot_mapping_scale[start:].copy_(scale)
        rows = cache.latent_slot_rows(block_id.clamp_min(0), in_block, self.caches.stride_factor)
        self.latent_rows[start:].copy_(rows)
        self._fill_dense_topk()

    def _check(self, batch: Batch) -> None:
        limits = self.limits
        for name, got, most in (
            ("num_tokens", batch.num_tokens, limits.max_num_tokens),
            ("requests", len(batch.requests), limits.max_num_requests),
            ("kv_len", batch.max_kv_len, limits.max_seq_len),
            ("context kv_len together", sum(r.kv_len for r in batch.contexts), limits.ctx_kv_tokens),
        ):
            if got > most:
                raise ValueError(f"{name}: expected at most {most}, got {got}")
        lengths = {request.new_tokens for request in batch.generations}
        if len(lengths) > 1:
            raise ValueError(f"generation requests: expected equal query lengths, got {sorted(lengths)}")

    def _count(self, batch: Batch) -> None:
        self.num_contexts, self.num_generations = len(batch.contexts), len(batch.generations)
        self.num_ctx_tokens, self.num_tokens = batch.num_ctx_tokens, batch.num_tokens
        self.num_ctx_kv_tokens = sum(r.kv_len for r in batch.contexts)
        self.max_ctx_kv_len = max((r.kv_len for r in batch.contexts), default=0)
        self.max_gen_kv_len = max((r.kv_len for r in batch.generations), default=0)
        self.next_n = batch.generations[0].new_tokens if batch.generations else 1
        self.ctx_lens = tuple((r.new_tokens, r.kv_len) for r in batch.contexts)
        self.has_cached_context = any(r.cached_tokens for r in batch.contexts)
        if self.limits.skip_indexer_for_short_seqs:
            self.skip_indexer_for_ctx_reqs = self.max_ctx_kv_len <= self.limits.index_topk
            self.skip_indexer_for_gen_reqs = self.max_gen_kv_len <= self.limits.index_topk

    def _prepare_contexts(self, batch: Batch, table: Tensor) -> None:
        ks, ke = causal_bounds(batch.contexts)
        self._cu_seqlen_ks.upload(torch.tensor(ks, dtype=torch.int32))
        self._cu_seqlen_ke.upload(torch.tensor(ke, dtype=torch.int32))
        if not batch.contexts:
            return

        lengths = torch.tensor([r.kv_len for r in batch.contexts], dtype=torch.int64)
        req_idx = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        positions = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths)[req_idx]
        block_id, in_block = cache.slots(table, req_idx, positions)
        rows = cache.latent_slot_rows(block_id, in_block, self.caches.stride_factor)
        self._ctx_kv_rows.upload(rows)
        if self.has_cached_context:
            fp8, scale = cache.index_slot_bytes(block_id, in_block)
            self._fullkv_fp8.upload(fp8)
            self._fullkv_scale.upload(scale)

        chunks = split_prefill_chunks(batch.contexts, self.limits.indexer_max_chunk_size)
        if len(chunks) == 1 and not self.has_cached_context:
            return  # one pass straight from the freshly quantised keys
        # The chunks cut the context tokens without gap or overlap, so their bounds lie end to end.
        self._chunk_ks.upload(torch.tensor([ks for chunk in chunks for ks in chunk.ks], dtype=torch.int32))
        self._chunk_ke.upload(torch.tensor([ke for chunk in chunks for ke in chunk.ke], dtype=torch.int32))
        bounds = self._chunk_ks.device, self._chunk_ke.device
        self.prefill_chunks = tuple(
            DeviceChunk(chunk, *(buffer[chunk.q_start : chunk.q_end] for buffer in bounds)) for chunk in chunks
        )

    def _frozen(self) -> ControlFlow:
        chunks = None if self.prefill_chunks is None else [chunk.plan for chunk in self.prefill_chunks]
        return ControlFlow(
            num_contexts=self.num_contexts,
            num_generations=self.num_generations,
            num_ctx_tokens=self.num_ctx_tokens,
            num_tokens=self.num_tokens,
            num_ctx_kv_tokens=self.num_ctx_kv_tokens,
            next_n=self.next_n,
            has_cached_context=self.has_cached_context,
            skip_indexer_for_ctx_reqs=self.skip_indexer_for_ctx_reqs,
            skip_indexer_for_gen_reqs=self.skip_indexer_for_gen_reqs,
            chunks=None if chunks is None else tuple((c.q_start, c.q_end, c.k_start, c.k_end) for c in chunks),
            ctx_lens=() if self.limits.index_topk else self.ctx_lens,
        )

    def _fill_dense_topk(self) -> None:
        """Rows 0..position, then -1: what the indexer would select while everything fits in index_topk."""
        column = torch.arange(self.dense_topk.shape[1], dtype=torch.int32, device=self.device)
        rows = self.dense_topk[: self.num_tokens]
        rows.copy_(column)
        rows.masked_fill_(column > self.positions[:, None], -1)
