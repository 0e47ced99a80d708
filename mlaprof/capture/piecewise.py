"""A module in captured pieces, cut from its trace at named operators that stay eager."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Hashable
from typing import Any

from torch import nn

from mlaprof.capture.addresses import SOME_PIECE, Statics, statics
from mlaprof.capture.assembly import Assembly
from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.captured import CapturedRunner
from mlaprof.capture.fakes import check_fakes
from mlaprof.capture.graphs import GraphMaker
from mlaprof.capture.program import WARMUP_CALLS, Hold, Piece, Prepared, Program, blaming
from mlaprof.capture.splitter import Call, Partition, split
from mlaprof.capture.trace import trace


class PiecewiseRunner(CapturedRunner):
    """Captured pieces with the boundary operators run eagerly between them.

    A token count is padded up to the next captured size; above the largest, the same pieces run eagerly at the true
    size. Padding rows of the inputs are whatever the buffers hold.
    """

    def __init__(
        self,
        module: nn.Module,
        buffers: InputBuffers,
        graphs: GraphMaker,
        boundaries: Collection[str],
        *,
        hold: Hold = "strong",
        variant: Callable[[], Hashable] | None = None,
    ) -> None:
        super().__init__(module, buffers, graphs, hold=hold, variant=variant)
        self._boundaries = boundaries

    @functools.cached_property
    def partition(self) -> Partition:
        """The pieces; traced once, at first use."""
        examples = self._buffers.slice(self._buffers.max_tokens)
        if self._buffers.max_tokens == 1:
            examples = tuple(tensor.new_empty((2, *tensor.shape[1:])) for tensor in examples)
        return split(trace(self._module, examples), boundaries=self._boundaries)

    @property
    def stop(self) -> str | None:  # type: ignore[override]
        return self.partition.stop

    def _fall_back(self, num_tokens: int) -> Program:
        partition = self.partition
        arguments = partition.traced.arguments(self._buffers.slice(num_tokens))
        return Program(
            Prepared(
                num_tokens,
                "fell_back",
                captured_segments=0,
                eager_segments=partition.count("captured") + partition.count("eager"),
                graph_launches=0,
            ),
            tuple(
                Piece(segment.name, "free" if segment.kind == "free" else "eager", segment.ops)
                for segment in partition.segments
            ),
            produce=lambda: partition.graph_module.forward(*arguments)[0],
        )

    def _capture(self, size: int) -> Program:
        partition = self.partition
        arguments = partition.traced.arguments(self._buffers.slice(size))
        with blaming(f"piecewise graph of {size} tokens"):
            check_fakes(partition.traced, arguments, size)
            for _ in range(WARMUP_CALLS - 1):
                partition.graph_module.forward(*arguments)
            made = Assembly(size)
            static = statics(self._module, self._buffers, size)
            output = partition.walk(arguments, functools.partial(self._execute, made, static))
        named = {read.name for reads in made.reads for read in reads}
        made.read_first(static.reads(SOME_PIECE, but=named))  # operators find weights themselves
        return made.program(output)

    def _execute(self, made: Assembly, static: Statics, call: Call) -> tuple[Any, Any]:
        """Do one piece and note how the steps shall do it; (result, what is kept of it)."""
        segment = call.segment
        if segment.kind == "captured":
            given = zip(call.names, call.args, call.kept, strict=True)
            reads = tuple(read for each in given for read in static.argument(segment.name, *each))
            with blaming(segment.name):
                graph, result = self._graphs.capture(functools.partial(call.forward, *call.args))
            first_replay_s = self._first_replay_s(graph)  # the pieces behind it are captured on real data
            made.add_graph(segment.name, graph, segment.ops, reads=reads, first_replay_s=first_replay_s)
        else:
            result = call.forward(*call.args)
            if segment.kind == "eager":
                made.add_eager(segment.name, segment.ops, functools.partial(call.forward, *call.kept))
                return result, None  # what it returns, if anything, is the output, new at each step
            made.pieces.append(Piece(segment.name, "free", segment.ops))
        kept = result if self._hold == "strong" else self._graphs.disown(result)
        made.keep.append(kept)
        return result, kept
