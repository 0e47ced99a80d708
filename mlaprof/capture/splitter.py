"""Cut a module's graph at named operators into pieces that are captured and pieces that stay eager.

The rule is that of TensorRT-LLM's piecewise optimizer: each boundary operator is a piece of its own, excluded from
capture, so N of them with compute around each leave N + 1 captured pieces; the first `index` or `cumsum` stops the
cutting, and its piece with all that follows is excluded.

The graph is the one Dynamo hands to a backend, before any functionalisation: an operator that mutates `output` still
mutates it here. Nothing runs through Dynamo afterwards. The pieces are called directly, with one trace for every token
count, as engines do once their guards are dropped.
"""

from __future__ import annotations

import copy
import functools
import operator
import re
import types
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from mlaprof.capture.graphs import CaptureError

STOPS = ("aten::index.Tensor", "aten::cumsum")

Kind = Literal["captured", "eager", "free"]


@dataclass(frozen=True)
class _Input:
    """A placeholder that takes the module's input of this position."""

    position: int


@dataclass(frozen=True)
class _NumTokens:
    """A placeholder that takes the token count."""


@dataclass(frozen=True)
class _Fixed:
    """A placeholder that always takes this value: a parameter, a buffer."""

    value: object


Binding = _Input | _NumTokens | _Fixed


@dataclass(frozen=True)
class Assumption:
    """What the traced path takes for granted of the token count, and the source line that asked."""

    condition: Any  # sympy, one symbol or none
    where: str

    def holds(self, num_tokens: int) -> bool:
        values = dict.fromkeys(self.condition.free_symbols, num_tokens)
        return bool(self.condition.subs(values))


@dataclass(frozen=True)
class Traced:
    """One graph of a module for every token count."""

    graph_module: fx.GraphModule
    bindings: tuple[Binding, ...]  # one per placeholder
    assumptions: tuple[Assumption, ...]

    def arguments(self, inputs: Sequence[Tensor]) -> tuple[object, ...]:
        """The graph's arguments for these inputs, [num_tokens, ...] each.

        Raises CaptureError where the traced path does not hold for this token count.
        """
        num_tokens = inputs[0].shape[0]
        for assumption in self.assumptions:
            if not assumption.holds(num_tokens):
                raise CaptureError(
                    f"the module was traced on a path that needs {assumption.condition}, which {num_tokens} tokens do "
                    f"not meet ({assumption.where})",
                    op=assumption.where,
                )
        return tuple(self._value(binding, inputs) for binding in self.bindings)

    @staticmethod
    def _value(binding: Binding, inputs: Sequence[Tensor]) -> object:
        match binding:
            case _Input(position):
                return inputs[position]
            case _NumTokens():
                return inputs[0].shape[0]
            case _Fixed(value):
                return value


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
class Partition:
    """The pieces in order, as a value to print and compare; and the graph of pieces to run.

    stop   the operator at which cutting stopped, if one did
    """

    segments: tuple[Segment, ...]
    stop: str | None
    traced: Traced = field(repr=False, compare=False)
    graph_module: fx.GraphModule = field(repr=False, compare=False)  # calls one submodule per segment

    def walk(
        self, arguments: Sequence[object], execute: Callable[[Segment, Callable[[], object], bool], object]
    ) -> Tensor:
        """Hand every piece, in order, with its arguments bound, to execute(segment, call, ends) and return the output.

        execute returns what stands for call's result in later pieces; ends: the result is the module's output.
        """
        by_name = {segment.name: segment for segment in self.segments}
        values: dict[fx.Node, Any] = {}
        given = iter(arguments)
        for node in self.graph_module.graph.nodes:
            if node.op == "output":
                break
            inputs = fx.map_arg(node.args, values.__getitem__)
            match node.op:
                case "placeholder":
                    values[node] = next(given)
                case "get_attr":
                    values[node] = operator.attrgetter(node.target)(self.graph_module)
                case "call_function":  # getitem on what a piece returned
                    values[node] = node.target(*inputs)
                case "call_module":
                    # forward, not the module: nn.Module.__call__ would be host time of every step
                    call = functools.partial(self.graph_module.get_submodule(node.target).forward, *inputs)
                    ends = any(user.op == "output" for user in node.users)
                    values[node] = execute(by_name[node.target], call, ends)
        return cast(Tensor, values[node.args[0][0]])

    def count(self, kind: Kind) -> int:
        return sum(segment.kind == kind for segment in self.segments)

    def __str__(self) -> str:
        lines = [str(segment) for segment in self.segments]
        return "\n".join([*lines, f"stopped at {self.stop}"] if self.stop else lines)


def trace(module: nn.Module, example_inputs: Sequence[Tensor]) -> Traced:
    """The graph of module(*example_inputs) with the token count, dimension 0 of every input, left open.

    example_inputs   [num_tokens, ...] each, num_tokens >= 2; read for shape and dtype, the module is not run

    Raises CaptureError naming the line where the module cannot be traced or fixes the token count, ValueError on unfit
    inputs. A branch on `num_tokens == 1` cannot be told from none: the graph takes the path of larger counts.
    """
    import torch._dynamo  # seconds, and only the piecewise modes need it

    counts = {tensor.shape[0] for tensor in example_inputs}
    if len(counts) != 1 or min(counts) < 2:
        raise ValueError(f"example_inputs: expected one num_tokens >= 2, got {sorted(counts)}")

    found: list[Traced | CaptureError] = []

    def backend(graph_module: fx.GraphModule, arguments: Sequence[object]) -> Any:
        # A failed backend's graph is emptied (torch 2.15), so it is read here, in a copy.
        own = fx.GraphModule(graph_module, copy.deepcopy(graph_module.graph))
        try:
            found.append(_bind(own, arguments, views))
        except CaptureError as error:
            found.append(error)
        raise RuntimeError("the graph is all that was wanted")

    views = [tensor[:] for tensor in example_inputs]  # marks stay off the caller's tensors
    for view in views:
        torch._dynamo.mark_dynamic(view, 0)
    compiled: Callable[..., object] = torch.compile(
        _fresh_entry(module), backend=backend, fullgraph=True, dynamic=False
    )
    try:
        compiled(*views)
    except Exception as error:
        if not found:
            raise CaptureError(f"cannot trace the module: {_reason(error)}", op=_user_line(error)) from error
    if not found:
        raise CaptureError("cannot trace the module: it computes nothing on its inputs")
    if isinstance(found[0], CaptureError):
        raise found[0]
    return found[0]


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


def op_name(node: fx.Node) -> str:
    """The operator of a Dynamo or ATen graph node in one spelling: "aten::add", "aten::index.Tensor", "toy::op".

    Indexing with a tensor, a list or a mask is aten::index.Tensor; with slices and numbers it is getitem.
    """
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target.name())
    if isinstance(target, torch._ops.OpOverloadPacket):
        return str(target._qualified_op_name)
    if target is operator.getitem:
        source, index = node.args
        from_tensor = isinstance(_example(source), Tensor)
        return "aten::index.Tensor" if from_tensor and _gathers(index) else "getitem"
    name = target if isinstance(target, str) else target.__name__
    return f"aten::{name}" if hasattr(torch.ops.aten, name) else name


def _gathers(index: Any) -> bool:
    """Whether x[index] reads rows by number or mask rather than taking a view."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, (list, bool)) or isinstance(_example(part), Tensor) for part in parts)


def _matches(name: str, wanted: Collection[str]) -> bool:
    base = name.partition(".")[0]
    # A packet has no overload: it is taken for any of its overloads.
    return any(
        name == other or (base == other.partition(".")[0] and "." not in (name if "." in other else other))
        for other in wanted
    )


def _example(value: Any) -> Any:
    return value.meta.get("example_value") if isinstance(value, fx.Node) else value


def _launches(node: fx.Node) -> bool:
    """Whether the node gives the device something to do; views, sizes and allocations do not."""
    target = node.target
    name = op_name(node).partition("::")[2] or op_name(node)
    if _mutates(target, name) or "out" in node.kwargs:
        return True
    results = [leaf for leaf in tree_leaves(_example(node)) if isinstance(leaf, Tensor)]
    if name.startswith(("empty", "new_empty")):
        return False
    if not results:
        return isinstance(target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)) and "sym" not in name
    given = [leaf for value in node.all_input_nodes for leaf in tree_leaves(_example(value))]
    storages = {leaf.untyped_storage()._cdata for leaf in given if isinstance(leaf, Tensor)}
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


def _fresh_entry(module: nn.Module) -> Any:
    """A function around module on a code object of its own: Dynamo counts recompilations per code object."""

    def forward(*inputs: Tensor) -> object:
        return module(*inputs)

    # dict(globals()): Dynamo leaves names of its own there
    return types.FunctionType(forward.__code__.replace(), dict(globals()), "forward", None, forward.__closure__)


def _bind(graph_module: fx.GraphModule, arguments: Sequence[object], inputs: Sequence[Tensor]) -> Traced:
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    bindings: list[Binding] = []
    tokens: set[object] = set()
    guards: list[Any] = []
    for node, argument in zip(placeholders, arguments, strict=True):
        position = next((at for at, tensor in enumerate(inputs) if tensor is argument), None)
        if position is None:
            bindings.append(_NumTokens() if isinstance(_example(node), torch.SymInt) else _Fixed(argument))
            continue
        bindings.append(_Input(position))
        example = _example(node)
        guards = example.fake_mode.shape_env.guards
        count = example.shape[0]
        if not isinstance(count, torch.SymInt) or count.node.expr.is_number:
            where = next((_where(guard) for guard in guards if _pins(guard)), "a place Dynamo does not name")
            raise CaptureError(f"the module fixes the token count to {count} ({where})", op=where)
        tokens.add(count.node.expr)
    for node in placeholders:
        value = _example(node)
        if isinstance(value, torch.SymInt) and value.node.expr not in tokens:
            raise CaptureError(f"{node.name}: a size other than the token count is left open", op=node.name)
    [result] = [node for node in graph_module.graph.nodes if node.op == "output"]
    if len(result.args[0]) != 1:
        raise CaptureError(f"the module must return one new tensor and keep none, it has {len(result.args[0])}")
    assumptions = tuple(Assumption(guard.expr, _where(guard)) for guard in guards)
    return Traced(graph_module, tuple(bindings), assumptions)


def _pins(guard: Any) -> bool:
    return bool(guard.expr.is_Equality and guard.expr.rhs.is_number)


def _where(guard: Any) -> str:
    return str(guard.sloc.maybe_user_loc or guard.sloc.framework_loc)


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _user_line(error: BaseException) -> str:
    frames = re.findall(r'File "(.+?)", line (\d+)', str(error))
    return ":".join(frames[-1]) if frames else ""
