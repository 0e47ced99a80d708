"""A module called as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.program import Named, Piece, Prepared, Program, State, largest_first


class EagerRunner:
    """Calls the module, at the true token count."""

    stop: str | None = None

    def __init__(self, module: nn.Module, buffers: InputBuffers) -> None:
        self._module = module
        self._buffers = buffers

    def prepare(self, sizes: Sequence[int]) -> tuple[Prepared, ...]:
        return tuple(self.facts(size) for size in largest_first(sizes, self._buffers))

    def run(self, num_tokens: int) -> Tensor:
        return cast(Tensor, self._module(*self._buffers.slice(num_tokens)))

    def verified_run(self, num_tokens: int) -> Tensor:
        return self.run(num_tokens)

    def named_run(self, num_tokens: int, named: Named) -> Tensor:
        return eager_program(self._module, self._buffers, num_tokens, "eager").named_run(named)

    def facts(self, num_tokens: int) -> Prepared:
        return eager_program(self._module, self._buffers, num_tokens, "eager").prepared

    def pieces(self, num_tokens: int) -> tuple[Piece, ...]:
        return eager_program(self._module, self._buffers, num_tokens, "eager").pieces


def eager_program(module: nn.Module, buffers: InputBuffers, num_tokens: int, state: State) -> Program:
    """The module called as it is, on its first num_tokens rows."""
    inputs = buffers.slice(num_tokens)
    prepared = Prepared(num_tokens, state, captured_segments=0, eager_segments=1, graph_launches=0)
    return Program(prepared, (Piece("module", "eager"),), produce=lambda: cast(Tensor, module(*inputs)))
