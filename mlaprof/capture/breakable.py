"""A module as one capture broken at named operators: no trace, no compiler, the module's own frame."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Hashable

from torch import Tensor, nn

from mlaprof.capture.addresses import SOME_PIECE, Read, statics
from mlaprof.capture.assembly import Assembly
from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.captured import CapturedRunner
from mlaprof.capture.dispatch import tensors_in
from mlaprof.capture.graphs import Break, GraphMaker
from mlaprof.capture.program import WARMUP_CALLS, Hold, Program, blaming

Handed = tuple[str, int, Tensor]  # by the operator of that name: where the argument was at capture, and what is kept


class BreakableRunner(CapturedRunner):
    """The capture ends before each operator of breaks, which stays eager, and resumes after it.

    Padding is that of the piecewise runner; above the largest captured size the module itself runs.
    """

    def __init__(
        self,
        module: nn.Module,
        buffers: InputBuffers,
        graphs: GraphMaker,
        breaks: Collection[str],
        *,
        hold: Hold = "strong",
        variant: Callable[[], Hashable] | None = None,
    ) -> None:
        super().__init__(module, buffers, graphs, hold=hold, variant=variant)
        self._breaks = breaks

    def _capture(self, size: int) -> Program:
        call = functools.partial(self._module, *self._buffers.slice(size))
        for _ in range(WARMUP_CALLS):
            call()
        with blaming(f"broken graph of {size} tokens"):
            steps, output = self._graphs.capture_broken(call, self._breaks)
        made = Assembly(size)
        handed: tuple[Handed, ...] = ()
        for place, step in enumerate(steps):
            name = f"piece_{place}"
            if not isinstance(step, Break):
                reads = tuple(Read(name, f"an argument of {op}", was, now.data_ptr) for op, was, now in handed)
                made.add_graph(name, step, step.ops, reads=reads, first_replay_s=step.first_replay_s)
                handed = ()
                continue
            given = (step.args, step.kwargs)
            args, kwargs = given if self._hold == "strong" else self._graphs.disown(given)
            pairs = zip(tensors_in(given), tensors_in((args, kwargs)), strict=True)
            handed += tuple((step.op, was.data_ptr(), now) for was, now in pairs)
            made.add_eager(name, (step.op,), functools.partial(step.func, *args, **kwargs))
        made.read_first(statics(self._module, self._buffers, size).reads(SOME_PIECE))
        return made.program(output if self._hold == "strong" else self._graphs.disown(output))
