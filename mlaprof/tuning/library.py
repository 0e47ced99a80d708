"""The library of tuned tile configurations: one JSON file a GPU kind and kernel, and which entry serves a shape.

An entry holds for its GPU, its Triton, its kernel's source and its launch and cache state. Of the shape, the sizes that
grow with a step may be within a factor of two of the entry's; all others must be equal. Nothing further away is taken:
the best configuration of another GPU keeps 58.5 to 99.9 % of the optimum (BAT, arXiv 2303.08976).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from mlaprof.errors import ConfigError
from mlaprof.study import Launch

SCHEMA = 1
MAX_BYTES = 16 << 20  # a file beyond is no library
REACH = 2.0  # in each growing size

# Sizes that grow with a step or with the context; all others are the model's.
GROWING = frozenset(
    {"num_tokens", "num_queries", "num_keys", "num_rows", "batch", "kv_len", "max_len", "width", "m", "num_requests"}
)

Decision = Literal["tuned", "keep-default"]
Rule = Literal["exact", "bucket", "default"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Conditions(_Record):
    """What a configuration was tuned under, and holds for."""

    kernel: str
    dtypes: str = ""  # of what it reads, where the shape does not say it
    gpu: str
    sm_count: int
    triton: str
    cuda: str
    source: str  # SHA-256 of the kernel's files
    launch: Launch
    cache: Literal["cold", "warm"]


class Entry(_Record):
    """One shape's decision with its evidence. values None: the default stays, measured as good as the best found."""

    conditions: Conditions
    shape: dict[str, int]
    decision: Decision
    form: str = ""  # `sparse_attn@hopper`, as kernels.tiles names it; empty where the default stays
    values: dict[str, int] | None
    device_s: float
    default_device_s: float
    gain: float  # default over chosen, paired round by round: above 1 is faster
    gain_low: float
    gain_high: float
    confirmed_low: float | None = None  # of the fresh process alone, which had no part in choosing
    confirmed_high: float | None = None
    floor: float = 0.0  # what the default and its own twin differed by, relative; no gain below it counts
    evaluations: int
    seed: int
    date: str
    mlaprof_version: str


class Found(NamedTuple):
    """What serves a shape, and by which rule; values None is the default. entry: the evidence, and the tiles' form."""

    values: dict[str, int] | None
    rule: Rule
    entry: Entry | None


class _File(_Record):
    schema_version: int
    entries: tuple[Entry, ...]


def lookup(entries: Iterable[Entry], conditions: Conditions, shape: Mapping[str, int]) -> Found:
    """The entry of this very shape, else the nearest within REACH, else the default."""
    usable = [each for each in entries if each.conditions == conditions]
    for each in usable:
        if each.shape == shape:
            return Found(each.values, "exact", each)
    near = [(distance, each) for each in usable if (distance := _distance(each.shape, shape)) is not None]
    if near:
        _, entry = min(near, key=lambda pair: pair[0])
        return Found(entry.values, "bucket", entry)
    return Found(None, "default", None)


def shipped() -> Path:
    """The library that comes with a checkout."""
    return Path(__file__).resolve().parents[2] / "configs" / "tuned"


def entries_for(folders: Iterable[Path], conditions: Conditions) -> tuple[Entry, ...]:
    """What these folders have for a GPU and kernel, an entry of an earlier folder in the place of a later one's.

    Raises ConfigError as load does.
    """
    found: tuple[Entry, ...] = ()
    for folder in reversed(list(folders)):
        found = merged(found, load(path_of(folder, conditions)))
    return found


def every_file(folder: Path) -> dict[Path, tuple[Entry, ...]]:
    """All files of a library with their entries. Raises ConfigError as load does."""
    return {path: load(path) for path in sorted(folder.glob("*/*.json"))}


def merged(old: Iterable[Entry], new: Iterable[Entry]) -> tuple[Entry, ...]:
    """Both, an entry of new in the place of an old one of the same conditions and shape; sorted: files compare."""
    found = {_identity(each): each for each in (*old, *new)}
    return tuple(found[key] for key in sorted(found))


def path_of(folder: Path, conditions: Conditions) -> Path:
    """Where entries of this GPU and kernel are kept."""
    gpu = re.sub(r"[^a-z0-9]+", "-", conditions.gpu.lower()).strip("-")
    return folder / gpu / f"{conditions.kernel}.json"


def load(path: Path) -> tuple[Entry, ...]:
    """The entries of a file, none where it is not there. Raises ConfigError on all but a library of this schema."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _broken(path, f"is larger than {MAX_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(path, f"cannot be read: {error}") from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"is no JSON: {' '.join(str(error).split())}") from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA:
        raise _broken(path, f"is of schema {version!r}, this mlaprof reads {SCHEMA}")
    try:
        return _File.model_validate(value).entries
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise _broken(path, f"{place}: {first['msg']}") from error


def save(path: Path, entries: Iterable[Entry]) -> None:
    """Merge entries into a file. It holds the old or the new whole, whoever else saves meanwhile.

    Raises ConfigError where the file there is no library, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            every = merged(load(path), entries)
            text = json.dumps(_File(schema_version=SCHEMA, entries=every).model_dump(mode="json"), indent=1) + "\n"
            unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                unfinished.write_text(text, encoding="utf-8")
                os.replace(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror}", where=str(path), hint="give another folder with --library"
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _broken(path: Path, message: str) -> ConfigError:
    return ConfigError(message, where=str(path), hint="move it away, or mend it; nothing in it was changed")


def _identity(entry: Entry) -> tuple[str, str]:
    return entry.conditions.model_dump_json(), json.dumps(entry.shape, sort_keys=True)


def _distance(one: Mapping[str, int], other: Mapping[str, int]) -> float | None:
    """How far apart two shapes are in octaves, None where one may not stand in for the other."""
    if one.keys() != other.keys():
        return None
    total = 0.0
    for axis, size in one.items():
        if size == other[axis]:
            continue
        if axis not in GROWING or min(size, other[axis]) < 1:
            return None
        octaves = abs(math.log2(size / other[axis]))
        if octaves > math.log2(REACH):
            return None
        total += octaves
    return total
