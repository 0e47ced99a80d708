"""A run is one SQLite file: a manifest and one row a Measurement, each row in its own commit.

Schema history (`PRAGMA user_version`; `PRAGMA application_id` says that the file is ours)
    1   manifest(record), measurement(kind, key, record); a record is the JSON of records.py
    2   a Point has a boundary, a Measurement counts, gate and dispatch; GraphFacts.capture_s is of the captures alone,
        and prepare_s, absent before, of what capture_s was
    3   a Point may be the A/A twin of its cell's baseline
Old files are read as they are: a new field has a default that says what the old mlaprof did. A field that is new,
renamed or of another meaning raises the version, because an older mlaprof refuses or misreads it. A run goes on only
under the schema that it began with.

While a sweep writes, the file is in WAL mode with synchronous=FULL: a killed sweep loses no finished
Measurement, and others can read. A finished run is in rollback mode again: one file, readable anywhere.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from mlaprof.errors import RunFileError
from mlaprof.records import Kind, Manifest, Measurement, Run, decode, encode

SCHEMA_VERSION = 3
SUFFIX = ".mlaprof"
APPLICATION_ID = 0x4D4C4150  # "MLAP"

_SCHEMA = """
CREATE TABLE manifest (id INTEGER PRIMARY KEY CHECK (id = 1), record TEXT NOT NULL);
CREATE TABLE measurement (
    id INTEGER PRIMARY KEY,  -- in the order of first recording
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    record TEXT NOT NULL,
    UNIQUE (kind, key)
);
"""
_APPEND = """
INSERT INTO measurement (kind, key, record) VALUES (?, ?, ?)
ON CONFLICT (kind, key) DO UPDATE SET record = excluded.record
"""

# SQLite file format: magic at 0, read version at 19; user_version at 60 and application_id at 68, big-endian.
_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\0"
_READ_VERSION, _WAL = 19, 2
_LIST_RUNS = "`mlaprof list runs` shows the runs there are"
_BUSY_S = 10.0  # how long to wait for a lock of another process


@dataclass(frozen=True)
class RunEntry:
    """A run in a folder, without its Measurements."""

    path: Path
    manifest: Manifest
    recorded: int  # Measurements in the file


class RunWriter:
    """An open run file, and a context manager that finishes it. An append is durable when it returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _writing(path):
            self._connection = _open(path)

    def append(self, measurement: Measurement) -> None:
        """Keep measurement, in the place of an earlier one of the same kind and key. Raises RunFileError."""
        with _writing(self.path):
            self._connection.execute(_APPEND, (measurement.kind, measurement.point.key, encode(measurement)))

    def finish(self) -> None:
        """Close the file and leave no -wal or -shm beside it, unless another process still has it open."""
        try:
            self._connection.execute("PRAGMA busy_timeout = 1000")
            self._connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        except sqlite3.OperationalError:
            pass  # another process reads; what is committed is safe in either mode
        finally:
            with _writing(self.path):
                self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        with contextlib.suppress(RunFileError):  # the error under way says more
            self.finish()


def new_run_id(study_name: str, now: datetime) -> str:
    """A sortable, readable id such as `20261123-101500-quickstart-3f2a`; now is aware, and written in UTC."""
    if now.tzinfo is None:
        raise ValueError("now: expected an aware datetime, got a naive one")
    name = re.sub(r"[^a-z0-9._-]+", "-", study_name.lower()).strip("-._")[:40] or "study"
    return f"{now.astimezone(UTC):%Y%m%d-%H%M%S}-{name}-{secrets.token_hex(2)}"


def default_path(results: Path, run_id: str) -> Path:
    """Where a run lands when the user names no file."""
    return results / f"{run_id}{SUFFIX}"


def create(path: Path, manifest: Manifest) -> RunWriter:
    """Start a run file at path and its folders; the file appears complete with its manifest, or not at all.

    Raises RunFileError when path exists or cannot be written.
    """
    if manifest.schema_version != SCHEMA_VERSION:
        raise ValueError(f"manifest.schema_version: expected {SCHEMA_VERSION}, got {manifest.schema_version}")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with contextlib.closing(_connect(unfinished, "mode=rwc")) as connection:
                connection.executescript(
                    f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
                    f"PRAGMA synchronous = FULL; BEGIN; {_SCHEMA}"
                )
                connection.execute("INSERT INTO manifest (id, record) VALUES (1, ?)", (manifest.model_dump_json(),))
                connection.execute("COMMIT")
            _publish(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
            unfinished.with_name(f"{unfinished.name}-journal").unlink(missing_ok=True)
    return RunWriter(path)


def open_for_resume(path: Path) -> RunWriter:
    """Go on with an existing run.

    Raises RunFileError when path is not a run file, is of an older schema or cannot be written.
    """
    resumable_manifest(path)
    return RunWriter(path)


def load(path: Path) -> Run:
    """The whole run, in the order of first recording. Raises RunFileError on anything but a run file."""
    with _reading(path) as connection:
        rows = connection.execute("SELECT record FROM measurement ORDER BY id")
        return Run(manifest=_manifest(connection), measurements=tuple(decode(_text(row)) for row in rows))


def read_manifest(path: Path) -> Manifest:
    """The head of a run. Raises RunFileError on anything but a run file."""
    with _reading(path) as connection:
        return _manifest(connection)


def resumable_manifest(path: Path) -> Manifest:
    """The head of a run that this mlaprof may go on with.

    Raises RunFileError as read_manifest does, and when the run began under an older schema.
    """
    manifest = read_manifest(path)
    if manifest.schema_version != SCHEMA_VERSION:
        raise RunFileError(
            f"begun by an older mlaprof (schema {manifest.schema_version}, this one writes {SCHEMA_VERSION})",
            where=str(path),
            hint="`mlaprof show` reads it as it is; to measure more, start a new run",
        )
    return manifest


def done(path: Path) -> set[tuple[Kind, str]]:
    """(kind, key) of every Measurement in the file that did not fail. Raises RunFileError as load does."""
    with _reading(path) as connection:
        failed = "json_extract(record, '$.outcome.status') = 'failed'"
        return set(connection.execute(f"SELECT kind, key FROM measurement WHERE NOT {failed}"))


def list_runs(folder: Path) -> list[RunEntry]:
    """Every run file in folder, newest first; passes over other files, and a folder that is not there."""
    entries = []
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(RunFileError), _reading(path) as connection:
            (recorded,) = connection.execute("SELECT count(*) FROM measurement").fetchone()
            entries.append(RunEntry(path, _manifest(connection), recorded))
    return sorted(entries, key=lambda entry: (entry.manifest.created_at, entry.path.name), reverse=True)


def resolve(run: str, results: Path) -> Path:
    """The file that the user means by run: a path, a run id, the unique beginning of one, or `latest`.

    Raises RunFileError when there is none or more than one.
    """
    if Path(run).is_file():
        return Path(run)
    entries = list_runs(results)
    if run == "latest" and entries:
        return entries[0].path
    exact = [entry.path for entry in entries if run in (entry.manifest.run_id, entry.path.name)]
    if len(exact) == 1:
        return exact[0]
    matches = exact or [entry.path for entry in entries if run and entry.manifest.run_id.startswith(run)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(sorted(path.name for path in matches)[:5])
        raise RunFileError(f"{len(matches)} runs go by that name", where=run, hint=f"write more of one: {names}")
    raise RunFileError(f"no such file, and no such run in {results}", where=run, hint=_LIST_RUNS)


def _connect(path: Path, parameters: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(os.fspath(path.absolute()))}?{parameters}",
        uri=True,
        timeout=_BUSY_S,
        isolation_level=None,
    )


def _open(path: Path) -> sqlite3.Connection:
    """A connection that appends: in WAL mode, or where that cannot work with the rollback journal."""
    connection = _connect(path, "mode=rw")
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.executescript("BEGIN IMMEDIATE; ROLLBACK")
    except sqlite3.OperationalError:
        # Network file systems lack the shared memory that WAL needs; the rollback journal is as safe, only slower.
        connection.close()
        with contextlib.closing(_connect(path, "mode=rw")) as alone:
            alone.execute("PRAGMA locking_mode = EXCLUSIVE").fetchone()  # needs no shared memory
            alone.execute("PRAGMA journal_mode = DELETE").fetchone()
        connection = _connect(path, "mode=rw")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _publish(unfinished: Path, path: Path) -> None:
    """Give unfinished its real name, never over an existing file."""
    try:
        os.link(unfinished, path)
        return
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            os.replace(unfinished, path)
            return
    raise RunFileError(
        "this file exists, and runs are never overwritten",
        where=str(path),
        hint="choose another --out, or --resume it",
    )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise RunFileError(
            f"cannot be written: {_reason(error)}",
            where=str(path),
            hint="check the folder, its free space and your rights; what was measured so far is kept",
        ) from error


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write; whatever turns out not to be a run becomes a RunFileError."""
    header = _read_header(path)
    try:
        with contextlib.closing(_connect(path, _read_parameters(path, header))) as connection:
            yield connection
    except (sqlite3.Error, OSError, ValueError, TypeError) as error:
        raise RunFileError(
            f"damaged run file: {_reason(error)}",
            where=str(path),
            hint="restore it from a copy, or sweep again",
        ) from error


def _read_parameters(path: Path, header: bytes) -> str:
    if header[_READ_VERSION] == _WAL and not path.with_name(f"{path.name}-wal").exists():
        # Copied out of a running sweep. Nobody writes it, and SQLite would make -wal and -shm beside it.
        return "mode=ro&immutable=1"
    if path.with_name(f"{path.name}-journal").exists() and os.access(path.parent, os.W_OK):
        return "mode=rw"  # a sweep died inside a commit: only a connection that may write can undo the torn part
    return "mode=ro"


def _read_header(path: Path) -> bytes:
    """The first bytes of a run file, read without SQLite, which may change a foreign database by opening it.

    Raises RunFileError when they are not those of a run file.
    """
    try:
        if path.exists() and not path.is_file():
            raise RunFileError("not a file", where=str(path), hint=_LIST_RUNS)
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        raise RunFileError(_reason(error), where=str(path), hint=_LIST_RUNS) from error
    remedy = "give a file that `mlaprof sweep` wrote"
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise RunFileError("not a run file" if header else "empty file, not a run", where=str(path), hint=remedy)
    version, application = struct.unpack(">I4xI", header[60:72])
    if application != APPLICATION_ID:
        raise RunFileError("a database of another program, not a run file", where=str(path), hint=remedy)
    if version > SCHEMA_VERSION:
        raise RunFileError(
            f"written by a newer mlaprof (schema {version}; this one reads up to {SCHEMA_VERSION})",
            where=str(path),
            hint="upgrade mlaprof",
        )
    return header


def _manifest(connection: sqlite3.Connection) -> Manifest:
    row = connection.execute("SELECT record FROM manifest").fetchone()
    if row is None:
        raise ValueError("it has no manifest")
    return Manifest.model_validate_json(_text(row))


def _text(row: tuple[object, ...]) -> str:
    if not isinstance(row[0], str):
        raise ValueError(f"expected a record as text, got {type(row[0]).__name__}")
    return row[0]


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200]
