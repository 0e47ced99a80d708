"""Records as lines: what goes over the worker's pipe, and what a row of a run file holds."""

from __future__ import annotations

import re
from typing import Any

from pydantic_core import from_json

from mlaprof.records import (
    AnyJob,
    AnyMeasurement,
    Event,
    Job,
    KernelJob,
    KernelMeasurement,
    Manifest,
    Measurement,
    SearchJob,
    Started,
)
from mlaprof.traces import TraceMeasurement

# By the kind that a run file has beside each row; `trace` is not kept in one.
_RECORDS: dict[str, type[Measurement] | type[KernelMeasurement]] = {
    **dict.fromkeys(("timing", "memory", "counts", "compile", "dispatch", "noise"), Measurement),
    **dict.fromkeys(("kernel", "search"), KernelMeasurement),
}

# What steers a terminal, C0 and C1, has no place in a name or a reason; a reason may have lines.
_STEERING = dict.fromkeys((each for each in (*range(32), *range(127, 160)) if chr(each) not in "\n\t"), "?")
# Without one of these a line's strings hold nothing to replace: they need not be looked at one by one.
_MAY_STEER = re.compile(r"[\x00-\x1f\x7f-\x9f]|\\[ubfr]")


def _may_steer(text: str) -> bool:
    # Nearly every line is plain, which these two tell in a tenth of the time.
    plain = text.isprintable() and "\\" not in text
    return not plain and _MAY_STEER.search(text) is not None


def encode(event: Event) -> str:
    """One line of JSON; a Started goes under the name `started`."""
    text = event.model_dump_json(exclude_defaults=False)
    return f'{{"started":{text}}}' if isinstance(event, Started) else text


def decode(line: str | bytes) -> AnyMeasurement:
    """The measurement that `encode` wrote. Raises ValueError on anything else."""
    return _measurement(_json(line))


def decode_row(kind: str, text: str) -> AnyMeasurement:
    """As decode, where a run file says of which kind the measurement is: in one pass, unless a string needs a look."""
    record = _RECORDS.get(kind)
    return decode(text) if record is None or _may_steer(text) else record.model_validate_json(text)


def decode_event(line: str | bytes) -> Event:
    """What `encode` wrote. Raises ValueError on anything else."""
    value = _json(line)
    if isinstance(value, dict) and value.keys() == {"started"}:
        return Started.model_validate(value["started"])
    return _measurement(value)


def decode_job(text: str | bytes) -> AnyJob:
    """A Job, a KernelJob or a SearchJob from its JSON. Raises ValueError on anything else."""
    value = _json(text)
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind == "search":
        return SearchJob.model_validate_json(text)
    record: type[Job] | type[KernelJob] = KernelJob if kind == "kernel" else Job
    return record.model_validate_json(text)


def decode_manifest(text: str) -> Manifest:
    """The head of a run from its JSON. Raises ValueError on anything else."""
    return Manifest.model_validate(_json(text))


def _measurement(value: Any) -> AnyMeasurement:
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind in ("kernel", "search"):
        return KernelMeasurement.model_validate(value)
    return (TraceMeasurement if kind == "trace" else Measurement).model_validate(value)


def _json(line: str | bytes) -> Any:
    try:
        # Bytes as they are would be taken for UTF-16 where they begin with a zero.
        text = line.decode() if isinstance(line, bytes) else line
        value = from_json(text)
        return _harmless(value) if _may_steer(text) else value
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def _harmless(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isprintable() else value.translate(_STEERING)
    if isinstance(value, list):
        return [_harmless(each) for each in value]
    if isinstance(value, dict):
        return {_harmless(key): _harmless(each) for key, each in value.items()}
    return value
