"""The axes of a sweep: as written (lists, generators, command-line text), and their product.

    [1, 8, 64]   {values: [1, 8, 64]}   {pow2: [1, 8192]}   {range: [1, 9, 2]}   a scalar        in YAML
    1,8,64       1:8192:*2              1:9:+2                                                   after -a axis=

Both ends of a generator belong to it, when its step meets them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mlaprof.study import BOUNDED_MODES, PR_BOUNDARY, Axes, Boundary, Mode, Phase, Selector

AXES: tuple[str, ...] = tuple(Axes.model_fields)
ALIASES = {"tokens": "num_tokens", "context": "context_len", "capture": "mode", "modes": "mode"}
WHOLE_NUMBERS = ("num_tokens", "context_len")
MAX_VALUES = 10_000  # of one axis

_GENERATORS = "{pow2: [1, 8192]}, {range: [first, last, step]} or {values: [...]}"


class Combination(NamedTuple):
    """One cell of the matrix with its mode, in the order of the Point key."""

    phase: Phase
    num_tokens: int
    context_len: int
    mode: Mode
    boundary: Boundary = PR_BOUNDARY


def values(written: Any) -> list[Any]:
    """The values of an axis as YAML has it. Elements are not checked; generators are.

    Raises ValueError saying what is wrong with a generator.
    """
    if isinstance(written, list):
        return written
    if not isinstance(written, dict):
        return [written]
    if len(written) != 1:
        raise ValueError(f"expected one generator, got {len(written)} keys; use {_GENERATORS}")
    [(name, arguments)] = written.items()
    if name == "values":
        if not isinstance(arguments, list):
            raise ValueError("values: expected a list; use {values: [1, 8, 64]}")
        return arguments
    if name == "pow2":
        first, last = _integers(name, arguments, 2)
        for end in (first, last):
            if end < 1 or end & (end - 1):
                raise ValueError(f"pow2: {end} is not a power of two; use {{pow2: [1, 8192]}}")
        return _geometric(first, last, 2)
    if name == "range":
        return _arithmetic(*_integers(name, arguments, 3))
    raise ValueError(f"{name!r} is not a generator; use {_GENERATORS}")


def from_text(axis: str, text: str) -> list[Any]:
    """The values of an axis as the command line has it, e.g. `1,8,64:1024:*2`.

    Raises ValueError on text that is neither a value nor a range.
    """
    found: list[Any] = []
    for part in (part.strip() for part in text.split(",")):
        if not part:
            raise ValueError("an empty value; write axis=v1,v2 without stray commas")
        if axis not in WHOLE_NUMBERS:
            found.append(part)
        elif ":" in part:
            found.extend(_text_range(part))
        else:
            found.append(_text_integer(part))
    return found


def combinations(axes: Axes, exclude: Sequence[Selector], include: Sequence[Selector]) -> list[Combination]:
    """The product of the axes without what a rule excludes, then what the include rules add; none twice.

    Only BOUNDED_MODES have a boundary: the other modes appear with the PR's, and no rule that names one is about them.
    """
    every = _product(axes, Selector())
    found = dict.fromkeys(
        (each for each in every if not any(_matches(rule, each) for rule in exclude)) if exclude else every
    )
    for rule in include:
        found.update(dict.fromkeys(_product(axes, rule)))
    return list(found)


def _product(axes: Axes, rule: Selector) -> Iterator[Combination]:
    """All combinations with the rule's fields, and every axis value where it has none."""
    chosen = [getattr(axes, axis) if (fixed := getattr(rule, axis)) is None else (fixed,) for axis in AXES]
    for each in itertools.starmap(Combination, itertools.product(*chosen)):
        if each.mode in BOUNDED_MODES:
            yield each
        elif rule.boundary is None:
            yield each if each.boundary == PR_BOUNDARY else each._replace(boundary=PR_BOUNDARY)


def _matches(rule: Selector, combination: Combination) -> bool:
    if rule.boundary is not None and combination.mode not in BOUNDED_MODES:
        return False
    return all((wanted := getattr(rule, axis)) is None or wanted == getattr(combination, axis) for axis in AXES)


def _integers(name: str, arguments: Any, count: int) -> list[int]:
    usable = isinstance(arguments, list) and all(type(each) is int for each in arguments)
    if not usable or len(arguments) != count:
        raise ValueError(f"{name}: expected {count} integers in brackets; use {_GENERATORS}")
    return list(arguments)


def _geometric(first: int, last: int, factor: int) -> list[int]:
    if first < 1 or factor < 2:
        raise ValueError(f"a range from {first} times {factor} never grows; start at 1 or more, multiply by 2 or more")
    if first > last:
        raise ValueError(f"first {first} is above last {last}; swap them")
    found = []
    while first <= last:
        found.append(first)
        first *= factor
    return found


def _arithmetic(first: int, last: int, step: int) -> list[int]:
    if step < 1:
        raise ValueError(f"step {step} is not positive; use 1 or more")
    if first > last:
        raise ValueError(f"first {first} is above last {last}; swap them")
    if (last - first) // step >= MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES:,} values; use a larger step")
    return list(range(first, last + 1, step))


def _text_range(part: str) -> list[int]:
    pieces = part.split(":")
    if len(pieces) != 3 or pieces[2][:1] not in ("*", "+"):
        raise ValueError(f"{part!r} is not a range; write first:last:*factor or first:last:+step, e.g. 1:4096:*2")
    first, last, step = _text_integer(pieces[0]), _text_integer(pieces[1]), _text_integer(pieces[2][1:])
    return _geometric(first, last, step) if pieces[2][0] == "*" else _arithmetic(first, last, step)


def _text_integer(text: str) -> int:
    if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) < 19):
        raise ValueError(f"{text[:40]!r} is not an integer; write e.g. 1,8,64 or 1:4096:*2")
    return int(text)
