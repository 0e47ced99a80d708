"""Trace a module into one graph for every token count.

The graph is the one Dynamo hands to a backend, before any functionalisation: an operator that mutates `output` still
mutates it here. Nothing runs through Dynamo afterwards: there is one trace for every token count, as in engines once
their guards are dropped, and what it takes for granted of the token count is checked here instead.
"""

from __future__ import annotations

import copy
import operator
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from mlaprof.capture.graphs import CaptureError, first_line


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
            raise CaptureError(f"cannot trace the module: {first_line(error)}", op=_user_line(error)) from error
    if not found:
        raise CaptureError("cannot trace the module: it computes nothing on its inputs")
    if isinstance(found[0], CaptureError):
        raise found[0]
    return found[0]


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
        from_tensor = isinstance(example_value(source), Tensor)
        return "aten::index.Tensor" if from_tensor and _gathers(index) else "getitem"
    name = target if isinstance(target, str) else target.__name__
    return f"aten::{name}" if hasattr(torch.ops.aten, name) else name


def example_value(value: Any) -> Any:
    """What Dynamo saw a node compute, fake tensors in it; of what is no node, the value itself."""
    return value.meta.get("example_value") if isinstance(value, fx.Node) else value


def _gathers(index: Any) -> bool:
    """Whether x[index] reads rows by number or mask rather than taking a view."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, (list, bool)) or isinstance(example_value(part), Tensor) for part in parts)


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
            bindings.append(_NumTokens() if isinstance(example_value(node), torch.SymInt) else _Fixed(argument))
            continue
        bindings.append(_Input(position))
        example = example_value(node)
        guards = example.fake_mode.shape_env.guards
        count = example.shape[0]
        if not isinstance(count, torch.SymInt) or count.node.expr.is_number:
            where = next((_where(guard) for guard in guards if _pins(guard)), "a place Dynamo does not name")
            raise CaptureError(f"the module fixes the token count to {count} ({where})", op=where)
        tokens.add(count.node.expr)
    for node in placeholders:
        value = example_value(node)
        if isinstance(value, torch.SymInt) and value.node.expr not in tokens:
            raise CaptureError(f"{node.name}: a size other than the token count is left open", op=node.name)
    [result] = [node for node in graph_module.graph.nodes if node.op == "output"]
    if len(result.args[0]) != 1:
        raise CaptureError(
            f"the module must return one new tensor and keep none, its graph gives {len(result.args[0])}"
        )
    assumptions = tuple(Assumption(guard.expr, _where(guard)) for guard in guards)
    return Traced(graph_module, tuple(bindings), assumptions)


def _pins(guard: Any) -> bool:
    return bool(guard.expr.is_Equality and guard.expr.rhs.is_number)


def _where(guard: Any) -> str:
    return str(guard.sloc.maybe_user_loc or guard.sloc.framework_loc)


def _user_line(error: BaseException) -> str:
    frames = re.findall(r'File "(.+?)", line (\d+)', str(error))
    return ":".join(frames[-1]) if frames else ""
