"""What one step asks of the driver: launches, graph launches, synchronisations, copies, allocations.

The numbers come from a pass of its own, because a profiler slows what it watches; no timed sample is taken in it. The
one time told of it is what synchronising calls waited, which no other clock can tell from work.
"""

from __future__ import annotations

import collections
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.profiler import record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlaprof.measure.activity import API, PAD_S, Activity, activities, profiler

Step = Callable[[], object]
Tally = collections.Counter[str]  # field of Counts -> how often in one step


@dataclass(frozen=True)
class Counts:
    """Numbers of one step; where the profiled steps differ, the largest of each."""

    steps: int  # that were profiled
    steady: bool  # every profiled step had the same numbers
    kernels: int = 0  # seen on the device, those inside graphs too
    kernel_launches: int = 0  # kernels that the host launched one by one
    graph_launches: int = 0
    stream_syncs: int = 0  # blocking copies too: the host waits for those as well
    device_syncs: int = 0
    event_syncs: int = 0
    d2h_copies: int = 0  # device to host
    h2d_copies: int = 0
    allocations: int = 0  # blocks asked of torch's allocator
    driver_allocations: int = 0  # device or pinned memory asked of the driver
    sync_wait_s: float | None = None  # host time inside synchronising calls, the median step; None where not seen


def complete(counts: Counts, graph_kernels: int) -> bool:
    """Whether the account closes: steady, and every kernel seen is launched by the host or a node of a replayed graph.

    graph_kernels   kernel nodes of all graphs that a step replays, each times its replays, as the captures counted
    """
    return counts.steady and counts.kernels == graph_kernels + counts.kernel_launches


class Counter(Protocol):
    """Counts what a step asks for."""

    def count_steps(self, step: Step, *, steps: int = 3) -> Counts:
        """Call step a few times to warm up, then profile `steps` calls of it. Raises ValueError on steps < 1."""
        ...


# By the driver's own account

MARK = "mlaprof step"
HOST_CALLS = {
    "kernel_launches": re.compile(r"cu(da)?Launch(Cooperative)?Kernel"),
    "graph_launches": re.compile(r"cu(da)?GraphLaunch"),
    "stream_syncs": re.compile(r"cu(da)?(StreamSynchronize|Memcpy(?!\w*Async))"),
    "device_syncs": re.compile(r"cuda(Device|Thread)Synchronize|cuCtxSynchronize"),
    "event_syncs": re.compile(r"cu(da)?EventSynchronize"),
    "driver_allocations": re.compile(r"cuda(Malloc|HostAlloc)|cuMem(Create|Alloc|HostAlloc)"),
}
SYNCS = ("stream_syncs", "device_syncs", "event_syncs")
ALLOCATOR = {"allocations": "allocation.all.allocated", "driver_allocations": "num_device_alloc"}


class CudaCounter:
    """torch.profiler, which is CUPTI, around marked steps; torch's allocator is read in the same pass, at the marks.

    The first session and the first step of each go uncounted: a profiler may lose what it sees first (SGLang #22590).
    CUPTI's records as torch keeps them hold every call of the runtime API that is counted here, but of direct calls of
    the driver API only kernel launches (as Triton makes them). count_steps raises RuntimeError where they hold none of
    a kernel launched for the purpose: a profiler that sees nothing would otherwise count a step of nothing.
    """

    def count_steps(self, step: Step, *, steps: int = 3) -> Counts:
        _check(steps)
        probe = torch.empty(1, device="cuda")
        with profiler():
            step()
        allocated = []
        with profiler() as session:
            step()
            probe.fill_(1.0)
            for _ in range(steps):
                torch.cuda.synchronize()
                time.sleep(PAD_S)
                before = torch.cuda.memory_stats()
                with record_function(MARK):
                    step()
                after = torch.cuda.memory_stats()
                time.sleep(PAD_S)
                allocated.append({field: after[key] - before[key] for field, key in ALLOCATOR.items()})
        found = activities(session)
        check_seen(found)
        tallies = tally_steps(found)
        if len(tallies) != steps:
            raise RuntimeError(f"profiler: expected {steps} marked steps in its records, got {len(tallies)}")
        for tally, numbers in zip(tallies, allocated, strict=True):
            for field, number in numbers.items():
                # Both see cudaMalloc; only torch sees its own calls of the driver, only CUPTI other libraries.
                tally[field] = max(tally[field], number)
        return replace(_worst(tallies), sync_wait_s=median(sync_waits_s(found)))


def check_seen(activities: Sequence[Activity]) -> None:
    """Raise where neither the probe nor any other kernel, or no call that launched one, was recorded."""
    launches = sum(bool(HOST_CALLS["kernel_launches"].match(each.name)) for each in activities if not each.on_device)
    kernels = sum(_kind(each.name) == "kernels" for each in activities if each.on_device)
    if not launches or not kernels:
        raise RuntimeError(
            f"profiler: expected records of launches and of kernels, got {launches} and {kernels}; "
            "CUPTI serves one client at a time: is another profiler (nsys, ncu) attached?"
        )


def tally_steps(activities: Iterable[Activity]) -> list[Tally]:
    """What each marked step asked for, in order of time, by the fields of Counts; `other` is work that has no field.

    A call of the host belongs to the step in whose mark it began. Device work belongs to the step of its call, by
    correlation, however late it ran; where the profiler kept no such call, to the last step begun before it ran.
    """
    known = list(activities)
    marks = _marks(known)
    begins = [mark.start_ns for mark in marks]
    step_of: dict[int, int | None] = {}  # correlation -> step; None is outside all marks
    asked: list[set[tuple[str, int]]] = [set() for _ in marks]
    for call in known:
        if call.on_device or not API.match(call.name):
            continue
        step = bisect_right(begins, call.start_ns) - 1
        if step < 0 or call.start_ns > marks[step].end_ns:
            step_of[call.correlation] = None
            continue
        step_of[call.correlation] = step
        # A set: a call of the driver that one of the runtime makes has the same correlation.
        asked[step].update((field, call.correlation) for field, name in HOST_CALLS.items() if name.match(call.name))
    tallies = [Tally(field for field, _ in calls) for calls in asked]
    for work in known:
        if not work.on_device:
            continue
        owner = step_of.get(work.correlation, bisect_right(begins, work.start_ns) - 1)
        if owner is not None and owner >= 0:
            tallies[owner][_kind(work.name)] += 1
    return tallies


def sync_waits_s(activities: Collection[Activity]) -> list[float]:
    """Host seconds inside synchronising calls of each marked step, in order of time."""
    marks = _marks(activities)
    waits: list[dict[int, float]] = [{} for _ in marks]
    for call in activities:
        if call.on_device or not any(HOST_CALLS[field].match(call.name) for field in SYNCS):
            continue
        for mark, found in zip(marks, waits, strict=True):
            if mark.start_ns <= call.start_ns <= mark.end_ns:
                # A call of the driver that one of the runtime makes has the same correlation, and lies within it.
                wait_s = (call.end_ns - call.start_ns) * 1e-9
                found[call.correlation] = max(wait_s, found.get(call.correlation, 0.0))
    return [sum(found.values()) for found in waits]


def _marks(activities: Iterable[Activity]) -> list[Activity]:
    return sorted((each for each in activities if each.name == MARK), key=lambda mark: mark.start_ns)


def _kind(device_work: str) -> str:
    if device_work.startswith("Memcpy"):
        return {"DtoH": "d2h_copies", "HtoD": "h2d_copies"}.get(device_work[7:11], "other")
    return "other" if device_work.startswith("Memset") else "kernels"


# Emulated

ALLOCATIONS = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")
)
READS = "aten::_local_scalar_dense"  # below .item(), int(), bool()
LISTS = "aten::lift_fresh"  # ends torch.tensor([...])


class CpuCounter:
    """Operators for kernels, by a dispatch mode: what the step would ask of a device, as far as operators tell.

    Every operator that writes is a kernel and, outside graphs, a launch; views and allocations are none. Where the
    host must wait for a value or a shape, as in .item(), nonzero or x[mask], that is a stream synchronisation and a
    copy to the host; a Python list made a tensor is one and a copy to the device. Reads that bypass the dispatcher
    (tolist, numpy) go unseen, as do other copies: there is one memory. An allocation is a new storage.

    see_through  names of operators, e.g. "mlaprof::mla_dsa_proj", whose CPU kernels are Python made of operators;
                 every other custom operator is one kernel
    replayed     running totals (graphs replayed, their nodes) of the emulated graphs, whose replays must hide their
                 operators from dispatch modes, as a launch on a GPU does; without it no graph is expected
    """

    def __init__(
        self, see_through: Collection[str] = (), replayed: Callable[[], tuple[int, int]] = lambda: (0, 0)
    ) -> None:
        self._see_through = frozenset(see_through)
        self._replayed = replayed

    def count_steps(self, step: Step, *, steps: int = 3) -> Counts:
        _check(steps)
        step()
        tallies = []
        for _ in range(steps):
            graphs, nodes = self._replayed()
            with _OperatorTally(self._see_through) as mode:
                step()
            graphs_after, nodes_after = self._replayed()
            mode.tally["graph_launches"] += graphs_after - graphs
            mode.tally["kernels"] += nodes_after - nodes
            tallies.append(mode.tally)
        return _worst(tallies)


class _OperatorTally(TorchDispatchMode):
    def __init__(self, see_through: frozenset[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tally = Tally()
        self._see_through = see_through

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in self._see_through:
            with self:
                return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
        # Under inference mode composite operators arrive whole, otherwise in parts: count the parts in both.
        if func._can_decompose() and torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), torch._C.DispatchKey.CompositeImplicitAutograd
        ):
            with self:
                return func.decompose(*args, **kwargs)
        returned = func(*args, **kwargs)
        if func.namespace != "profiler":
            self._count(func, args, kwargs, returned)
        return returned

    def _count(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], returned: Any) -> None:
        name, results = func._schema.name, _tensors(returned)
        given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        fresh = {_storage(tensor) for tensor in results} - given
        self.tally["allocations"] += len(fresh)
        if _host_waits(func, args, kwargs):
            self.tally["stream_syncs"] += 1
            self.tally["d2h_copies"] += 1
        if name == LISTS and args[0].dim() > 0:
            self.tally["stream_syncs"] += 1
            self.tally["h2d_copies"] += 1
        views = torch.Tag.inplace_view in func.tags
        writes = bool(fresh) or not results or (func._schema.is_mutable and not views)
        if writes and name not in ALLOCATIONS and name != READS:
            self.tally["kernels"] += 1
            self.tally["kernel_launches"] += 1


def _host_waits(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    name = func._schema.name
    if torch.Tag.data_dependent_output in func.tags:
        return True
    if name in ("aten::index", "aten::index_put", "aten::index_put_"):
        masks = [each for each in args[1] if each is not None and each.dtype in (torch.bool, torch.uint8)]
        # One number under one mask is written by masked_fill, which needs no row numbers.
        values = args[2] if len(args) > 2 else None
        return bool(masks) and (values is None or values.numel() != 1 or len(args[1]) > 1)
    if name == "aten::repeat_interleave" and kwargs.get("output_size") is not None:
        return False
    return torch.Tag.dynamic_output_shape in func.tags


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


# Both


def _check(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")


def _worst(tallies: Sequence[Tally]) -> Counts:
    numbers = [field.name for field in fields(Counts) if field.name not in ("steps", "steady", "sync_wait_s")]
    return Counts(
        steps=len(tallies),
        steady=all(tally == tallies[0] for tally in tallies),
        **{name: max(tally[name] for tally in tallies) for name in numbers},
    )
