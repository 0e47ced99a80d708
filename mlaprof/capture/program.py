"""What every runner of a module on static inputs answers to, and the program that its runs follow.

All of one study run under the same mode: `torch.inference_mode` is the cheaper one per operator, `torch.no_grad` works
as well. `run` is what submit time measures, so everything that can be known before is worked out in `prepare`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from mlaprof.capture.buffers import InputBuffers

WARMUP_CALLS = 3  # before each capture, as upstream


@dataclass(frozen=True)
class Prepared:
    """How one token count is run. num_tokens counts the rows the work is done on, padding included."""

    num_tokens: int
    captured_segments: int
    eager_segments: int
    graph_launches: int
    graph_nodes: int


class Runner(Protocol):
    """Runs a module on the first num_tokens rows of its input buffers."""

    def prepare(self, sizes: Sequence[int]) -> tuple[Prepared, ...]:
        """Make ready for these token counts, largest first whatever their order; answers in the order done.

        May be called again with further sizes. Raises CaptureError for the first size that fails; the sizes before
        it are ready, the rest can be asked for again.
        """

    def run(self, num_tokens: int) -> Tensor:
        """Rows [:num_tokens] of the output. The next run may overwrite them.

        Raises ValueError on a num_tokens that the buffers, or the graphs prepared, do not serve.
        """

    def facts(self, num_tokens: int) -> Prepared:
        """How run(num_tokens) would do it."""


@dataclass(frozen=True)
class Program:
    """What a run does: steps in order, then the output: a fixed tensor, or what the last eager piece returns."""

    prepared: Prepared
    steps: tuple[Callable[[], object], ...]
    output: Tensor | None = None
    produce: Callable[[], Tensor] | None = None
    keep: tuple[object, ...] = ()  # what later pieces read; a freed block would be handed to the next capture

    def rows(self, num_tokens: int) -> Program:
        """The same for a smaller token count, padded."""
        output, produce = self.output, self.produce
        if num_tokens == self.prepared.num_tokens:
            return self
        return replace(
            self,
            output=None if output is None else output[:num_tokens],
            produce=None if produce is None else lambda: produce()[:num_tokens],
        )

    def run(self) -> Tensor:
        for step in self.steps:
            step()
        return self.output if self.produce is None else self.produce()  # type: ignore[return-value]


def largest_first(sizes: Sequence[int], buffers: InputBuffers) -> list[int]:
    """One pool serves all sizes: a smaller capture can take blocks that a larger one is done with, not the reverse."""
    wrong = [size for size in sizes if not 1 <= size <= buffers.max_tokens]
    if wrong:
        raise ValueError(f"sizes: expected 1 to {buffers.max_tokens}, got {wrong}")
    return sorted(set(sizes), reverse=True)
