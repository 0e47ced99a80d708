"""CUDA graphs: one pool and one capture stream for all of them, as serving engines do."""

from __future__ import annotations

import ctypes
import gc
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode

from mlaprof.capture.dispatch import (
    ALLOCATIONS,
    fresh_tensors,
    is_named,
    on_storage,
    replace_tensors,
    run_break,
    tensors_in,
)
from mlaprof.capture.graphs import Break, CaptureError, Nodes, first_line, source_line

T = TypeVar("T")
NODE_TYPES = ("kernel", "memcpy", "memset")  # CUgraphNodeType 0, 1, 2; what lies above is rare


class CudaGraph:
    """One instantiated CUDA graph."""

    def __init__(self, graph: torch.cuda.CUDAGraph, nodes: Nodes, ops: tuple[str, ...], capture_s: float) -> None:
        start = time.perf_counter()
        graph.instantiate()
        self.instantiate_s = time.perf_counter() - start
        self.capture_s = capture_s
        self.first_replay_s = 0.0
        self.nodes = nodes
        self.ops = ops
        self._graph = graph
        self.replay: Callable[[], None] = graph.replay  # bound once: submit time is measured


class CudaGraphs:
    """Captures CUDA graphs; their nodes are the driver's: kernels, copies, memsets."""

    emulated = False

    def __init__(self) -> None:
        self._pools: list[Any] = []  # the last one is in use; a broken capture spoils one
        self._held: list[torch.cuda.CUDAGraph] = []
        self._stream = torch.cuda.Stream()
        # cuBLAS keeps a workspace per stream for good; taken inside the first capture, it would sit in the pool and be
        # counted (32 MiB on Hopper) as memory of whichever graph came first.
        with torch.cuda.stream(self._stream):
            self._seed = torch.ones(16, 16, device="cuda", dtype=torch.bfloat16)
            torch.mm(self._seed, self._seed)
            self._stream.synchronize()
            self._open_pool()

    def capture(self, fn: Callable[[], T]) -> tuple[CudaGraph, T]:
        """Record fn on the capture stream. Warm it up before: a first call compiles, tunes and allocates.

        Raises CaptureError naming the source line at which the capture broke.
        """
        with self._captures() as captures:
            captures.begin()
            result = fn()
            graph = captures.end()
        return graph, result

    def capture_broken(self, fn: Callable[[], T], breaks: Collection[str]) -> tuple[tuple[CudaGraph | Break, ...], T]:
        """Record fn as capture() does, in a graph before, between and behind the operators named in breaks.

        Captures with no device work make no graph.
        """
        with self._captures() as captures:
            breaker = _Breaker(captures, frozenset(breaks))
            captures.begin()
            with breaker:
                result = fn()
            breaker.cut()
        return tuple(breaker.steps), result

    def disown(self, tree: T) -> T:
        """The same structure with tensors of the pool replaced by views that do not own their memory."""
        ranges = [(segment["address"], segment["address"] + segment["total_size"]) for segment in self._segments()]
        storages: dict[int, Any] = {}
        made: dict[int, Tensor] = {}
        for tensor in tensors_in(tree):
            memory = tensor.untyped_storage()
            if not tensor.is_cuda or not any(start <= memory.data_ptr() < end for start, end in ranges):
                continue
            if memory._cdata not in storages:
                storages[memory._cdata] = torch._C._construct_storage_from_data_pointer(
                    memory.data_ptr(), tensor.device, memory.nbytes()
                )
            made[id(tensor)] = on_storage(tensor, storages[memory._cdata])
        return replace_tensors(tree, made)

    def pool_bytes(self) -> int:
        """Device memory reserved by the pool."""
        return sum(segment["total_size"] for segment in self._segments())

    def _segments(self) -> list[dict[str, Any]]:
        pools = {tuple(pool) for pool in self._pools}
        return [segment for segment in torch.cuda.memory_snapshot() if tuple(segment["segment_pool_id"]) in pools]

    @contextmanager
    def _captures(self) -> Iterator[_Captures]:
        """Captures on the capture stream; what breaks one is told by CaptureError, and the maker is well again."""
        gc.collect()
        torch.cuda.current_stream().synchronize()
        captures = _Captures(self._pools[-1])
        with _no_gc(), torch.cuda.stream(self._stream):
            try:
                yield captures
            except Exception as error:
                if captures.running is not None:
                    self._abandon(captures.running)
                if isinstance(error, CaptureError):
                    raise
                where = source_line(error)
                raise CaptureError(f"{first_line(error)} (at {where})", op=where) from error

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture that fn left by an exception, on the capture stream."""
        try:
            _end(graph)
        except RuntimeError:
            # The stream is free again, but torch left out the rest: its allocator still watches for this capture
            # through a pointer to graph, and its generator believes it is captured. Keep the graph, leave the pool to
            # what is in it, and run one whole capture, which puts the generator right.
            self._held.append(graph)
            with suppress(RuntimeError):  # a torch that ends it itself has nothing left to end
                torch._C._cuda_endAllocateToPool(self._seed.device.index, self._pools[-1])
                torch._C._cuda_releasePool(self._seed.device.index, self._pools[-1])
            self._open_pool()
        else:
            graph.reset()

    def _open_pool(self) -> None:
        """Take a fresh pool, and hold it by one small whole capture: torch refuses a pool whose graphs are all gone."""
        self._pools.append(torch.cuda.graph_pool_handle())
        whole = torch.cuda.CUDAGraph()
        whole.capture_begin(pool=self._pools[-1])
        self._seed.zero_()
        whole.capture_end()
        self._held.append(whole)


class _Captures:
    """Captures that follow one another on the current stream, into one pool."""

    def __init__(self, pool: Any) -> None:
        self.running: torch.cuda.CUDAGraph | None = None
        self._pool = pool
        self._start = 0.0

    def begin(self) -> None:
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        self._start = time.perf_counter()
        graph.capture_begin(pool=self._pool)
        self.running = graph

    def end(self, ops: tuple[str, ...] = ()) -> CudaGraph:
        graph = self.running
        if graph is None:
            raise ValueError("end: expected a capture begun, got none")
        _end(graph)
        capture_s = time.perf_counter() - self._start
        self.running = None
        return CudaGraph(graph, _nodes(graph.raw_cuda_graph()), ops, capture_s)


class _Breaker(TorchFunctionMode):
    """Ends the running capture before an operator of breaks, replays it, calls the operator, and begins the next.

    It watches torch's functions, not the dispatcher: under a dispatch mode a composite operator such as rms_norm is
    taken apart, and the graph would hold other kernels, with other bits, than the eager run.
    """

    def __init__(self, captures: _Captures, breaks: frozenset[str]) -> None:
        super().__init__()
        self.steps: list[CudaGraph | Break] = []
        self._captures = captures
        self._breaks = breaks
        self._ops: list[str] = []

    def cut(self) -> None:
        """End the running capture; add and replay its graph if the device has anything to do in it."""
        graph = self._captures.end(tuple(self._ops))
        self._ops.clear()
        if graph.nodes.total:
            start = time.perf_counter()
            graph.replay()
            torch.cuda.current_stream().synchronize()
            graph.first_replay_s = time.perf_counter() - start
            self.steps.append(graph)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        operator = _operator(func, self._breaks)
        if operator is not None:
            self.cut()
            self.steps.append(run_break(operator, args, kwargs))
            torch.cuda.current_stream().synchronize()  # an error of the operator shows here, not in the next capture
            self._captures.begin()
            return None
        returned = func(*args, **kwargs)
        if name := _work(func, (args, kwargs), returned):
            self._ops.append(name)
        return returned


def _operator(func: Any, names: frozenset[str]) -> OpOverload | None:
    """The registered operator behind a call, if names holds it."""
    overloads = [func] if isinstance(func, OpOverload) else []
    if isinstance(func, OpOverloadPacket):
        overloads = [getattr(func, name) for name in func.overloads()]
    return next((each for each in overloads if is_named(each, names)), None)


def _work(func: Any, given: Any, returned: Any) -> str:
    """The operator's name where the call gave the device something to do, else nothing: views, sizes, allocations."""
    if isinstance(func, (OpOverload, OpOverloadPacket)):
        name = str(func.name() if isinstance(func, OpOverload) else func._qualified_op_name)
        acts = returned is None
    else:
        name = f"aten::{getattr(func, '__name__', '')}"
        acts = name.endswith("_") and not name.endswith("__")
    if name in ALLOCATIONS:
        return ""
    return name if acts or fresh_tensors(given, returned) else ""


def _end(graph: torch.cuda.CUDAGraph) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CUDA Graph is empty")  # its node count says so
        graph.capture_end()


def _nodes(graph: int) -> Nodes:
    # The driver ships with every GPU machine, and its CUgraph is the runtime's cudaGraph_t.
    driver = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_size_t()
    _check("cuGraphGetNodes", driver.cuGraphGetNodes(ctypes.c_void_p(graph), None, ctypes.byref(count)))
    handles = (ctypes.c_void_p * count.value)()
    if count.value:
        _check("cuGraphGetNodes", driver.cuGraphGetNodes(ctypes.c_void_p(graph), handles, ctypes.byref(count)))
    kinds: Counter[str] = Counter()
    for handle in handles:
        kind = ctypes.c_int()
        _check("cuGraphNodeGetType", driver.cuGraphNodeGetType(ctypes.c_void_p(handle), ctypes.byref(kind)))
        kinds[NODE_TYPES[kind.value] if kind.value < len(NODE_TYPES) else "other"] += 1
    return Nodes(**kinds)


def _check(function: str, status: int) -> None:
    if status != 0:
        raise RuntimeError(f"{function}: expected status 0, got {status}")


@contextmanager
def _no_gc() -> Iterator[None]:
    # A collection in mid-capture may free tensors of another graph or stream, which breaks the capture.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
