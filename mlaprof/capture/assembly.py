"""A program in the making: steps in the order of the run, and what they cost to capture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from mlaprof.capture.addresses import Read
from mlaprof.capture.graphs import Graph
from mlaprof.capture.program import NO_NODES, Piece, Prepared, Program


@dataclass
class Assembly:
    """Collects the pieces of one captured size."""

    size: int
    pieces: list[Piece] = field(default_factory=list)
    steps: list[Callable[[], object]] = field(default_factory=list)
    reads: list[tuple[Read, ...]] = field(default_factory=list)
    keep: list[object] = field(default_factory=list)
    graphs: list[Graph] = field(default_factory=list)
    first_replay_s: float = 0.0

    def add_graph(
        self, name: str, graph: Graph, ops: tuple[str, ...], *, reads: tuple[Read, ...], first_replay_s: float
    ) -> None:
        self.pieces.append(Piece(name, "captured", ops, graph.nodes.kernel))
        self.steps.append(graph.replay)
        self.reads.append(reads)
        self.graphs.append(graph)
        self.first_replay_s += first_replay_s

    def add_eager(self, name: str, ops: tuple[str, ...], call: Callable[[], object]) -> None:
        self.pieces.append(Piece(name, "eager", ops))
        self.steps.append(call)
        self.reads.append(())

    def read_first(self, reads: tuple[Read, ...]) -> None:
        """Have these checked before the first step."""
        if self.reads:
            self.reads[0] += reads

    def program(self, output: Tensor | None) -> Program:
        """Whose output is this tensor; None: what the last step returns each time."""
        steps, reads, produce = self.steps, self.reads, None
        if output is None:
            *steps, last = steps
            reads, produce = reads[:-1], cast("Callable[[], Tensor]", last)
        launches = len(self.graphs)
        prepared = Prepared(
            self.size,
            "captured" if launches else "fell_back",
            captured_segments=launches,
            eager_segments=len(self.steps) - launches,
            graph_launches=launches,
            nodes=sum((graph.nodes for graph in self.graphs), NO_NODES),
            capture_s=sum(graph.capture_s for graph in self.graphs),
            instantiate_s=sum(graph.instantiate_s for graph in self.graphs),
            first_replay_s=self.first_replay_s,
        )
        keep = (*self.keep, *self.graphs)
        return Program(prepared, tuple(self.pieces), tuple(steps), tuple(reads), output, produce, keep)
