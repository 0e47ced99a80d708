"""A module as one graph per token count."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.graphs import CaptureError, GraphMaker
from mlaprof.capture.program import WARMUP_CALLS, Prepared, Program, largest_first


class FullRunner:
    """One graph per token count, for exactly the token counts prepared.

    No padding: what the module reads of the batch in Python is frozen at capture, so another token count would run
    with the wrong batch.
    """

    def __init__(self, module: nn.Module, buffers: InputBuffers, graphs: GraphMaker) -> None:
        self._module = module
        self._buffers = buffers
        self._graphs = graphs
        self._programs: dict[int, Program] = {}

    def prepare(self, sizes: Sequence[int]) -> tuple[Prepared, ...]:
        for size in (wanted := largest_first(sizes, self._buffers)):
            if size not in self._programs:
                self._programs[size] = self._capture(size)
        return tuple(self._programs[size].prepared for size in wanted)

    def run(self, num_tokens: int) -> Tensor:
        return self._program(num_tokens).run()

    def facts(self, num_tokens: int) -> Prepared:
        return self._program(num_tokens).prepared

    def _program(self, num_tokens: int) -> Program:
        try:
            return self._programs[num_tokens]
        except KeyError:
            raise ValueError(
                f"num_tokens: expected a prepared size of {sorted(self._programs)}, got {num_tokens}"
            ) from None

    def _capture(self, size: int) -> Program:
        call = functools.partial(self._module, *self._buffers.slice(size))
        for _ in range(WARMUP_CALLS):
            call()
        try:
            graph, output = self._graphs.capture(call)
        except CaptureError as error:
            raise CaptureError(f"full graph of {size} tokens: {error}", op=error.op) from error
        # As in an engine: the capture itself computes nothing, the first replay does.
        graph.replay()
        prepared = Prepared(size, captured_segments=1, eager_segments=0, graph_launches=1, graph_nodes=graph.num_nodes)
        return Program(prepared, (graph.replay,), output=cast(Tensor, output), keep=(graph,))
