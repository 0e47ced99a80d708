"""A module called as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.program import Prepared, largest_first


class EagerRunner:
    """Calls the module, at the true token count."""

    def __init__(self, module: nn.Module, buffers: InputBuffers) -> None:
        self._module = module
        self._buffers = buffers

    def prepare(self, sizes: Sequence[int]) -> tuple[Prepared, ...]:
        return tuple(self.facts(size) for size in largest_first(sizes, self._buffers))

    def run(self, num_tokens: int) -> Tensor:
        return cast(Tensor, self._module(*self._buffers.slice(num_tokens)))

    def facts(self, num_tokens: int) -> Prepared:
        return Prepared(num_tokens, captured_segments=0, eager_segments=1, graph_launches=0, graph_nodes=0)
