"""The semantics of CUDA graphs on a CPU, so that every capture mode runs and is tested without a GPU.

Capture runs fn once and records the ATen calls below it with their tensors. Replay makes the same calls again, without
the Python that led to them, and copies what they return into the tensors recorded first: fixed addresses, frozen
control flow. Three differences from the real thing: temporaries of one pool are not re-used, so `pool_bytes` is an
upper bound; reads of a tensor that bypass the dispatcher (`tolist`, `numpy`) go unseen; and one number written under a
mask is held whoever made it, where a GPU holds it from the host only.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlaprof.capture.graphs import CaptureError

T = TypeVar("T")

# An allocation is no node: a replay must find in it what earlier replays left.
ALLOCATIONS = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")
)


@dataclass(frozen=True)
class _Call:
    func: OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    fresh: tuple[tuple[int, Tensor], ...]  # (place among the returned tensors, tensor to copy it into)

    def again(self) -> None:
        returned = self.func(*self.args, **self.kwargs)
        if not self.fresh:
            return
        tensors = _tensors(returned)
        for place, recorded in self.fresh:
            result = tensors[place]
            if result.shape != recorded.shape or result.dtype != recorded.dtype:
                raise CaptureError(
                    f"{self.func.name()}: captured with an output of {tuple(recorded.shape)} {recorded.dtype}, "
                    f"replay gave {tuple(result.shape)} {result.dtype}",
                    op=self.func.name(),
                )
            recorded.copy_(result)


class CpuGraph:
    """The recorded calls of one capture."""

    def __init__(self, calls: tuple[_Call, ...], pool_bytes: int) -> None:
        self._calls = calls
        self.num_nodes = len(calls)
        self.pool_bytes = pool_bytes

    def replay(self) -> None:
        """Run every recorded call again, in order, whatever the caller's grad mode."""
        # Tensors recorded under inference mode may be written only there; ordinary ones may be written there too.
        with torch.inference_mode():
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
        self._graphs: weakref.WeakSet[CpuGraph] = weakref.WeakSet()

    def capture(self, fn: Callable[[], T]) -> tuple[CpuGraph, T]:
        """Record fn under inference or no-grad mode alike; unlike on a GPU, the result holds values at once.

        Raises CaptureError naming the operator where fn waits for a value, has an output whose shape depends on data,
        or copies a Python list to a tensor: what a stream capture refuses.
        """
        recorder = _Recorder(self._see_through)
        with recorder:
            result = fn()
        graph = CpuGraph(tuple(recorder.calls), recorder.pool_bytes)
        self._graphs.add(graph)
        return graph, result

    def pool_bytes(self) -> int:
        """Bytes of the storages allocated in captures whose graphs are alive."""
        return sum(graph.pool_bytes for graph in self._graphs)


class _Recorder(TorchDispatchMode):
    def __init__(self, see_through: frozenset[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self.pool_bytes = 0
        self._see_through = see_through

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in self._see_through:
            with self:
                return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
        # Under inference mode composite operators arrive whole, otherwise in parts: record the parts in both.
        if func._can_decompose() and torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), torch._C.DispatchKey.CompositeImplicitAutograd
        ):
            with self:
                return func.decompose(*args, **kwargs)
        reason = _refusal(func, args, kwargs)
        if reason:
            raise CaptureError(f"{func.name()}: {reason}", op=func.name())
        returned = func(*args, **kwargs)
        self._record(func, args, kwargs, returned)
        return returned

    def _record(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], returned: Any) -> None:
        given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        tensors = _tensors(returned)
        fresh = tuple((place, tensor) for place, tensor in enumerate(tensors) if _storage(tensor) not in given)
        storages = {_storage(tensor): tensor.untyped_storage().nbytes() for _, tensor in fresh}
        self.pool_bytes += sum(storages.values())
        if func._schema.name in ALLOCATIONS:
            return
        # What returns only views of its arguments and mutates none is done for good; what returns nothing acts.
        if fresh or func._schema.is_mutable or not tensors:
            self.calls.append(_Call(func, args, kwargs, fresh))


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


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
