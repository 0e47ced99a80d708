"""A trace from a file: token counts a step, or requests. The file is a stranger's: limits hold while reading.

CSV or JSON Lines (.jsonl, .json). Steps: a count a line, with a weight if any (`256`, `256,3`,
`{"num_tokens": 256, "weight": 3}`). Requests: a header `arrival_s,prompt_tokens,output_tokens[,cached_tokens]`, or
those keys in every object.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlaprof.errors import ConfigError
from mlaprof.sizing.scheduler import Request
from mlaprof.sizing.steps import Steps, steps_of

MOST_BYTES = 256 * 2**20
MOST_LINES = 10_000_000
MOST_REQUESTS = 1_000_000
MOST_LINE = 4096  # characters
MOST_TOKENS = 2**24  # of a step, a prompt or an output
MOST_WEIGHT = 1e15

_REQUEST = ("arrival_s", "prompt_tokens", "output_tokens")
_CACHED = "cached_tokens"
_STEP = ("num_tokens",)
_WEIGHT = "weight"


@dataclass(frozen=True)
class Line:
    """Where a complaint points to."""

    path: Path
    number: int

    def error(self, message: str, hint: str) -> ConfigError:
        return ConfigError(message, where=f"{self.path}:{self.number}", hint=hint)


def read_trace(path: Path) -> Steps | tuple[Request, ...]:
    """The steps, or the requests, that the file lists.

    Raises ConfigError with file, line and remedy: on no entry, on what is no number or out of bounds, and on a file,
    a line or a number of lines beyond the limits.
    """
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        raise ConfigError("an empty trace", where=str(path), hint="one token count a line, e.g. 256, or a request each")
    parse = _json_parser(first) if path.suffix.lower() in (".jsonl", ".json") else _csv_parser(first)
    header = parse.header
    tokens: list[int] = []
    weights: list[float] = []
    requests: list[Request] = []
    for line, text in () if header else (first,):
        parse.entry(line, text, tokens, weights, requests)
    for line, text in lines:
        parse.entry(line, text, tokens, weights, requests)
    if requests:
        return tuple(requests)
    if not tokens:
        raise ConfigError("a header and no entry", where=str(path), hint="add a line for each step or request")
    return steps_of(path.name, tokens, weights)


@dataclass(frozen=True)
class _Parser:
    header: bool  # the first line is one
    entry: Callable[[Line, str, list[int], list[float], list[Request]], None]


def _lines(path: Path) -> Iterator[tuple[Line, str]]:
    """The lines that are neither blank nor a comment, with their numbers."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ConfigError("not a file", where=str(path), hint="name a CSV or JSONL file, or a trace such as chat")
        if size > MOST_BYTES:
            hint = "count its steps: one line `num_tokens,weight` for each token count"
            raise ConfigError(f"{size} bytes, more than {MOST_BYTES}", where=str(path), hint=hint)
        with path.open(encoding="utf-8") as file:
            number = 0
            while text := file.readline(MOST_LINE + 1):
                number += 1
                line = Line(path, number)
                if len(text) > MOST_LINE:
                    raise line.error(f"a line of more than {MOST_LINE} characters", "one step or request a line")
                if number > MOST_LINES:
                    raise line.error(f"more than {MOST_LINES} lines", "count steps: `num_tokens,weight` a line")
                if (text := text.strip()) and not text.startswith("#"):
                    yield line, text
    except UnicodeDecodeError as error:
        raise ConfigError("not UTF-8 text", where=str(path), hint="save it as CSV or JSON Lines") from error
    except OSError as error:
        hint = "name a CSV or JSONL file, or a trace such as chat"
        raise ConfigError(f"cannot read: {error.strerror}", where=str(path), hint=hint) from error


def _csv_parser(first: tuple[Line, str]) -> _Parser:
    line, text = first
    names = [each.strip().lower() for each in text.split(",")]
    if not (names[0][:1].isalpha() or names[0][:1] == "_") or names[0] in ("nan", "inf", "infinity"):
        return _Parser(False, _csv_step)
    if names in (["num_tokens"], ["num_tokens", _WEIGHT]):
        return _Parser(True, _csv_step)
    if tuple(names[:3]) == _REQUEST and names[3:] in ([], [_CACHED]):
        return _Parser(True, _csv_request)
    raise line.error(
        f"unknown columns {text[:80]!r}", f"use num_tokens[,{_WEIGHT}] or {','.join(_REQUEST)}[,{_CACHED}]"
    )


def _csv_step(line: Line, text: str, tokens: list[int], weights: list[float], requests: list[Request]) -> None:
    count, comma, weight = text.partition(",")
    tokens.append(_count(line, "num_tokens", count))
    weights.append(_weight(line, weight) if comma else 1.0)


def _csv_request(line: Line, text: str, tokens: list[int], weights: list[float], requests: list[Request]) -> None:
    fields = text.split(",")
    if len(fields) not in (3, 4):
        raise line.error(f"{len(fields)} fields", f"give {','.join(_REQUEST)}[,{_CACHED}]")
    _add_request(line, fields[0], fields[1], fields[2], fields[3] if len(fields) == 4 else "0", requests)


def _json_parser(first: tuple[Line, str]) -> _Parser:
    of_requests = isinstance(found := _json(*first), dict) and "prompt_tokens" in found
    return _Parser(False, _json_request if of_requests else _json_step)


def _json_step(line: Line, text: str, tokens: list[int], weights: list[float], requests: list[Request]) -> None:
    found = _json(line, text)
    if not isinstance(found, dict):
        found = {"num_tokens": found}
    _require_keys(line, found, _STEP, (_WEIGHT,))
    tokens.append(_count(line, "num_tokens", found["num_tokens"]))
    weights.append(_weight(line, found.get(_WEIGHT, 1)))


def _json_request(line: Line, text: str, tokens: list[int], weights: list[float], requests: list[Request]) -> None:
    found = _json(line, text)
    if not isinstance(found, dict):
        raise line.error("not an object", f"give {', '.join(_REQUEST)} in every line")
    _require_keys(line, found, _REQUEST, (_CACHED,))
    arrival, prompt, output = (found[name] for name in _REQUEST)
    _add_request(line, arrival, prompt, output, found.get(_CACHED, 0), requests)


def _json(line: Line, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise line.error("not JSON", "one number or object a line") from error


def _require_keys(line: Line, found: dict[str, Any], needed: tuple[str, ...], optional: tuple[str, ...]) -> None:
    missing = [name for name in needed if name not in found]
    unknown = [name for name in found if name not in (*needed, *optional)]
    if missing or unknown:
        what = f"no {missing[0]}" if missing else f"unknown key {unknown[0][:40]!r}"
        raise line.error(what, f"the keys are {', '.join((*needed, *optional))}")


def _add_request(line: Line, arrival: Any, prompt: Any, output: Any, cached: Any, requests: list[Request]) -> None:
    if len(requests) == MOST_REQUESTS:
        raise line.error(f"more than {MOST_REQUESTS} requests", "take a part of the trace")
    request = Request(
        _real(line, "arrival_s", arrival, 0.0, 1e12),
        _count(line, "prompt_tokens", prompt),
        _count(line, "output_tokens", output),
        _count(line, _CACHED, cached, least=0),
    )
    if request.cached_tokens >= request.prompt_tokens:
        hint = "an engine computes at least the last token of a prompt"
        raise line.error(f"{request.cached_tokens} cached of {request.prompt_tokens} prompt tokens", hint)
    if requests and request.arrival_s < requests[-1].arrival_s:
        raise line.error("arrives before the request above it", "sort the trace by arrival_s")
    requests.append(request)


def _count(line: Line, name: str, given: Any, least: int = 1) -> int:
    try:
        value = int(given) if isinstance(given, str) and len(given) <= 32 and "_" not in given else given
    except ValueError:
        value = None
    if type(value) is not int:
        raise line.error(f"{name}: {str(given)[:40]!r} is not a whole number", f"give {least} or more tokens")
    if not least <= value <= MOST_TOKENS:
        raise line.error(f"{name}: {str(value)[:40]} tokens", f"give {least} to {MOST_TOKENS}")
    return value


def _weight(line: Line, given: Any) -> float:
    return _real(line, _WEIGHT, given, 1e-15, MOST_WEIGHT)


def _real(line: Line, name: str, given: Any, least: float, most: float) -> float:
    try:
        value = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not least <= value <= most:
        raise line.error(f"{name}: {str(given)[:40]!r} is out of bounds", f"give a number from {least:g} to {most:g}")
    return value
