"""The semantics of CUDA graphs on a CPU, so that every capture mode runs and is tested without a GPU.

Capture runs fn once and records the ATen calls below it with the addresses of their tensors. Replay makes the same
calls again, without the Python that led to them, and copies what they return to the addresses recorded first: fixed
addresses, frozen control flow, and blocks of one pool that later allocations take once nobody holds them (cpu_pool.py).
Three differences from the real thing: reads of a tensor that bypass the dispatcher (`tolist`, `numpy`) go unseen; one
number written under a mask is held whoever made it, where a GPU holds it from the host only; and a tensor of the pool
cannot be resized.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from mlaprof.capture.cpu_pool import Block, CpuPool
from mlaprof.capture.dispatch import (
    ALLOCATIONS,
    fresh_tensors,
    is_composite,
    is_named,
    is_work,
    on_storage,
    replace_tensors,
    run_break,
    tensors_in,
)
from mlaprof.capture.graphs import Break, CaptureError, Nodes, first_line, source_line

T = TypeVar("T")


@dataclass(frozen=True)
class _Call:
    """One call. It owns no tensor of the pool, as a graph does not, but every other one."""

    func: OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    fresh: tuple[tuple[int, Tensor], ...]  # (place among the returned tensors, tensor to copy it into)

    def again(self) -> None:
        returned = self.func(*self.args, **self.kwargs)
        if not self.fresh:
            return
        tensors = tensors_in(returned)
        for place, recorded in self.fresh:
            result = tensors[place]
            if result.shape != recorded.shape or result.dtype != recorded.dtype:
                raise CaptureError(
                    f"{self.func.name()}: captured with an output of {tuple(recorded.shape)} {recorded.dtype}, "
                    f"replay gave {tuple(result.shape)} {result.dtype}",
                    op=self.func.name(),
                )
            recorded.copy_(result)


@dataclass
class _Replays:
    graphs: int = 0
    nodes: int = 0


class CpuGraph:
    """The recorded calls of one capture; each counts as a kernel."""

    instantiate_s = 0.0
    first_replay_s = 0.0

    def __init__(self, calls: Sequence[_Call], blocks: Sequence[Block], capture_s: float, replays: _Replays) -> None:
        self._calls = tuple(calls)
        self._blocks = blocks
        self._replays = replays
        self.nodes = Nodes(kernel=len(calls))
        self.ops = tuple(call.func.name() for call in calls)
        self.capture_s = capture_s

    def replay(self) -> None:
        """Run every recorded call again, in order, whatever the caller's grad mode.

        As on a GPU, a dispatch mode around it sees no operator.
        """
        self._replays.graphs += 1
        self._replays.nodes += self.nodes.total
        # Tensors recorded under inference mode may be written only there; ordinary ones may be written there too.
        with torch.inference_mode(), no_dispatch():
            for call in self._calls:
                call.again()


class CpuGraphs:
    """Captures emulated graphs.

    see_through   names of operators, e.g. "mlaprof::mla_dsa_proj", whose CPU kernels are Python that a capture must
                  look into; every other custom operator becomes one node, whatever its kernel does
    """

    emulated = True

    def __init__(self, see_through: Collection[str] = ()) -> None:
        self._see_through = frozenset(see_through)
        self._pool = CpuPool()
        self._replays = _Replays()

    def capture(self, fn: Callable[[], T]) -> tuple[CpuGraph, T]:
        """Record fn under inference or no-grad mode alike; unlike on a GPU, the result holds values at once.

        Raises CaptureError naming the operator where fn waits for a value, has an output whose shape depends on data,
        or copies a Python list to a tensor: what a stream capture refuses; and naming the source line of any other
        error of fn.
        """
        recorder = _Recorder(self._pool, self._replays, self._see_through)
        result = recorder.watch(fn)
        return recorder.end(), result

    def capture_broken(self, fn: Callable[[], T], breaks: Collection[str]) -> tuple[tuple[CpuGraph | Break, ...], T]:
        """Record fn as capture() does, in a graph before, between and behind the operators named in breaks.

        Recording has done the work of each graph once already, so none is replayed here. An operator of breaks is not
        looked into. What allocates and views only makes no graph.
        """
        recorder = _Recorder(self._pool, self._replays, self._see_through, frozenset(breaks))
        result = recorder.watch(fn)
        recorder.cut()
        return tuple(recorder.steps), result

    def disown(self, tree: T) -> T:
        """The same structure with tensors of the pool replaced by views that do not keep their blocks."""
        return self._pool.disown(tree)

    def pool_bytes(self) -> int:
        """Bytes of the blocks taken in captures whose graphs are alive."""
        return self._pool.nbytes

    def replayed(self) -> tuple[int, int]:
        """Running totals over all graphs: replays, and nodes replayed."""
        return self._replays.graphs, self._replays.nodes


class _Recorder(TorchDispatchMode):
    def __init__(
        self, pool: CpuPool, replays: _Replays, see_through: frozenset[str], breaks: frozenset[str] = frozenset()
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[CpuGraph | Break] = []
        self._pool = pool
        self._replays = replays
        self._see_through = see_through
        self._breaks = breaks
        self._calls: list[_Call] = []
        self._blocks: list[Block] = []  # of all graphs of one recorder: they live and die together
        self._start = time.perf_counter()

    def watch(self, fn: Callable[[], T]) -> T:
        """Call fn and record what it does."""
        try:
            with self:
                return fn()
        except CaptureError:
            raise
        except Exception as error:
            where = source_line(error)
            raise CaptureError(f"{first_line(error)} (at {where})", op=where) from error

    def end(self) -> CpuGraph:
        """What was recorded since the last end."""
        graph = CpuGraph(self._calls, self._blocks, time.perf_counter() - self._start, self._replays)
        self._calls = []
        return graph

    def cut(self) -> None:
        """Add a graph of what was recorded since the last cut, if anything."""
        if self._calls:
            self.steps.append(self.end())

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if is_named(func, self._breaks):
            return self._break(func, args, kwargs)
        if func._schema.name in self._see_through:
            with self:
                return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
        if is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        reason = _refusal(func, args, kwargs)
        if reason:
            raise CaptureError(f"{func.name()}: {reason}", op=func.name())
        return self._record(func, args, kwargs, func(*args, **kwargs))

    def _break(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.cut()
        self.steps.append(run_break(func, args, kwargs))
        self._start = time.perf_counter()

    def _record(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], returned: Any) -> Any:
        given = (args, kwargs)
        works = is_work(func, given, returned)
        fresh = fresh_tensors(given, returned)
        copy = func._schema.name not in ALLOCATIONS
        returned, blocks = self._pool.take_in(returned, [tensor for _, tensor in fresh], copy=copy)
        self._blocks += blocks
        if works:
            args, kwargs = _at_their_addresses(self._pool.disown(given))
            recorded = tensors_in(self._pool.disown(returned))
            self._calls.append(_Call(func, args, kwargs, tuple((place, recorded[place]) for place, _ in fresh)))
        return returned


def _at_their_addresses(tree: T) -> T:
    """The tensors as they lie now: whoever gives one of them other memory later moves nothing here."""
    made = {id(tensor): on_storage(tensor, tensor.untyped_storage()) for tensor in tensors_in(tree)}
    return replace_tensors(tree, made)


def _refusal(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Why a stream capture would not hold this call; empty if it would."""
    name = func._schema.name
    if torch.Tag.data_dependent_output in func.tags:
        return "the host waits for a value of the device, as .item() does, which a capture cannot hold"
    if name in ("aten::index", "aten::index_put", "aten::index_put_"):
        if _expands_a_mask(*args[1:], **kwargs):
            return "a boolean mask has a shape that depends on data, which a capture cannot hold"
        return ""
    if name == "aten::repeat_interleave" and kwargs.get("output_size") is not None:
        return ""
    if torch.Tag.dynamic_output_shape in func.tags:
        return "the output's shape depends on data, which a capture cannot hold"
    if name == "aten::lift_fresh" and args[0].dim() > 0:
        return "a Python list becomes a tensor by a blocking copy, which a capture cannot hold"
    return ""


def _expands_a_mask(indices: Sequence[Tensor | None], values: Tensor | None = None, accumulate: bool = False) -> bool:
    """Whether indexing turns a mask into row numbers. torch writes one number under one mask by masked_fill instead."""
    given = [index for index in indices if index is not None]
    if all(index.dtype not in (torch.bool, torch.uint8) for index in given):
        return False
    return values is None or values.numel() != 1 or accumulate or len(given) > 1
