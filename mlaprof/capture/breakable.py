"""A module as one capture broken at named operators: no trace, no compiler, the module's own frame."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Hashable
from dataclasses import replace

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mlaprof.capture.addresses import SOME_PIECE, Read, statics
from mlaprof.capture.assembly import Assembly
from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.captured import CapturedRunner
from mlaprof.capture.graphs import Break, GraphMaker
from mlaprof.capture.program import WARMUP_CALLS, Hold, Program, blaming


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
        handed: tuple[tuple[str, int, Tensor], ...] = ()  # by the operator before: its name, address and tensors
        for place, step in enumerate(steps):
            name = f"piece_{place}"
            if not isinstance(step, Break):
                reads = tuple(Read(name, f"{op}'s argument", address, now.data_ptr) for op, address, now in handed)
                made.add_graph(name, step, step.ops, reads=reads, first_replay_s=step.first_replay_s)
                continue
            given = _tensors(step)
            if self._hold == "weak":
                step = replace(step, args=self._graphs.disown(step.args), kwargs=self._graphs.disown(step.kwargs))
            kept = _tensors(step)
            handed += tuple((step.op, was.data_ptr(), now) for was, now in zip(given, kept, strict=True))
            made.add_eager(name, (step.op,), step)
        made.reads[0] += statics(self._module, self._buffers, size).reads(SOME_PIECE)
        return made.program(output if self._hold == "strong" else self._graphs.disown(output))


def _tensors(step: Break) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((step.args, step.kwargs)) if isinstance(leaf, Tensor)]
