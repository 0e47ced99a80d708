"""Three ways to run a module on static inputs: eager, in captured pieces, as one graph.

All of one study run under the same mode: `torch.inference_mode` is the cheaper one per operator, `torch.no_grad` works
as well. `run` is what submit time measures, so everything that can be known before is worked out in `prepare`.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

from torch import Tensor, nn

from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.graphs import CaptureError, GraphMaker
from mlaprof.capture.splitter import Partition, Segment, split
from mlaprof.capture.trace import trace

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
class _Program:
    """What a run does: steps in order, then the output: a fixed tensor, or what the last eager piece returns."""

    prepared: Prepared
    steps: tuple[Callable[[], object], ...]
    output: Tensor | None = None
    produce: Callable[[], Tensor] | None = None
    keep: tuple[object, ...] = ()  # what later pieces read; a freed block would be handed to the next capture

    def rows(self, num_tokens: int) -> _Program:
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


class EagerRunner:
    """Calls the module, at the true token count."""

    def __init__(self, module: nn.Module, buffers: InputBuffers) -> None:
        self._module = module
        self._buffers = buffers

    def prepare(self, sizes: Sequence[int]) -> tuple[Prepared, ...]:
        return tuple(self.facts(size) for size in _largest_first(sizes, self._buffers))

    def run(self, num_tokens: int) -> Tensor:
        return cast(Tensor, self._module(*self._buffers.slice(num_tokens)))

    def facts(self, num_tokens: int) -> Prepared:
        return Prepared(num_tokens, captured_segments=0, eager_segments=1, graph_launches=0, graph_nodes=0)


class FullRunner:
    """One graph per token count, for exactly the token counts prepared.

    No padding: what the module reads of the batch in Python is frozen at capture, so another token count would run
    with the wrong batch.
    """

    def __init__(self, module: nn.Module, buffers: InputBuffers, graphs: GraphMaker) -> None:
        self._module = module
        self._buffers = buffers
        self._graphs = graphs
        self._programs: dict[int, _Program] = {}

    def prepare(self, sizes: Sequence[int]) -> tuple[Prepared, ...]:
        for size in (wanted := _largest_first(sizes, self._buffers)):
            if size not in self._programs:
                self._programs[size] = self._capture(size)
        return tuple(self._programs[size].prepared for size in wanted)

    def run(self, num_tokens: int) -> Tensor:
        return self._program(num_tokens).run()

    def facts(self, num_tokens: int) -> Prepared:
        return self._program(num_tokens).prepared

    def _program(self, num_tokens: int) -> _Program:
        try:
            return self._programs[num_tokens]
        except KeyError:
            raise ValueError(
                f"num_tokens: expected a prepared size of {sorted(self._programs)}, got {num_tokens}"
            ) from None

    def _capture(self, size: int) -> _Program:
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
        return _Program(prepared, (graph.replay,), output=cast(Tensor, output), keep=(graph,))


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
        self._captured: dict[int, _Program] = {}
        self._programs: dict[int, _Program] = {}  # by true token count

    @functools.cached_property
    def partition(self) -> Partition:
        """The pieces; traced once, at first use."""
        examples = self._buffers.slice(self._buffers.max_tokens)
        if self._buffers.max_tokens == 1:
            examples = tuple(tensor.new_empty((2, *tensor.shape[1:])) for tensor in examples)
        return split(trace(self._module, examples), boundaries=self._boundaries)

    def prepare(self, sizes: Sequence[int]) -> tuple[Prepared, ...]:
        for size in (wanted := _largest_first(sizes, self._buffers)):
            if size not in self._captured:
                self._captured[size] = self._capture(size)
                self._programs.clear()
        return tuple(self._captured[size].prepared for size in wanted)

    def run(self, num_tokens: int) -> Tensor:
        program = self._programs.get(num_tokens)
        return (program or self._choose(num_tokens)).run()

    def facts(self, num_tokens: int) -> Prepared:
        return self._choose(num_tokens).prepared

    def _choose(self, num_tokens: int) -> _Program:
        if num_tokens not in self._programs:
            self._buffers.slice(num_tokens)  # refuses what would pad 0 or -1 to the smallest size
            sizes = sorted(self._captured)
            place = bisect_left(sizes, num_tokens)
            found = self._captured[sizes[place]].rows(num_tokens) if place < len(sizes) else self._eager(num_tokens)
            self._programs[num_tokens] = found
        return self._programs[num_tokens]

    def _eager(self, num_tokens: int) -> _Program:
        partition = self.partition
        arguments = partition.traced.arguments(self._buffers.slice(num_tokens))
        pieces = partition.count("captured") + partition.count("eager")
        prepared = Prepared(num_tokens, captured_segments=0, eager_segments=pieces, graph_launches=0, graph_nodes=0)
        return _Program(prepared, (), produce=lambda: partition.graph_module.forward(*arguments)[0])

    def _capture(self, size: int) -> _Program:
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
        return _Program(prepared, tuple(steps), None if produce else output, produce, tuple(keep))


def _largest_first(sizes: Sequence[int], buffers: InputBuffers) -> list[int]:
    """One pool serves all sizes: a smaller capture can take blocks that a larger one is done with, not the reverse."""
    wrong = [size for size in sizes if not 1 <= size <= buffers.max_tokens]
    if wrong:
        raise ValueError(f"sizes: expected 1 to {buffers.max_tokens}, got {wrong}")
    return sorted(set(sizes), reverse=True)
