"""Everything Op 2 knows of a batch: host counts and fixed-address device buffers.

`prepare` fills pinned host twins and copies them, non-blocking, into prefixes of buffers that are never re-allocated,
so a captured graph keeps reading the right addresses. That goes for the full-KV mapping and the bounds of the prefill
chunks too, which upstream allocates afresh each step: a full graph with context requests would replay dead pointers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlaprof.layer import cache
from mlaprof.layer.batch import Batch
from mlaprof.layer.chunks import Chunk, causal_bounds, split_prefill_chunks
from mlaprof.shapes import TOKENS_PER_BLOCK


class Twin:
    """A device buffer of fixed size and address with its pinned host twin."""

    def __init__(self, size: tuple[int, ...], dtype: torch.dtype, device: torch.device, fill: int = 0) -> None:
        self.device = torch.full(size, fill, dtype=dtype, device=device)
        self.host = torch.full(size, fill, dtype=dtype, pin_memory=device.type == "cuda")

    def upload(self, values: Tensor) -> None:
        """Copy values into the prefix of the host twin, and from there into the device buffer."""
        if values.shape[0] > self.host.shape[0]:
            raise ValueError(f"metadata buffer: expected at most {self.host.shape[0]} rows, got {values.shape[0]}")
        self.host[: values.shape[0]].copy_(values)
        self.device[: values.shape[0]].copy_(self.host[: values.shape[0]], non_blocking=True)


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


@dataclass(frozen=True)
class DeviceChunk:
    """A Chunk whose causal bounds are on the device: int32 views at fixed addresses."""

    plan: Chunk
    ks: Tensor
    ke: Tensor


class AttnMetadata:
    """One batch at a time; see MetadataLimits for how large. Host values are plain ints."""

    def __init__(self, limits: MetadataLimits, caches: cache.Caches, device: torch.device) -> None:
        self.limits = limits
        self.caches = caches
        self.device = device
        tokens, requests = limits.max_num_tokens, limits.max_num_requests
        self.max_blocks_per_seq = -(-limits.max_seq_len // TOKENS_PER_BLOCK)
        self._kv_lens = Twin((requests,), torch.int32, device)
        self._block_table = Twin((requests, self.max_blocks_per_seq), torch.int32, device, fill=-1)
        self._req_idx_per_token = Twin((tokens,), torch.int32, device)
        self._positions = Twin((tokens,), torch.int64, device)
        self._slot_mapping_fp8 = Twin((tokens,), torch.int64, device)
        self._slot_mapping_scale = Twin((tokens,), torch.int64, device)
        self._latent_rows = Twin((tokens,), torch.int64, device)
        self._cu_seqlen_ks = Twin((tokens,), torch.int32, device)
        self._cu_seqlen_ke = Twin((tokens,), torch.int32, device)
        self._chunk_ks = Twin((tokens,), torch.int32, device)
        self._chunk_ke = Twin((tokens,), torch.int32, device)
        ctx_kv_tokens = limits.ctx_kv_tokens
        self._fullkv_fp8 = Twin((ctx_kv_tokens,), torch.int64, device)
        self._fullkv_scale = Twin((ctx_kv_tokens,), torch.int64, device)
        self._ctx_kv_rows = Twin((ctx_kv_tokens,), torch.int64, device)
        width = limits.index_topk or limits.max_seq_len
        self.dense_topk = torch.full((tokens, width), -1, dtype=torch.int32, device=device)
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

    @property
    def num_bytes(self) -> int:
        """Device bytes of the fixed buffers."""
        twins = [twin.device for twin in vars(self).values() if isinstance(twin, Twin)]
        return sum(buffer.nbytes for buffer in (*twins, self.dense_topk))

    def addresses(self) -> dict[str, int]:
        """Device address of every fixed buffer: equal before and after any prepare()."""
        found = {name: twin.device.data_ptr() for name, twin in vars(self).items() if isinstance(twin, Twin)}
        return found | {"dense_topk": self.dense_topk.data_ptr()}

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
        self._slot_mapping_fp8.upload(fp8)
        self._slot_mapping_scale.upload(scale)
        self._latent_rows.upload(cache.latent_slot_rows(block_id, in_block, self.caches.stride_factor))
        self._prepare_contexts(batch, table)
        if self._uploaded is not None:
            self._uploaded.record()
        self._fill_dense_topk()

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
        if not batch.contexts:
            return
        ks, ke = causal_bounds(batch.contexts)
        self._cu_seqlen_ks.upload(torch.tensor(ks, dtype=torch.int32))
        self._cu_seqlen_ke.upload(torch.tensor(ke, dtype=torch.int32))

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

    def _fill_dense_topk(self) -> None:
        """Rows 0..position, then -1: what the indexer would select while everything fits in index_topk."""
        column = torch.arange(self.dense_topk.shape[1], dtype=torch.int32, device=self.device)
        rows = self.dense_topk[: self.num_tokens]
        rows.copy_(column)
        rows.masked_fill_(column > self.positions[:, None], -1)
