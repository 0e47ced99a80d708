"""What all runners with graphs share: one program per size and variant, and which of them a run takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor, nn

from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.eager import eager_program
from mlaprof.capture.graphs import Graph, GraphMaker
from mlaprof.capture.program import Hold, Named, Piece, Prepared, Program, largest_first

Key = tuple[int, Hashable]  # size and variant


class CapturedRunner(ABC):
    """Captures sizes largest first and replays them; a run without a graph of its own is eager at the true size.

    hold      strong keeps every tensor that crosses a segment. weak keeps views that own nothing, as TensorRT-LLM does:
              once a tensor has had its last reader during the capture, later captures may take its block
    variant   names what Python control flow inside captured code depends on beyond the token count, e.g. short or long
              sequences. Asked at every prepare and run; each size is captured once for each answer
    """

    stop: str | None = None
    pads = True  # up to the next captured size

    def __init__(
        self,
        module: nn.Module,
        buffers: InputBuffers,
        graphs: GraphMaker,
        *,
        hold: Hold = "strong",
        variant: Callable[[], Hashable] | None = None,
    ) -> None:
        self._module = module
        self._buffers = buffers
        self._graphs = graphs
        self._hold = hold
        self._variant = variant
        self._captured: dict[Key, Program] = {}
        self._used: set[Key] = set()  # by a run, so far
        self._programs: dict[Hashable, Program] = {}  # by what run knows: true token count, and variant if there is one

    def prepare(self, sizes: Sequence[int]) -> tuple[Prepared, ...]:
        variant = self._present_variant()
        keys = [(size, variant) for size in largest_first(sizes, self._buffers)]
        for key in keys:
            if key not in self._captured:
                self._captured[key] = self._capture(key[0])
                self._used.discard(key)  # by eager runs until now
                self._programs.clear()
        return tuple(self._prepared(key, self._captured[key]) for key in keys)

    def run(self, num_tokens: int) -> Tensor:
        program = self._programs.get(num_tokens if self._variant is None else (num_tokens, self._variant()))
        return self._first_run(num_tokens) if program is None else program.run()

    def verified_run(self, num_tokens: int) -> Tensor:
        key, program = self._find(num_tokens)
        output = program.verified_run()
        self._used.add(key)
        return output

    def named_run(self, num_tokens: int, named: Named) -> Tensor:
        key, program = self._find(num_tokens)
        output = program.named_run(named)
        self._used.add(key)
        return output

    def facts(self, num_tokens: int) -> Prepared:
        return self._prepared(*self._find(num_tokens))

    def pieces(self, num_tokens: int) -> tuple[Piece, ...]:
        return self._find(num_tokens)[1].pieces

    def _first_run(self, num_tokens: int) -> Tensor:
        """Since sizes were last captured; what it finds out, later runs look up."""
        key, program = self._find(num_tokens)
        output = program.run()
        self._used.add(key)
        self._programs[num_tokens if self._variant is None else (num_tokens, key[1])] = program
        return output

    def _find(self, num_tokens: int) -> tuple[Key, Program]:
        self._buffers.slice(num_tokens)  # refuses what would pad 0 or -1 to the smallest size
        variant = self._present_variant()
        sizes = sorted(size for size, captured in self._captured if captured == variant)
        place = bisect_left(sizes, num_tokens)
        if place < len(sizes) and (self.pads or sizes[place] == num_tokens):
            key = (sizes[place], variant)
            return key, self._captured[key].rows(num_tokens)
        return (num_tokens, variant), self._fall_back(num_tokens)

    def _prepared(self, key: Key, program: Program) -> Prepared:
        prepared = program.prepared
        replayed = prepared.state == "captured" and key in self._used
        return replace(prepared, state="replayed") if replayed else prepared

    def _present_variant(self) -> Hashable:
        return None if self._variant is None else self._variant()

    @abstractmethod
    def _capture(self, size: int) -> Program:
        """Warm up and capture; raises CaptureError."""

    def _fall_back(self, num_tokens: int) -> Program:
        return eager_program(self._module, self._buffers, num_tokens, "fell_back")

    def _first_replay_s(self, graph: Graph) -> float:
        """Seconds of a replay that nothing else on the device delays or outlasts."""
        self._settle()
        begin_s = perf_counter()
        graph.replay()
        self._settle()
        return perf_counter() - begin_s

    def _settle(self) -> None:
        if self._buffers.device.type == "cuda":
            torch.cuda.synchronize(self._buffers.device)
