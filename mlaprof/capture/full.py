"""A module as one graph per token count."""

from __future__ import annotations

import functools

from mlaprof.capture.addresses import statics
from mlaprof.capture.assembly import Assembly
from mlaprof.capture.captured import CapturedRunner
from mlaprof.capture.program import WARMUP_CALLS, Program, blaming


class FullRunner(CapturedRunner):
    """One graph per token count, for exactly the token counts prepared; the module itself for others.

    No padding: what the module reads of the batch in Python is frozen at capture, so another token count would run
    with the wrong batch.
    """

    pads = False

    def _capture(self, size: int) -> Program:
        call = functools.partial(self._module, *self._buffers.slice(size))
        for _ in range(WARMUP_CALLS):
            call()
        with blaming(f"full graph of {size} tokens"):
            graph, output = self._graphs.capture(call)
        # As in an engine: the capture itself computes nothing, the first replay does.
        first_replay_s = self._first_replay_s(graph)
        made = Assembly(size)
        reads = statics(self._module, self._buffers, size).reads("the graph")
        made.add_graph("graph", graph, graph.ops, reads=reads, first_replay_s=first_replay_s)
        return made.program(output if self._hold == "strong" else self._graphs.disown(output))
