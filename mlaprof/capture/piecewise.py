"""A module in captured pieces, cut from its trace at named operators that stay eager."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from typing import cast

from torch import Tensor, nn

from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.graphs import CaptureError, GraphMaker
from mlaprof.capture.program import WARMUP_CALLS, Prepared, Program, largest_first
from mlaprof.capture.splitter import Partition, Segment, split
from mlaprof.capture.trace import trace


class PiecewiseRunner:
    """Captured pieces with the boundary operators run eagerly between them.

    A token count is padded up to the next captured size; above the largest, the same pieces run eagerly at the true
    size. Padding rows of the inputs are whatever the buffers hold.
    """

    def __init__(
        self, module: nn.Module, buffers: InputBuffers, graphs: GraphMaker, boundaries: Collection[str]
    ) -> None:
        self._module = module
        self._buffers = buffers
        self._graphs = graphs
        self._boundaries = boundaries
        self._captured: dict[int, Program] = {}
        self._programs: dict[int, Program] = {}  # by true token count

    @functools.cached_property
    def partition(self) -> Partition:
        """The pieces; traced once, at first use."""
        examples = self._buffers.slice(self._buffers.max_tokens)
        if self._buffers.max_tokens == 1:
            examples = tuple(tensor.new_empty((2, *tensor.shape[1:])) for tensor in examples)
        return split(trace(self._module, examples), boundaries=self._boundaries)

    def prepare(self, sizes: Sequence[int]) -> tuple[Prepared, ...]:
        for size in (wanted := largest_first(sizes, self._buffers)):
            if size not in self._captured:
                self._captured[size] = self._capture(size)
                self._programs.clear()
        return tuple(self._captured[size].prepared for size in wanted)

    def run(self, num_tokens: int) -> Tensor:
        program = self._programs.get(num_tokens)
        return (program or self._choose(num_tokens)).run()

    def facts(self, num_tokens: int) -> Prepared:
        return self._choose(num_tokens).prepared

    def _choose(self, num_tokens: int) -> Program:
        if num_tokens not in self._programs:
            self._buffers.slice(num_tokens)  # refuses what would pad 0 or -1 to the smallest size
            sizes = sorted(self._captured)
            place = bisect_left(sizes, num_tokens)
            found = self._captured[sizes[place]].rows(num_tokens) if place < len(sizes) else self._eager(num_tokens)
            self._programs[num_tokens] = found
        return self._programs[num_tokens]

    def _eager(self, num_tokens: int) -> Program:
        partition = self.partition
        arguments = partition.traced.arguments(self._buffers.slice(num_tokens))
        pieces = partition.count("captured") + partition.count("eager")
        prepared = Prepared(num_tokens, captured_segments=0, eager_segments=pieces, graph_launches=0, graph_nodes=0)
        return Program(prepared, (), produce=lambda: partition.graph_module.forward(*arguments)[0])

    def _capture(self, size: int) -> Program:
        partition = self.partition
        arguments = partition.traced.arguments(self._buffers.slice(size))
        for _ in range(WARMUP_CALLS):
            partition.graph_module.forward(*arguments)

        steps: list[Callable[[], object]] = []
        keep: list[object] = []
        nodes = 0
        produce: Callable[[], Tensor] | None = None

        def execute(segment: Segment, call: Callable[[], object], ends: bool) -> object:
            nonlocal nodes, produce
            result: object
            if segment.captured:
                try:
                    graph, result = self._graphs.capture(call)
                except CaptureError as error:
                    message = f"piecewise graph of {size} tokens, {segment.name}: {error}"
                    raise CaptureError(message, op=error.op) from error
                graph.replay()  # the pieces behind it are captured on real data
                steps.append(graph.replay)
                nodes += graph.num_nodes
                keep.append((graph, result))
                return result
            result = call()
            keep.append(result)
            if segment.kind == "eager" and ends:
                produce = cast("Callable[[], Tensor]", call)
            elif segment.kind == "eager":
                steps.append(call)
            return result

        output = partition.walk(arguments, execute)
        captured = partition.count("captured")
        prepared = Prepared(size, captured, partition.count("eager"), graph_launches=captured, graph_nodes=nodes)
        return Program(prepared, tuple(steps), None if produce else output, produce, tuple(keep))
