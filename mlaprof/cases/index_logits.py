"""The indexer's scores of one request's keys (ragged prefill)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlaprof import peers
from mlaprof.cases.case import (
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
from mlaprof.kernels.index_logits import index_logits
from mlaprof.kernels.work import Work
from mlaprof.kernels.work.index_logits import index_logits as work_of
from mlaprof.peers import Prepared

HEAD_DIM = 128


@dataclass(frozen=True, eq=False)
class IndexLogits:
    """Scores outside a row's [ks, ke) are anybody's: they are not compared."""

    shape: Mapping[str, int]
    q: Tensor  # [n, heads, 128] e4m3
    k: Tensor  # [m, 128] e4m3
    k_scale: Tensor  # [m] fp32
    weights: Tensor  # [n, heads] fp32
    ks: Tensor  # [n] int32
    ke: Tensor  # [n] int32
    work: Work
    kernel: str = "index_logits"
    precision: Precision = "fp8"

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.q, self.k, self.k_scale, self.weights, self.ks, self.ke

    def call(self, provider: str, tiles: Mapping[str, int] | None = None) -> Prepared:
        if provider in OWN:
            (n, heads, _), m = self.q.shape, self.k.shape[0]
            choose = dict.fromkeys(OWN, lambda form: form.choose(n, m, heads))
            chosen = own_tiles(self, provider, tiles, self.q.device, choose)
            return lambda: index_logits(*self.operands, chosen)
        if provider == "torch":
            return self._torch()
        return peers.adapter(provider, self.kernel)(*self.operands)

    def check(self, result: object) -> list[Check]:
        (logits,) = tensors(result, 1)
        rows = sampled(self.q.shape[0])
        q, ks, ke = (x[rows] for x in (self.q, self.ks, self.ke))

        def oracle(weights: Tensor) -> Tensor:
            return reference.index_logits(q, self.k, self.k_scale, weights, ks, ke)

        return close_scores(oracle, self.weights[rows], logits[rows])

    def _torch(self) -> Prepared:
        """Products in bf16, in which the codes are exact; a score is then rounded to 8 bits before the head sum."""
        queries, keys = self.q.bfloat16(), self.k.bfloat16().T
        heads, m = self.q.shape[1], self.k.shape[0]
        weights = self.weights.bfloat16()[:, None]
        parts = slices(self.q.shape[0], 2 * heads * m)

        def run() -> Tensor:
            logits = torch.empty(self.q.shape[0], m, dtype=torch.float32, device=self.q.device)
            for part in parts:
                dots = (queries[part].flatten(0, 1) @ keys).relu_().view(-1, heads, m)
                torch.mul((weights[part] @ dots)[:, 0], self.k_scale, out=logits[part])
            return logits

        return run


def build(shape: Mapping[str, int], seed: int, device: torch.device) -> IndexLogits:
    n, m, heads = shape["num_queries"], shape["num_keys"], shape["index_n_heads"]
    random = generator(seed, device)
    k, k_scale = quantised(normal(m, HEAD_DIM, random=random))
    ks = torch.zeros(n, dtype=torch.int32, device=device)
    ke = torch.arange(m - n + 1, m + 1, dtype=torch.int32, device=device) if shape["causal"] else ks + m
    return IndexLogits(
        shape=shape,
        q=normal(n, heads, HEAD_DIM, random=random).to(torch.float8_e4m3fn),
        k=k,
        k_scale=k_scale,
        weights=normal(n, heads, random=random, dtype=torch.float32),
        ks=ks,
        ke=ke,
        work=work_of(n, m, causal=shape["causal"], index_n_heads=heads),
    )
