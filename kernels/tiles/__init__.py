"""Tile configurations as values: a frozen dataclass a kernel, one legality predicate, the space. Standard library.

A module of this package holds the tiles of one form of one kernel:

TILES                       the frozen dataclass of ints
CHOICES                     field -> legal values, in field order
LETTERS                     field -> its letter in labels
default(dims)               tiles that run and spill no register; fields that a user leaves out are taken from them
problem(tiles, dims)        why tiles of legal values do not fit these dimensions, with a remedy, or None; a form that
                            does not serve them at all refuses its own default, too
accumulator(tiles, dims)    fp32 values that a program's largest product keeps in registers, all threads together
shared_bytes(tiles, dims)   shared memory of one program on sm_90: an upper bound, close once pipelined
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple, fields
from itertools import product
from types import ModuleType
from typing import Any

from mlaprof.kernels.tiles import (
    absorb,
    block_gemm,
    hopper_absorb,
    hopper_block_gemm,
    hopper_index_logits,
    hopper_paged_index_logits,
    hopper_sparse_attn,
    hopper_sparse_decode,
    hopper_topk,
    hopper_up_project,
    index_logits,
    paged_index_logits,
    sparse_attn,
    topk,
    up_project,
)
from mlaprof.kernels.tiles.index_logits import IndexLogitsTiles
from mlaprof.kernels.tiles.limits import SHARED_LIMIT_BYTES, Dims, padded_heads
from mlaprof.kernels.tiles.paged_index_logits import PagedIndexLogitsTiles
from mlaprof.kernels.tiles.sparse_attn import SparseAttnTiles

__all__ = [
    "KERNELS",
    "SHARED_LIMIT_BYTES",
    "Dims",
    "IndexLogitsTiles",
    "PagedIndexLogitsTiles",
    "SparseAttnTiles",
    "Tiles",
    "as_values",
    "complete",
    "default",
    "field_names",
    "illegal",
    "kernel_of",
    "label",
    "pack",
    "padded_heads",
    "shared_bytes",
    "space",
    "tiles_type",
    "unpack",
]

Tiles = Any  # a frozen dataclass of ints: the TILES of one of KERNELS

# A kernel of several forms has an entry a form, `kernel@form`; the plain name is the portable one.
KERNELS: dict[str, ModuleType] = {
    "sparse_attn": sparse_attn,
    "sparse_attn@hopper": hopper_sparse_attn,
    "sparse_attn@hopper_decode": hopper_sparse_decode,
    "index_logits": index_logits,
    "index_logits@hopper": hopper_index_logits,
    "paged_index_logits": paged_index_logits,
    "paged_index_logits@hopper": hopper_paged_index_logits,
    "topk": topk,
    "topk@hopper": hopper_topk,
    "absorb": absorb,
    "absorb@hopper": hopper_absorb,
    "up_project": up_project,
    "up_project@hopper": hopper_up_project,
    "block_gemm": block_gemm,
    "block_gemm@hopper": hopper_block_gemm,
}
MAX_ACCUMULATOR = (
    512  # fp32 values a thread: spills from about 255 on, but only beyond 512 does ptxas take 10 s and more
)


def tiles_type(kernel: str) -> type[Tiles]:
    """The tile dataclass of a kernel; ValueError naming the known ones for any other name."""
    found: type[Tiles] = _module(kernel).TILES
    return found


def default(kernel: str, dims: Dims) -> Tiles:
    """What the fields that are not named are taken from: tiles that fit every multiprocessor and spill nothing."""
    return _module(kernel).default(dims)


def complete(kernel: str, values: Mapping[str, int], dims: Dims) -> Tiles:
    """Tiles from the fields given, the default's for the others. Legality is illegal()'s to judge.

    Raises ValueError naming an unknown kernel, or unknown fields and the known ones.
    """
    known = field_names(kernel)
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"{kernel}: expected fields among {', '.join(known)}, got {', '.join(unknown)}")
    chosen = default(kernel, dims)
    return tiles_type(kernel)(*(values.get(name, getattr(chosen, name)) for name in known))


def illegal(
    kernel: str, values: Mapping[str, int], dims: Dims, *, shared_limit_bytes: int = SHARED_LIMIT_BYTES
) -> str | None:
    """Why these tiles (completed by the default's) cannot run, with a remedy; None when they can.

    Raises ValueError as complete() does.
    """
    module, tiles = _module(kernel), complete(kernel, values, dims)
    if wrong := _bad_value(module, tiles) or module.problem(tiles, dims):
        return wrong
    registers = module.accumulator(tiles, dims) // (32 * tiles.num_warps)
    if registers > MAX_ACCUMULATOR:
        return (
            f"the accumulator takes {registers} registers a thread and a thread has 255; "
            "use a smaller block or more warps"
        )
    needed = module.shared_bytes(tiles, dims)
    if needed > shared_limit_bytes:
        return f"{needed:,} bytes of shared memory, above {shared_limit_bytes:,}; use a smaller block_n or fewer stages"
    return None


def space(kernel: str, dims: Dims) -> Iterator[Tiles]:
    """Every legal tile configuration once, in field order."""
    module = _module(kernel)
    for values in product(*module.CHOICES.values()):
        tiles = module.TILES(*values)
        if illegal(kernel, as_values(tiles), dims) is None:
            yield tiles


def shared_bytes(tiles: Tiles, dims: Dims) -> int:
    """Shared memory of one program on sm_90: an upper bound, close once pipelined."""
    needed: int = list(KERNELS.values())[_number(tiles)].shared_bytes(tiles, dims)
    return needed


def pack(tiles: Tiles | None) -> list[int]:
    """Tiles as plain numbers, so that they can travel as an operator's int list: which kernel's, then the fields.

    None, the choice left to the launcher, is the empty list.
    """
    return [] if tiles is None else [_number(tiles), *astuple(tiles)]


def unpack(numbers: list[int]) -> Tiles | None:
    """What pack() made numbers of."""
    if not numbers:
        return None
    kernel, *values = numbers
    return tuple(KERNELS.values())[kernel].TILES(*values)


def field_names(kernel: str) -> tuple[str, ...]:
    """The fields of a kernel's tiles, in order."""
    return tuple(field.name for field in fields(tiles_type(kernel)))


def as_values(tiles: Tiles) -> dict[str, int]:
    """Field name to value, in field order."""
    return {field.name: getattr(tiles, field.name) for field in fields(tiles)}


def label(kernel: str, values: Mapping[str, int]) -> str:
    """Short name of the fields given, in field order, e.g. `h16.n64.w4.s3`. Raises ValueError for an unknown kernel."""
    letters = _module(kernel).LETTERS
    return ".".join(f"{letters[name]}{values[name]}" for name in field_names(kernel) if name in values)


def kernel_of(name: str) -> str:
    """The kernel that a name of KERNELS is a form of: `sparse_attn` of `sparse_attn@hopper`."""
    return name.partition("@")[0]


def _module(kernel: str) -> ModuleType:
    if kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {', '.join(KERNELS)}, got {kernel!r}")
    return KERNELS[kernel]


def _number(tiles: Tiles) -> int:
    return [module.TILES for module in KERNELS.values()].index(type(tiles))


def _bad_value(module: ModuleType, tiles: Tiles) -> str | None:
    for name, value in as_values(tiles).items():
        choices = module.CHOICES[name]
        listed = ", ".join(map(str, choices))
        if isinstance(value, bool) or not isinstance(value, int):
            return f"{name}: {value!r} is not a whole number; use one of {listed}"
        if value not in choices:
            return f"{name}: {value} is not legal; use one of {listed}"
    return None
