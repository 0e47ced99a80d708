"""What every runner of a module on static inputs answers to, and the program that its runs follow.

All of one study run under the same mode: `torch.inference_mode` is the cheaper one per operator, `torch.no_grad` works
as well. `run` is what submit time measures, so everything that can be known before is worked out in `prepare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from torch import Tensor

from mlaprof.capture.addresses import Read
from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.graphs import CaptureError, Nodes

WARMUP_CALLS = 3  # before each capture, as upstream
NO_NODES = Nodes()

State = Literal["eager", "captured", "replayed", "fell_back"]
Hold = Literal["strong", "weak"]


@dataclass(frozen=True)
class Prepared:
    """How one token count is run. num_tokens counts the rows the work is done on, padding included.

    state   eager: the runner captures nothing. captured: there is a graph, no run has used it yet. replayed: one has.
            fell_back: there is no graph for this token count and variant, so the run is eager, at the true size; or at
            the padded one where the module was cut into pieces of which none can be captured
    The seconds are sums over the segments; the first replay is timed with the device synchronised around it.
    """

    num_tokens: int
    state: State
    captured_segments: int
    eager_segments: int
    graph_launches: int
    nodes: Nodes = NO_NODES
    capture_s: float = 0.0
    instantiate_s: float = 0.0
    first_replay_s: float = 0.0

    @property
    def graph_nodes(self) -> int:
        return self.nodes.total


Named = Callable[[str], AbstractContextManager[object]]
"""Makes a range of this name, to be entered around a piece."""


@dataclass(frozen=True)
class Piece:
    """One piece of a run.

    kind      free: views, sizes and allocations, nothing that a run does
    ops       operators, in order; empty where nobody watched
    kernels   kernel nodes of a captured piece, None of others
    """

    name: str
    kind: Literal["captured", "eager", "free"]
    ops: tuple[str, ...] = ()
    kernels: int | None = None


class Runner(Protocol):
    """Runs a module on the first num_tokens rows of its input buffers."""

    @property
    def stop(self) -> str | None:
        """The operator at which cutting into pieces stopped, if one did."""

    def prepare(self, sizes: Sequence[int]) -> tuple[Prepared, ...]:
        """Make ready for these token counts, largest first whatever their order; answers in the order done.

        May be called again with further sizes. Raises CaptureError for the first size that fails; the sizes before
        it are ready, the rest can be asked for again. Raises ValueError on sizes outside the buffers.
        """

    def run(self, num_tokens: int) -> Tensor:
        """Rows [:num_tokens] of the output. The next run may overwrite them.

        Raises ValueError on a num_tokens outside the buffers.
        """

    def verified_run(self, num_tokens: int) -> Tensor:
        """As run, once every tensor that the graphs read is found where it was at capture.

        Raises StaleAddress where one is not, before the graph that reads it is replayed.
        """

    def named_run(self, num_tokens: int, named: Named) -> Tensor:
        """As run, each piece inside a range of its own, `piece 0 graph` or `op mla_dsa_attn_inplace eager`."""

    def facts(self, num_tokens: int) -> Prepared:
        """How run(num_tokens) would do it."""

    def pieces(self, num_tokens: int) -> tuple[Piece, ...]:
        """What run(num_tokens) would do, in order."""


@dataclass(frozen=True)
class Program:
    """What a run does: steps in order, then the output: a fixed tensor, or what the last eager piece returns.

    reads   what the step of the same place reads at fixed addresses
    keep    what later pieces read; a freed block would be handed to the next capture
    """

    prepared: Prepared
    pieces: tuple[Piece, ...]
    steps: tuple[Callable[[], object], ...] = ()
    reads: tuple[tuple[Read, ...], ...] = ()
    output: Tensor | None = None
    produce: Callable[[], Tensor] | None = None
    keep: tuple[object, ...] = ()

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

    def verified_run(self) -> Tensor:
        """As run; raises StaleAddress before a step that would read what is no longer there."""
        for step, reads in zip(self.steps, self.reads, strict=True):
            for read in reads:
                read.check()
            step()
        return self.output if self.produce is None else self.produce()  # type: ignore[return-value]

    def named_run(self, named: Named) -> Tensor:
        """As run, every step inside a range of its name; pieces that are run as one are one range."""
        calls = self.steps if self.produce is None else (*self.steps, self.produce)
        output: object = None
        for name, call in zip(self._names(len(calls)), calls, strict=True):
            with named(name):
                output = call()
        return self.output if self.produce is None else output  # type: ignore[return-value]

    def _names(self, calls: int) -> list[str]:
        """`piece N graph` counts the graphs; a piece that stays eager goes by its operator."""
        doing = [piece for piece in self.pieces if piece.kind != "free"]
        if len(doing) != calls:
            return ["all pieces eager"] * calls
        names, graphs = [], 0
        for piece in doing:
            if piece.kind == "captured":
                names.append(f"piece {graphs} graph")
                graphs += 1
            elif piece.ops:
                more = f" and {len(piece.ops) - 1} more" if len(piece.ops) > 1 else ""
                names.append(f"op {piece.ops[0].rpartition('::')[2]}{more} eager")
            else:
                names.append(f"{piece.name} eager")
        return names


def largest_first(sizes: Sequence[int], buffers: InputBuffers) -> list[int]:
    """One pool serves all sizes: a smaller capture can take blocks that a larger one is done with, not the reverse."""
    wrong = [size for size in sizes if not 1 <= size <= buffers.max_tokens]
    if wrong:
        raise ValueError(f"sizes: expected 1 to {buffers.max_tokens}, got {wrong}")
    return sorted(set(sizes), reverse=True)


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """CaptureErrors raised inside say what was being captured."""
    try:
        yield
    except CaptureError as error:
        raise CaptureError(f"{what}: {error}", op=error.op) from error
