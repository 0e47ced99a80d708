"""Cut a traced graph at named operators into pieces that are captured and pieces that stay eager.

The rule is that of TensorRT-LLM's piecewise optimizer: each boundary operator is a piece of its own, excluded from
capture, so N of them with compute around each leave N + 1 captured pieces; the first `index` or `cumsum` stops the
cutting, and its piece with all that follows is excluded. The pieces are called directly.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import fx

from mlaprof.capture.dispatch import tensors_in
from mlaprof.capture.graphs import CaptureError
from mlaprof.capture.trace import Traced, example_value, op_name

STOPS = ("aten::index.Tensor", "aten::cumsum")

Kind = Literal["captured", "eager", "free"]


@dataclass(frozen=True)
class Segment:
    """One piece.

    kind   captured: becomes a graph. eager: excluded from capture. free: views, sizes and allocations only, nothing to
           launch; evaluated once per token count
    """

    name: str
    ops: tuple[str, ...]
    kind: Kind

    @property
    def captured(self) -> bool:
        return self.kind == "captured"

    def __str__(self) -> str:
        return f"{self.name} {self.kind}: {' '.join(self.ops)}"


@dataclass(frozen=True)
class Call:
    """One piece with its arguments, as the walk meets it and as the steps after the walk shall find them.

    forward   of the piece, not the piece itself: nn.Module.__call__ would be host time of every step
    names     of the arguments in the graph of pieces
    ends      the piece returns the module's output
    """

    segment: Segment
    forward: Callable[..., Any]
    names: tuple[str, ...]
    args: tuple[Any, ...]
    kept: tuple[Any, ...]
    ends: bool


@dataclass(frozen=True)
class Partition:
    """The pieces in order, as a value to print and compare; and the graph of pieces to run.

    stop   the operator at which cutting stopped, if one did
    """

    segments: tuple[Segment, ...]
    stop: str | None
    traced: Traced = field(repr=False, compare=False)
    graph_module: fx.GraphModule = field(repr=False, compare=False)  # calls one submodule per segment

    def walk(self, arguments: Sequence[object], execute: Callable[[Call], tuple[Any, Any]]) -> Any:
        """Hand every piece to execute, in order, and return what is kept of the module's output.

        execute answers (result, kept): what later pieces of this walk read, and what their steps afterwards will. A
        result is let go after its last reader, as the frame of the module itself would.
        """
        by_name = {segment.name: segment for segment in self.segments}
        nodes = list(self.graph_module.graph.nodes)
        last_reader = {given: node for node in nodes for given in node.all_input_nodes}
        values: dict[fx.Node, Any] = {}
        kept: dict[fx.Node, Any] = {}
        given = iter(arguments)
        for node in nodes:
            match node.op:
                case "output":
                    return kept[node.args[0][0]]
                case "placeholder":
                    values[node] = kept[node] = next(given)
                case "get_attr":
                    values[node] = kept[node] = operator.attrgetter(node.target)(self.graph_module)
                case "call_function":  # getitem on what a piece returned
                    values[node] = node.target(*_bound(node, values))
                    kept[node] = node.target(*_bound(node, kept))
                case "call_module":
                    values[node], kept[node] = execute(
                        Call(
                            by_name[node.target],
                            self.graph_module.get_submodule(node.target).forward,
                            tuple(str(argument) for argument in node.args),
                            _bound(node, values),
                            _bound(node, kept),
                            any(user.op == "output" for user in node.users),
                        )
                    )
            for done in (node, *node.all_input_nodes):
                if last_reader.get(done, node) is node:
                    values.pop(done, None)
        raise AssertionError("a graph ends with its output")

    def count(self, kind: Kind) -> int:
        return sum(segment.kind == kind for segment in self.segments)

    def __str__(self) -> str:
        lines = [str(segment) for segment in self.segments]
        return "\n".join([*lines, f"stopped at {self.stop}"] if self.stop else lines)


def split(traced: Traced, *, boundaries: Collection[str], stops: Collection[str] = STOPS) -> Partition:
    """Cut the graph by the rule above.

    boundaries, stops   operator names, "namespace::name" or "namespace::name.overload"

    Raises CaptureError where a boundary operator hands a new tensor to a later piece: a captured piece would read
    the address of the first one for ever.
    """
    from torch.fx.passes.split_module import split_module

    ids: dict[fx.Node, int] = {}
    excluded: set[int] = set()
    stop: str | None = None
    current = 0
    for node in traced.graph_module.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        name = op_name(node)
        if stop is None and _matches(name, boundaries):
            current += 1
            ids[node] = current
            excluded.add(current)
            current += 1
            continue
        if stop is None and _matches(name, stops):
            stop = name
            excluded.add(current)
        ids[node] = current

    # Numbers without gaps read better; which operators share one is all that matters.
    order = {number: place for place, number in enumerate(dict.fromkeys(ids.values()))}
    graph_module = traced.graph_module
    whole = split_module(graph_module, graph_module, lambda node: order[ids[node]], keep_original_order=True)
    pieces: dict[int, list[fx.Node]] = {}
    for node, number in ids.items():
        pieces.setdefault(number, []).append(node)
    segments = tuple(
        Segment(
            name=f"submod_{order[number]}",
            ops=tuple(op_name(node) for node in nodes),
            kind="eager" if number in excluded else "captured" if any(map(_launches, nodes)) else "free",
        )
        for number, nodes in pieces.items()
    )
    _check_hand_over(whole, segments)
    return Partition(segments=segments, stop=stop, traced=traced, graph_module=whole)


def _bound(node: fx.Node, values: dict[fx.Node, Any]) -> tuple[Any, ...]:
    return cast("tuple[Any, ...]", fx.map_arg(node.args, values.__getitem__))


def _matches(name: str, wanted: Collection[str]) -> bool:
    base = name.partition(".")[0]
    # A packet has no overload: it is taken for any of its overloads.
    return any(
        name == other or (base == other.partition(".")[0] and "." not in (name if "." in other else other))
        for other in wanted
    )


def _launches(node: fx.Node) -> bool:
    """Whether the node gives the device something to do; views, sizes and allocations do not."""
    target = node.target
    name = op_name(node).partition("::")[2] or op_name(node)
    # Much of torch.nn.functional takes inplace=, and what it then returns looks like a view.
    functional = getattr(target, "__module__", None) == "torch.nn.functional"
    if functional or _mutates(target, name) or "out" in node.kwargs:
        return True
    results = tensors_in(example_value(node))
    if name.startswith(("empty", "new_empty")):
        return False
    if not results:
        return isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))
    given = tensors_in([example_value(value) for value in node.all_input_nodes])
    storages = {tensor.untyped_storage()._cdata for tensor in given}
    return any(result.untyped_storage()._cdata not in storages for result in results)


def _mutates(target: Any, name: str) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return bool(target._schema.is_mutable)
    if isinstance(target, torch._ops.OpOverloadPacket):
        return any(getattr(target, overload)._schema.is_mutable for overload in target.overloads())
    if getattr(target, "__module__", None) == "_operator":  # iadd and its kin write to their first argument
        return name == "setitem" or (name.startswith("i") and hasattr(operator, f"__{name}__"))
    return name.endswith("_") and not name.endswith("__")


def _check_hand_over(whole: fx.GraphModule, segments: Sequence[Segment]) -> None:
    """Only the last piece to run may return a tensor without being captured, and only to the caller."""
    by_name = {segment.name: segment for segment in segments}
    calls = [node for node in whole.graph.nodes if node.op == "call_module"]
    for place, node in enumerate(calls):
        segment = by_name[node.target]
        if segment.kind != "eager" or not node.users:
            continue
        last = all(by_name[later.target].kind == "free" for later in calls[place + 1 :])
        if not last or any(user.op != "output" for user in node.users):
            raise CaptureError(
                f"{segment.ops[0]} stays eager and hands a new tensor to what follows, which would keep reading the "
                "first one: let it write into a tensor allocated before it",
                op=segment.ops[0],
            )
