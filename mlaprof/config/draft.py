"""A study while it is being read: its values, where each came from, and everything that is wrong with it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mlaprof.config.yamltext import Document, KeyPath, dotted
from mlaprof.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
}
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
_BOUNDS = {  # error -> (its limit in the context, what is wrong, remedy)
    "greater_than_equal": ("ge", "is less than", "or more"),
    "greater_than": ("gt", "is not more than", "is too small; use a larger number"),
    "less_than_equal": ("le", "is more than", "or less"),
}


class Draft:
    """Values under their paths, and the complaints collected so far.

    A value comes from a line of the file or from a command-line option, and a complaint names the one that is to
    blame: the origin of the longest known part of its path.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self.value: Any = document.value
        self._lines = dict(document.lines)
        self._options: dict[KeyPath, str] = {}
        self._complaints: list[tuple[int, ConfigError]] = []

    def replace(self, path: KeyPath, value: Any, option: str) -> None:
        """Put a value where a command-line option wants it, making the mappings on the way.

        Raises ConfigError when something on the way is no mapping.
        """
        block = self.value
        for depth, key in enumerate(path[:-1]):
            block = block.setdefault(key, {})
            if not isinstance(block, dict):
                reached = dotted(path[: depth + 1])
                raise ConfigError(
                    f"{dotted(path)}: {reached} is {describe(block)}, not a mapping",
                    where=option,
                    hint=f"set {reached} as a whole",
                )
        self.remove(path)
        block[path[-1]] = value
        self._options[path] = option

    def remove(self, path: KeyPath) -> None:
        """Forget a value and where it came from; nothing happens when there is none."""
        block = self.value
        for key in path[:-1]:
            block = block.get(key) if isinstance(block, dict) else None
        if isinstance(block, dict):
            block.pop(path[-1], None)
        for origins in (self._lines, self._options):
            for known in [known for known in origins if known[: len(path)] == path]:
                del origins[known]

    def option(self, path: KeyPath) -> str | None:
        """The command-line option that gave the value at a path, or None when the file did."""
        return next((self._options[known] for known in _prefixes(path) if known in self._options), None)

    def complain(self, path: KeyPath, message: str, hint: str) -> None:
        """Keep a complaint about the value at a path; the path is shown as far as the user wrote it."""
        known = next((known for known in _prefixes(path) if known in self._options or known in self._lines), ())
        self._add(known, dotted(known), message, hint)

    def complain_missing(self, block: KeyPath, key: str, hint: str) -> None:
        """Keep the complaint that a block lacks a key; the block is shown where it begins."""
        known = next((known for known in _prefixes(block) if known in self._options or known in self._lines), ())
        self._add(known, dotted((*block, key)), "is missing", hint)

    def complain_unknown(self, path: KeyPath, known: Iterable[str]) -> None:
        """Keep the complaint that the last key of a path is none of the known ones."""
        names = sorted(known)
        self.complain(path, "unknown key", did_you_mean(str(path[-1]), names, f"the keys here are {', '.join(names)}"))

    def _add(self, known: KeyPath, shown: str, message: str, hint: str) -> None:
        option = self._options.get(known)
        line = 0 if option is not None else self._lines.get(known, 1)
        where = option if option is not None else f"{self.document.where}:{line}"
        text = f"{shown}: {message}" if shown else message
        self._complaints.append((line, ConfigError(text, where=where, hint=hint)))

    def validate(
        self, model: type[Model], value: Any, path: KeyPath, known: Mapping[str, Iterable[str]]
    ) -> Model | None:
        """`value`, which stands at `path`, as a model; None after complaining.

        known   dotted block below `path` -> its legal keys, for the remedy of an unknown one
        """
        try:
            return model.model_validate_json(json.dumps(value))
        except ValidationError as error:
            for each in error.errors(include_url=False):
                self._translate(each, path, known)
        return None

    def _translate(self, error: Any, path: KeyPath, known: Mapping[str, Iterable[str]]) -> None:
        local: KeyPath = tuple(error["loc"])
        full = (*path, *local)
        kind, got, context = error["type"], error["input"], error.get("ctx", {})
        block = dotted(tuple(part for part in local[:-1] if isinstance(part, str)))
        if kind in _UNKNOWN_KEY:
            self.complain_unknown(full, known.get(block, ()))
        elif kind == "missing":
            hint = "give it" + (f"; the keys here are {', '.join(sorted(known[block]))}" if block in known else "")
            self.complain_missing(full[:-1], str(full[-1]), hint)
        elif kind in _EXPECTED:
            self.complain(full, f"expected {_EXPECTED[kind]}, got {describe(got)}", f"give {_EXPECTED[kind]}")
        elif kind == "literal_error":
            names = [name.strip("'") for name in context["expected"].replace(" or ", ", ").split(", ")]
            hint = did_you_mean(str(got), names, f"use one of {', '.join(names)}")
            wrong = (
                f"{describe(got)} is not known here" if isinstance(got, str) else f"expected text, got {describe(got)}"
            )
            self.complain(full, wrong, hint)
        elif kind in _BOUNDS:
            limit, wrong, remedy = _BOUNDS[kind]
            bound = f"{context[limit]:g}"
            hint = f"use {bound} {remedy}" if limit != "gt" else f"use a number above {bound}"
            self.complain(full, f"{got} {wrong} {bound}", hint)
        else:
            self.complain(full, error["msg"], "see the comments in configs/quickstart.yaml")

    def check(self) -> None:
        """Raise the first complaint, in the order of the file; the others are its notes, a line each."""
        if not self._complaints:
            return
        _, first = min(self._complaints, key=lambda complaint: complaint[0])
        for _, other in sorted(self._complaints, key=lambda complaint: complaint[0]):
            if other is not first:
                first.add_note(str(other))
        raise first


def did_you_mean(got: str, names: Iterable[str], otherwise: str) -> str:
    """The remedy for a misspelt name: the nearest one, and the list."""
    close = difflib.get_close_matches(got, list(names), n=1)
    return f"did you mean {close[0]}? {otherwise}" if close else otherwise


def describe(value: Any) -> str:
    """A plain value as a message shows it, short."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return repr(value if len(value) <= 40 else f"{value[:37]}...")
        case list() | tuple():
            return "a list"
        case dict():
            return "a mapping"
    return str(value)


def _prefixes(path: KeyPath) -> Iterable[KeyPath]:
    """The path and its ancestors, longest first."""
    return (path[:length] for length in range(len(path), -1, -1))
