"""YAML text as plain values, each with its line. No Python objects, no surprises of YAML 1.1.

A file is data from a stranger: its size, its depth and the number of values that aliases unfold to are bounded,
duplicate keys and tags are errors, and every complaint carries file:line.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mlaprof.errors import ConfigError

KeyPath = tuple[str | int, ...]

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000  # after aliases are unfolded; a study of thousands of axis values needs a tenth
MAX_DEPTH = 32
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Document:
    """One YAML document.

    where  the file's name as a message shows it
    value  None, bool, int, finite float, str, list and dict with str keys only
    lines  path of keys and indices -> line, from 1: of a scalar itself, of a collection's key
    """

    where: str
    value: Any
    lines: Mapping[KeyPath, int]


def read(path: Path) -> Document:
    """The document in a file. Raises ConfigError when it is unreadable, too large, or not plain YAML."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot be read: {reason}", where=str(path), hint="give the path of a YAML file") from error
    except ValueError as error:  # a NUL inside the path
        raise ConfigError(
            f"cannot be read: {error}", where=repr(str(path)), hint="give the path of a YAML file"
        ) from error
    if len(content) > MAX_BYTES:
        raise ConfigError("is larger than 1 MiB", where=f"{path}:1", hint="give a study file, not data")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError("is not UTF-8 text", where=f"{path}:{line}", hint="give a YAML file") from error
    return parse(text, str(path))


def parse(text: str, where: str) -> Document:
    """The document in a text; `where` names it in messages. Raises ConfigError as `read` does."""
    try:
        root = YAML(typ="rt", pure=True).compose(io.StringIO(text))
    except YAMLError as error:
        raise _syntax_error(error, where, text) from error
    except RecursionError as error:
        raise ConfigError("is nested too deeply", where=f"{where}:1", hint=f"use at most {MAX_DEPTH} levels") from error
    except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError, AssertionError) as error:
        # Escapes such as "\UFFFFFFFF" and odd directives get through the parser as Python's own errors.
        hint = "look for backslash escapes and %-directives"
        raise ConfigError("is not valid YAML", where=f"{where}:1", hint=hint) from error
    reader = _Reader(where)
    value = None if root is None else reader.value(root, (), _line(root))
    return Document(where, value, reader.lines)


def dump(value: Any) -> str:
    """Plain values as block-style YAML text that `parse` reads back, keys in the order given."""
    yaml = YAML(typ="rt", pure=True)
    yaml.width = 4096
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue()


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _syntax_error(error: YAMLError, where: str, text: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
    line = 1
    if mark is not None:
        line = mark.line + 1
    elif isinstance(position := getattr(error, "position", None), int):  # an unprintable character
        line = text.count("\n", 0, position) + 1
    first = str(problem).splitlines()[0]
    return ConfigError(
        f"is not valid YAML: {first}", where=f"{where}:{line}", hint="check indentation, colons, brackets and quotes"
    )


class _Reader:
    """Turns nodes into values and remembers their lines."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: dict[KeyPath, int] = {}
        self.count = 0

    def fail(self, line: int, path: KeyPath, message: str, hint: str) -> ConfigError:
        key = f"{dotted(path)}: " if path else ""
        return ConfigError(f"{key}{message}", where=f"{self.where}:{line}", hint=hint)

    def value(self, node: Node, path: KeyPath, line: int) -> Any:
        """The node's plain value; `line` is what a complaint about a collection shall name."""
        self.count += 1
        if self.count > MAX_VALUES:
            raise self.fail(line, (), f"has more than {MAX_VALUES:,} values", "do not nest aliases; use generators")
        if len(path) > MAX_DEPTH:
            raise self.fail(line, (), "is nested too deeply", f"use at most {MAX_DEPTH} levels")
        if isinstance(node, ScalarNode):
            self.lines[path] = _line(node) if node.value else line  # nothing written has no place of its own
            return self.scalar(node, path)
        self.lines[path] = line
        if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(item, (*path, index), _line(item)) for index, item in enumerate(node.value)]
        if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
            return self.mapping(node, path)
        raise self.fail(line, path, f"the tag {node.tag} is not supported", "remove the tag")

    def mapping(self, node: MappingNode, path: KeyPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if key_node.tag == f"{_TAG}merge":
                raise self.fail(line, path, "merge keys (<<) are not supported", "write the keys out")
            if not isinstance(key_node, ScalarNode) or key_node.tag != f"{_TAG}str":
                shown = key_node.value if isinstance(key_node, ScalarNode) else "a collection"
                raise self.fail(line, path, f"a key must be text, got {shown}", "use the names of the documentation")
            key = self.text(key_node, path)
            if key in found:
                first = self.lines[(*path, key)]
                hint = f"keep one; the first stands at line {first}"
                raise self.fail(line, (*path, key), "appears twice", hint)
            found[key] = self.value(value_node, (*path, key), line)
        return found

    def text(self, node: ScalarNode, path: KeyPath) -> str:
        text = str(node.value)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            hint = "use real characters, not \\ud800 escapes"
            raise self.fail(_line(node), path, "holds half a character", hint) from error
        return text

    def scalar(self, node: ScalarNode, path: KeyPath) -> Any:
        text = self.text(node, path)
        kind = str(node.tag).removeprefix(_TAG)
        if kind == "null":
            return None
        if kind in ("str", "timestamp"):  # YAML 1.2's core schema has no dates
            return text
        try:
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                number = _integer(text)
                if abs(number) < 2**63:
                    return number
            if kind == "float":
                real = float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
                if math.isfinite(real):
                    return real
        except (ValueError, KeyError):
            pass
        hint = "use plain text, true or false, or a finite number of at most 64 bits"
        raise self.fail(_line(node), path, f"{text[:40]!r} is not a usable value", hint)


def _integer(text: str) -> int:
    """Decimal with leading zeros, as YAML 1.2 has it, or 0x and 0o."""
    try:
        return int(text, 10)
    except ValueError:
        return int(text, 0)


def dotted(path: KeyPath) -> str:
    """A path as a message shows it: `sweep.num_tokens[2]`."""
    shown = ""
    for part in path:
        shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else part
    return shown
