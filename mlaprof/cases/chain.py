"""A kernel that replaces a chain of torch operations: the chain is its oracle and torch's form of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mlaprof import peers
from mlaprof.cases.case import Choices, Precision, no_tiles, own_tiles, sampled, tensors
from mlaprof.facts import Check
from mlaprof.kernel_shapes import OWN
from mlaprof.kernels.work import Work
from mlaprof.peers import Prepared, Unavailable

Results = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Chain:
    """own and torch return what they made.

    own      takes its tiles where choose is given
    choose   what each form chooses for this shape; None where the launcher alone decides
    compare  what is wanted and what came, each the results' rows of the sampled tokens
    by_token the results as tensors of one row a token
    peer     operands of the providers' adapters; None where no other package has this kernel
    """

    kernel: str
    work: Work
    device: torch.device
    num_tokens: int
    shape: Mapping[str, int]
    own: Callable[..., object]
    torch: Prepared
    compare: Callable[[Results, Results], list[Check]]
    by_token: Callable[[Results], Results] = lambda results: results
    choose: Choices | None = None
    peer: tuple[object, ...] | None = None
    precision: Precision = ""

    def call(self, provider: str, tiles: Mapping[str, int] | None = None) -> Prepared:
        if provider in OWN:
            if self.choose is None:
                no_tiles(self.kernel, provider, tiles, self.device)
                return self.own
            return partial(self.own, own_tiles(self, provider, tiles, self.device, self.choose))
        if provider == "torch":
            return self.torch
        if self.peer is None:
            raise Unavailable(f"{provider} has no {self.kernel}")
        return peers.adapter(provider, self.kernel)(*self.peer)

    def check(self, result: object) -> list[Check]:
        rows = sampled(self.num_tokens)
        # Indexing copies: the oracle may write where the kernel has written.
        got = tuple(x[rows] for x in self.by_token(tensors(result)))
        want = tuple(x[rows] for x in self.by_token(tensors(self.torch())))
        if len(got) != len(want):
            raise ValueError(f"{self.kernel}: expected {len(want)} results, got {len(got)}")
        return self.compare(want, got)
