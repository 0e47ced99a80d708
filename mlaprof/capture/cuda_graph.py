"""CUDA graphs: one pool and one capture stream for all of them, as serving engines do."""

from __future__ import annotations

import ctypes
import gc
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch

from mlaprof.capture.graphs import CaptureError, first_line

T = TypeVar("T")
TORCH = os.path.dirname(torch.__file__)


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
        gc.collect()
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with _no_gc(), torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pools[-1])
            try:
                result = fn()
                graph.capture_end()
            except Exception as error:
                self._abandon(graph)
                where = _source_line(error)
                raise CaptureError(f"{first_line(error)} (at {where})", op=where) from error
        graph.instantiate()
        return CudaGraph(graph), result

    def pool_bytes(self) -> int:
        """Device memory reserved by the pool."""
        pools = {tuple(pool) for pool in self._pools}
        segments = torch.cuda.memory_snapshot()
        return sum(segment["total_size"] for segment in segments if tuple(segment["segment_pool_id"]) in pools)

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture that fn left by an exception, on the capture stream."""
        try:
            graph.capture_end()
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


def _source_line(error: BaseException) -> str:
    """The innermost line outside torch; of a traced piece, its generated line."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not frame.filename.startswith(TORCH)] or list(frames)
    frame = outside[-1]
    return f"{frame.filename}:{frame.lineno} {frame.line or frame.name}"
