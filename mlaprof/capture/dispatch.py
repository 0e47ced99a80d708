"""What a graph maker learns of operator calls as they pass the dispatcher, on any device."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map_only

from mlaprof.capture.graphs import Break, CaptureError, first_line

T = TypeVar("T")

# An allocation is no node: a replay must find in it what earlier replays left.
ALLOCATIONS = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")
)


def is_named(func: OpOverload, names: Collection[str]) -> bool:
    """Whether names holds the operator, as "namespace::name" or with its overload, "namespace::name.overload"."""
    base = func._schema.name
    return base in names or f"{base}.{func._overloadname}" in names


def is_composite(func: OpOverload) -> bool:
    """Whether the operator is made of others. Inference mode hands it over whole, no-grad mode in parts."""
    return bool(
        func._can_decompose()
        and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), torch._C.DispatchKey.CompositeImplicitAutograd)
    )


def fresh_tensors(given: Any, returned: Any) -> tuple[tuple[int, Tensor], ...]:
    """(place among the returned tensors, tensor) of those that share no storage with a tensor given."""
    storages = {tensor.untyped_storage()._cdata for tensor in tensors_in(given)}
    return tuple(
        (place, tensor)
        for place, tensor in enumerate(tensors_in(returned))
        if tensor.untyped_storage()._cdata not in storages
    )


def is_work(func: OpOverload, given: Any, returned: Any) -> bool:
    """Whether the call gave the device something to do.

    What returns only views of its arguments and mutates none did not; what returns nothing acts.
    """
    if func._schema.name in ALLOCATIONS:
        return False
    return bool(func._schema.is_mutable or not tensors_in(returned) or fresh_tensors(given, returned))


def run_break(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Break:
    """Run an operator between two captures and return the call, to be made again between their replays.

    Raises CaptureError naming the operator where it fails or returns something.
    """
    op = func.name()
    if func._schema.returns:
        raise CaptureError(
            f"{op} stays eager and hands its result to what follows, which would keep reading the first one: let it "
            "write into a tensor allocated before it",
            op=op,
        )
    step = Break(op, func, args, kwargs)
    try:
        step()
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"{op}, run between two captures: {first_line(error)}", op=op) from error
    return step


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of nested lists, tuples and dicts, in order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def on_storage(tensor: Tensor, storage: torch.UntypedStorage) -> Tensor:
    """A tensor of the same shape, strides, offset and dtype on another storage."""
    made = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return made.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def replace_tensors(tree: T, made: Mapping[int, Tensor]) -> T:
    """The same structure with the tensors whose id is a key of made replaced."""
    return cast(T, tree_map_only(Tensor, lambda tensor: made.get(id(tensor), tensor), tree))
