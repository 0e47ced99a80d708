"""CUDA graphs: one pool and one capture stream for all of them, as serving engines do."""

from __future__ import annotations

import ctypes
import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from mlaprof.capture.graphs import CaptureError

T = TypeVar("T")


class CudaGraph:
    """One instantiated CUDA graph."""

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph = graph
        self.num_nodes = _count_nodes(graph.raw_cuda_graph())
        self.replay: Callable[[], None] = graph.replay  # bound once: submit time is measured


class CudaGraphs:
    """Captures CUDA graphs. num_nodes counts what the driver counts: kernels, copies, memsets."""

    emulated = False

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()
        # cuBLAS keeps a workspace per stream for good; taken inside the first capture, it would sit in the pool and be
        # counted (32 MiB on Hopper) as memory of whichever graph came first.
        with torch.cuda.stream(self._stream):
            seed = torch.ones(16, 16, device="cuda", dtype=torch.bfloat16)
            torch.mm(seed, seed)
        self._stream.synchronize()

    def capture(self, fn: Callable[[], T]) -> tuple[CudaGraph, T]:
        """Record fn on the capture stream. Warm it up before: a first call compiles, tunes and allocates.

        Raises CaptureError naming the source line at which the capture broke.
        """
        gc.collect()
        current = torch.cuda.current_stream()
        current.synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        self._stream.wait_stream(current)
        with _no_gc(), torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool)
            try:
                result = fn()
            except Exception as error:
                _abandon(graph)
                where = _source_line(error)
                raise CaptureError(f"{_first_line(error)} (at {where})", op=where) from error
            try:
                graph.capture_end()
            except RuntimeError as error:
                _abandon(graph)
                raise CaptureError(_first_line(error)) from error
        graph.instantiate()
        current.wait_stream(self._stream)
        return CudaGraph(graph), result

    def pool_bytes(self) -> int:
        """Device memory reserved by the pool."""
        segments = torch.cuda.memory_snapshot()
        return sum(s["total_size"] for s in segments if tuple(s["segment_pool_id"]) == tuple(self._pool))


def _count_nodes(graph: int) -> int:
    # The driver ships with every GPU machine, and its CUgraph is the runtime's cudaGraph_t.
    driver = ctypes.CDLL("libcuda.so.1")
    count = ctypes.c_size_t()
    status = driver.cuGraphGetNodes(ctypes.c_void_p(graph), None, ctypes.byref(count))
    if status != 0:
        raise RuntimeError(f"cuGraphGetNodes: expected status 0, got {status}")
    return count.value


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


def _abandon(graph: torch.cuda.CUDAGraph) -> None:
    try:
        graph.capture_end()
    except RuntimeError:
        return  # an invalidated capture cannot end well; ending it is what frees the stream
    graph.reset()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _source_line(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{frame.filename}:{frame.lineno} {frame.line or frame.name}"
