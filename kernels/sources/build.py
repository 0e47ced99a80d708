"""A kernel specialised as its launcher would, without a tensor at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from triton.compiler import ASTSource


@dataclass(frozen=True)
class Build:
    """What triton.compile takes; options hold num_warps and whatever else the launcher passes beside the arguments."""

    source: Any  # ASTSource or GluonASTSource
    options: dict[str, Any]


def build(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, int | None],
    multiples: Iterable[str],
    **options: int | str | bool | None,
) -> Build:
    """The build of a jit function.

    types      of the arguments that are neither int32 numbers nor constants
    multiples  numbers that are multiples of 16 in the layer; pointers always are
    """
    unspecialised = {each.name for each in kernel.params if each.do_not_specialize}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    place = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    pointers = [name for name, kind in signature.items() if kind.startswith("*")]
    source = source_type(kernel)(
        fn=kernel,
        signature=signature,
        constexprs={place[name]: value for name, value in constants.items()},
        attrs={place[name]: [["tt.divisibility", 16]] for name in {*pointers, *multiples} - unspecialised},
    )
    return Build(source, options)


def source_type(kernel: Any) -> Any:
    """What wraps a jit function for triton.compile: a Gluon kernel has a source of its own."""
    if not kernel.is_gluon():
        return ASTSource
    from mlaprof.kernels.hopper.source import GluonASTSource  # Gluon is of no use to the portable forms

    return GluonASTSource
