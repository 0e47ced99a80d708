"""Absorbed attention over selected rows of a latent cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlaprof import peers
from mlaprof.cases.case import (
    FP8,
    GROUP,
    Precision,
    close,
    generator,
    need_device,
    normal,
    own_tiles,
    quantised,
    random_rows,
    sampled,
    slices,
    tensors,
)
from mlaprof.facts import Check
from mlaprof.kernel_shapes import KV_LORA_RANK, OWN, ROPE_DIM
from mlaprof.kernels import reference
from mlaprof.kernels.sparse_attn import sparse_attn
from mlaprof.kernels.work import Work
from mlaprof.kernels.work.sparse_attn import FP8_ROW_BYTES
from mlaprof.kernels.work.sparse_attn import sparse_attn as work_of
from mlaprof.peers import Prepared

WIDTH = KV_LORA_RANK + ROPE_DIM
SCALE_END = KV_LORA_RANK + 4 * (KV_LORA_RANK // GROUP)  # of a packed row: codes, scales, then rope as bf16
SIZE = 0.1  # of queries and rows, so that the softmax is neither flat nor a single row
SOFTMAX_SCALE = 192**-0.5
NAN_BYTE = 0xFF


@dataclass(frozen=True, eq=False)
class SparseAttn:
    """Rows that no token selects are NaN."""

    shape: Mapping[str, int]
    q: Tensor  # [tokens, heads, 576] bf16
    cache: Tensor  # [rows, 576] bf16, or [rows, 656] uint8
    indices: Tensor  # [tokens, topk] int32
    work: Work
    kernel: str = "sparse_attn"
    precision: Precision = "bf16"

    def call(self, provider: str, tiles: Mapping[str, int] | None = None) -> Prepared:
        if provider in OWN:
            return self._own(provider, tiles)
        if provider == "torch":
            return self._torch()
        options = {"next_n": self.shape["next_n"]}
        if provider == "sglang":
            options["is_decode"] = self.shape["num_requests"] > 1
        return peers.adapter(provider, self.kernel)(self.q, self.cache, self.indices, SOFTMAX_SCALE, **options)

    def check(self, result: object) -> list[Check]:
        (out,) = tensors(result, 1)
        tokens = sampled(self.q.shape[0])
        picked = self.indices[tokens]
        # The oracle reads bf16 rows: the selected ones are unpacked, and numbered anew.
        rows = unpacked(self.cache[picked.clamp(min=0).flatten().long()])
        places = torch.arange(picked.numel(), dtype=torch.int32, device=picked.device).view_as(picked)
        want = torch.empty(len(tokens), self.q.shape[1], KV_LORA_RANK, dtype=torch.bfloat16, device=self.q.device)
        renumbered = torch.where(picked >= 0, places, -1)
        reference.sparse_attn(self.q[tokens], rows, renumbered, SOFTMAX_SCALE, out=want)
        return close("output", want, out[tokens])

    def _own(self, provider: str, tiles: Mapping[str, int] | None) -> Prepared:
        """Hopper has a form for few tokens and one for many; between those the launcher chooses."""
        num_tokens, num_heads = self.q.shape[:2]
        topk, is_fp8 = self.indices.shape[1], self.cache.dtype == torch.uint8
        if provider == "hopper" and tiles is None:
            need_device(provider, self.q.device)
            chosen = None
        else:
            choose = {"triton": lambda form: form.choose(num_tokens, num_heads, topk, fp8=is_fp8)}
            chosen = own_tiles(self, provider, tiles, self.q.device, choose)
        out = torch.empty(num_tokens, num_heads, KV_LORA_RANK, dtype=self.q.dtype, device=self.q.device)

        def run() -> Tensor:
            sparse_attn(self.q, self.cache, self.indices, SOFTMAX_SCALE, chosen, out=out)
            return out

        return run

    def _torch(self) -> Prepared:
        """Rows gathered, two batched products, softmax in fp32: what attention is without a kernel of its own."""
        num_tokens, topk = self.indices.shape
        empty = self.indices < 0
        rows_of = self.indices.clamp(min=0).long()
        has_empty = bool(empty.any())
        parts = slices(num_tokens, 2 * topk * (WIDTH + 3 * self.q.shape[1]))

        def run() -> Tensor:
            out = torch.empty(*self.q.shape[:2], KV_LORA_RANK, dtype=self.q.dtype, device=self.q.device)
            for part in parts:
                rows = unpacked(self.cache[rows_of[part]])
                scores = (self.q[part] @ rows.mT).float().mul_(SOFTMAX_SCALE)
                if has_empty:
                    rows = rows.masked_fill(empty[part, :, None], 0.0)
                    scores.masked_fill_(empty[part, None], -torch.inf)
                weights = torch.softmax(scores, dim=-1).to(rows.dtype)
                torch.matmul(weights, rows[..., :KV_LORA_RANK], out=out[part])
            return out

        return run


def build(shape: Mapping[str, int], seed: int, device: torch.device) -> SparseAttn:
    num_tokens, num_rows, num_heads, topk = (shape[name] for name in ("num_tokens", "num_rows", "num_heads", "topk"))
    requests, is_fp8 = shape["num_requests"], bool(shape["fp8_cache"])
    random = generator(seed, device)
    share = num_rows // requests
    indices = random_rows(num_tokens, share, topk, random)
    first = torch.arange(num_tokens, dtype=torch.int32, device=device) // (num_tokens // requests) * share
    indices = torch.where(indices >= 0, indices + first[:, None], -1)
    is_used = torch.zeros(num_rows, dtype=torch.bool, device=device)
    is_used[indices[indices >= 0].long()] = True
    cache = _packed_cache(num_rows, random) if is_fp8 else normal(num_rows, WIDTH, random=random, size=SIZE)
    cache.masked_fill_(~is_used[:, None], NAN_BYTE if is_fp8 else torch.nan)
    return SparseAttn(
        shape=shape,
        q=normal(num_tokens, num_heads, WIDTH, random=random, size=SIZE),
        cache=cache,
        indices=indices,
        # As the peers count: in prefill every gather, in decode each row once.
        work=work_of(
            num_tokens,
            num_heads,
            min(topk, share),
            row_bytes=FP8_ROW_BYTES if is_fp8 else None,
            rows_read=int(is_used.sum()) if requests > 1 else None,
        ),
    )


def unpacked(rows: Tensor) -> Tensor:
    """Rows [..., 576] bf16 of packed ones [..., 656]; bf16 rows as they are."""
    if rows.dtype == torch.bfloat16:
        return rows
    scale = rows[..., KV_LORA_RANK:SCALE_END].contiguous().view(torch.float32)
    codes = rows[..., :KV_LORA_RANK].view(FP8).float().unflatten(-1, (-1, GROUP))
    latent = (codes * scale[..., None]).flatten(-2).bfloat16()
    return torch.cat((latent, rows[..., SCALE_END:].contiguous().view(torch.bfloat16)), dim=-1)


def _packed_cache(num_rows: int, random: torch.Generator) -> Tensor:
    """Packed rows [num_rows, 656]: e4m3 codes, their scales, rope values."""
    cache = torch.empty(num_rows, FP8_ROW_BYTES, dtype=torch.uint8, device=random.device)
    for part in slices(num_rows, 4 * WIDTH):
        values = normal(part.stop - part.start, WIDTH, random=random, size=SIZE)
        codes, scale = quantised(values[:, :KV_LORA_RANK].unflatten(1, (-1, GROUP)))
        cache[part, :KV_LORA_RANK] = codes.view(torch.uint8).flatten(1)
        cache[part, KV_LORA_RANK:SCALE_END] = scale.view(torch.uint8)
        cache[part, SCALE_END:] = values[:, KV_LORA_RANK:].contiguous().view(torch.uint8)
    return cache
