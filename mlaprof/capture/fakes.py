"""Whether operators return what the trace took for granted.

A trace knows an operator by its fake kernel alone. One that returns another number of tensors for some batch, or other
shapes, would be unpacked wrongly in every piece cut from that trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from mlaprof.capture.dispatch import tensors_in
from mlaprof.capture.graphs import CaptureError
from mlaprof.capture.trace import Traced, example_value, op_name


def check_fakes(traced: Traced, arguments: Sequence[object], num_tokens: int) -> None:
    """Run the traced graph once, operator by operator, and compare each result with the one of the trace.

    arguments    of the graph, for num_tokens rows

    Count, dtype, rank and sizes of the tensors are compared; sizes that depend on data are not. Raises CaptureError
    naming the first operator that differs.
    """
    _Checked(traced.graph_module, num_tokens).run(*arguments)


class _Checked(fx.Interpreter):
    def __init__(self, graph_module: fx.GraphModule, num_tokens: int) -> None:
        super().__init__(graph_module)
        self.extra_traceback = False
        self._num_tokens = num_tokens

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op in ("call_function", "call_method", "call_module"):
            self._compare(op_name(n), example_value(n), result)
        return result

    def _compare(self, name: str, example: Any, result: Any) -> None:
        promised, returned = tensors_in(example), tensors_in(result)
        if len(promised) != len(returned):
            raise CaptureError(
                f"{name}: traced with {len(promised)} tensors returned, returns {len(returned)} for {self._num_tokens} "
                "tokens: what it returns must not depend on the batch",
                op=name,
            )
        for place, (fake, real) in enumerate(zip(promised, returned, strict=True)):
            shape = [self._size(size) for size in fake.shape]
            sizes_differ = any(want not in (None, got) for want, got in zip(shape, real.shape, strict=False))
            if fake.dtype != real.dtype or len(shape) != real.dim() or sizes_differ:
                want = tuple("?" if size is None else size for size in shape)
                raise CaptureError(
                    f"{name}: tensor {place} was traced as {want} {fake.dtype}, is {tuple(real.shape)} {real.dtype} "
                    f"for {self._num_tokens} tokens: its fake kernel and its real one disagree",
                    op=name,
                )

    def _size(self, size: int | torch.SymInt) -> int | None:
        """At this token count; None where it depends on data."""
        if not isinstance(size, torch.SymInt):
            return size
        expression = size.node.expr
        if any(size.node.shape_env.is_unbacked_symint(symbol) for symbol in expression.free_symbols):
            return None
        return int(expression.subs(dict.fromkeys(expression.free_symbols, self._num_tokens)))
