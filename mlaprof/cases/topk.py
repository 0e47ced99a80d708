"""The k largest scores of every row, as a set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlaprof import peers
from mlaprof.cases.case import Choices, Precision, generator, normal, own_tiles, sampled, tensors
from mlaprof.facts import Check
from mlaprof.kernel_shapes import OWN
from mlaprof.kernels.topk import topk
from mlaprof.kernels.work import Work
from mlaprof.kernels.work.topk import topk as work_of
from mlaprof.peers import Prepared


@dataclass(frozen=True, eq=False)
class TopK:
    """Sets are compared by their values, so that equal scores may be chosen between freely."""

    shape: Mapping[str, int]
    logits: Tensor  # [rows, width] fp32
    ends: Tensor  # [rows] int32
    k: int
    work: Work
    kernel: str = "topk"
    precision: Precision = ""

    def call(self, provider: str, tiles: Mapping[str, int] | None = None) -> Prepared:
        if provider in OWN:
            rows, width = self.logits.shape
            choose: Choices = {
                "triton": lambda form: form.choose(rows, width),
                "hopper": lambda form: form.choose(rows, width) if width <= form.MAX_WIDTH else None,
            }
            chosen = own_tiles(self, provider, tiles, self.logits.device, choose)
            return lambda: topk(self.logits, None, self.ends, self.k, chosen)
        if provider == "torch":
            k = min(self.k, self.logits.shape[1])
            return lambda: torch.topk(self.logits, k, dim=1, sorted=False).indices
        return peers.adapter(provider, self.kernel)(self.logits, self.ends, self.k)

    def check(self, result: object) -> list[Check]:
        (picked,) = tensors(result, 1)
        wrong_values = wrong_places = 0
        for row in sampled(self.logits.shape[0]):
            end = int(self.ends[row])
            count = min(self.k, end)
            places = picked[row].long()
            places = places[places >= 0]
            legal = places[places < end].unique()
            # Repeated, beyond the end, too few or too many: each is a place missed.
            wrong_places += max(abs(len(places) - count), count - len(legal))
            want = self.logits[row, :end].topk(count).values
            got = self.logits[row, legal].sort(descending=True).values
            wrong_values += int((want[: len(got)] != got[:count]).sum()) + abs(count - len(got))
        return [
            Check(name="positions repeated, missing or out of range", value=float(wrong_places), limit=0.0),
            Check(name="values not among the k largest", value=float(wrong_values), limit=0.0),
        ]


def build(shape: Mapping[str, int], seed: int, device: torch.device) -> TopK:
    rows, width, k = shape["num_rows"], shape["width"], shape["k"]
    return TopK(
        shape=shape,
        logits=normal(rows, width, random=generator(seed, device), dtype=torch.float32),
        ends=torch.full((rows,), width, dtype=torch.int32, device=device),
        k=k,
        work=work_of(rows, width, k),
    )
