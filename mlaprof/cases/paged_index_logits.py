"""The indexer's scores of cached keys (paged decode)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlaprof import peers
from mlaprof.cases.case import (
    FP8,
    Choices,
    Precision,
    close_scores,
    generator,
    normal,
    own_tiles,
    quantised,
    sampled,
    slices,
    tensors,
)
from mlaprof.facts import Check
from mlaprof.kernel_shapes import OWN
from mlaprof.kernels import reference
from mlaprof.kernels.paged_logits import paged_index_logits
from mlaprof.kernels.work import Work
from mlaprof.kernels.work.paged_logits import paged_index_logits as work_of
from mlaprof.peers import Prepared

HEAD_DIM = 128
PAGE, PAGE_BYTES, CODE_BYTES = 64, 64 * 132, 64 * 128
NAN_BYTE = 0xFF  # NaN as e4m3, and four of them as fp32


@dataclass(frozen=True, eq=False)
class PagedIndexLogits:
    """Positions beyond a row's own end are anybody's: they are not compared."""

    shape: Mapping[str, int]
    q: Tensor  # [batch, next_n, heads, 128] e4m3
    cache: Tensor  # [num_blocks, 8448] uint8, NaN beyond each request's length
    weights: Tensor  # [batch * next_n, heads] fp32
    kv_lens: Tensor  # [batch] int32
    block_table: Tensor  # [batch, max_blocks] int32
    max_len: int
    work: Work
    kernel: str = "paged_index_logits"
    precision: Precision = "fp8"

    def call(self, provider: str, tiles: Mapping[str, int] | None = None) -> Prepared:
        operands = (self.q, self.cache, self.weights, self.kv_lens, self.block_table, self.max_len)
        if provider in OWN:
            batch, next_n, heads, _ = self.q.shape
            choose: Choices = {
                "triton": lambda form: form.choose(batch, self.max_len),
                "hopper": lambda form: form.choose(batch, self.max_len) if form.fits(next_n, heads) else None,
            }
            chosen = own_tiles(self, provider, tiles, self.q.device, choose)
            return lambda: paged_index_logits(*operands, chosen)
        if provider == "torch":
            return self._torch()
        return peers.adapter(provider, self.kernel)(*operands)

    def check(self, result: object) -> list[Check]:
        (logits,) = tensors(result, 1)
        next_n = self.q.shape[1]
        requests = sampled(self.q.shape[0])
        q, kv_lens, table = (x[requests] for x in (self.q, self.kv_lens, self.block_table))
        weights, got = (x.unflatten(0, (-1, next_n))[requests].flatten(0, 1) for x in (self.weights, logits))

        def oracle(weights: Tensor) -> Tensor:
            return reference.paged_index_logits(q, self.cache, weights, kv_lens, table, self.max_len)

        return close_scores(oracle, weights, got)

    def _torch(self) -> Prepared:
        """Gathers each request's pages as bf16, then a batched product; a score is rounded to 8 bits before the sum."""
        batch, next_n, heads, _ = self.q.shape
        kv_len = self.shape["kv_len"]
        queries = self.q.bfloat16().flatten(1, 2)  # [batch, next_n * heads, 128]
        weights = self.weights.bfloat16().view(batch, next_n, 1, heads)
        pages = self.block_table[:, : -(-kv_len // PAGE)].long()
        parts = slices(batch, 2 * kv_len * (HEAD_DIM + next_n * heads))

        def run() -> Tensor:
            logits = torch.empty(batch, next_n, self.max_len, dtype=torch.float32, device=self.q.device)
            for part in parts:
                rows = self.cache[pages[part]]  # [requests, pages, bytes]
                keys = rows[..., :CODE_BYTES].view(FP8).bfloat16().view(len(rows), -1, HEAD_DIM)
                scale = rows[..., CODE_BYTES:].contiguous().view(torch.float32).flatten(1)
                dots = (queries[part] @ keys.mT).relu_().unflatten(1, (next_n, heads))
                scores = (weights[part] @ dots)[:, :, 0] * scale[:, None]
                logits[part, :, :kv_len] = scores[..., :kv_len]
            return logits.flatten(0, 1)

        return run


def build(shape: Mapping[str, int], seed: int, device: torch.device) -> PagedIndexLogits:
    batch, kv_len, next_n, heads = (shape[name] for name in ("batch", "kv_len", "next_n", "index_n_heads"))
    max_len = shape["max_len"] or kv_len
    random = generator(seed, device)
    pages = -(-kv_len // PAGE)
    order = torch.randperm(batch * pages, generator=random, device=device).int().view(batch, pages)
    table = torch.full((batch, -(-max_len // PAGE)), -1, dtype=torch.int32, device=device)
    table[:, :pages] = order
    return PagedIndexLogits(
        shape=shape,
        q=normal(batch, next_n, heads, HEAD_DIM, random=random).to(FP8),
        cache=_filled_pages(batch * pages, order, kv_len, random),
        weights=normal(batch * next_n, heads, random=random, dtype=torch.float32),
        kv_lens=torch.full((batch,), kv_len, dtype=torch.int32, device=device),
        block_table=table,
        max_len=max_len,
        work=work_of(batch, kv_len, next_n, num_heads=heads),
    )


def _filled_pages(num_blocks: int, order: Tensor, kv_len: int, random: torch.Generator) -> Tensor:
    """Pages of quantised keys; what lies beyond a request's length in its last page is NaN."""
    cache = torch.full((num_blocks, PAGE_BYTES), NAN_BYTE, dtype=torch.uint8, device=random.device)
    for part in slices(num_blocks, 8 * CODE_BYTES):
        codes, scale = quantised(normal(part.stop - part.start, PAGE, HEAD_DIM, random=random))
        cache[part, :CODE_BYTES] = codes.view(torch.uint8).flatten(1)
        cache[part, CODE_BYTES:] = scale.view(torch.uint8)
    if used := kv_len % PAGE:
        last = order[:, -1].long()
        cache[last, used * HEAD_DIM : CODE_BYTES] = NAN_BYTE
        cache[last, CODE_BYTES + 4 * used :] = NAN_BYTE
    return cache
