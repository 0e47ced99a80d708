"""SQLite as a run file needs it: opened to append or to read only, published whole, and every fault one line."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from mlaprof.errors import RunFileError

APPLICATION_ID = 0x4D4C4150  # "MLAP"
LIST_RUNS = "`mlaprof list runs` shows the runs there are"

# SQLite file format: magic at 0, read version at 19; user_version at 60 and application_id at 68, big-endian.
_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\0"
_READ_VERSION, _WAL = 19, 2
_BUSY_S = 10.0  # how long to wait for a lock of another process


def connect(path: Path, parameters: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(os.fspath(path.absolute()))}?{parameters}",
        uri=True,
        timeout=_BUSY_S,
        isolation_level=None,
    )


def open_to_append(path: Path) -> sqlite3.Connection:
    """A connection that appends: in WAL mode, or where that cannot work with the rollback journal."""
    connection = connect(path, "mode=rw")
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.executescript("BEGIN IMMEDIATE; ROLLBACK")
    except sqlite3.OperationalError:
        # Network file systems lack the shared memory that WAL needs; the rollback journal is as safe, only slower.
        connection.close()
        with contextlib.closing(connect(path, "mode=rw")) as alone:
            alone.execute("PRAGMA locking_mode = EXCLUSIVE").fetchone()  # needs no shared memory
            alone.execute("PRAGMA journal_mode = DELETE").fetchone()
        connection = connect(path, "mode=rw")
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def publish(content: bytes, path: Path) -> None:
    """Write a file that appears whole or not at all, never over an existing one. Raises RunFileError, OSError."""
    unfinished: Path | None
    try:
        # Without a name until it is whole, so that not even kill -9 leaves part of it.
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
        unfinished = None
    except OSError:  # a file system that cannot
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(descriptor)
        _name(unfinished or Path(f"/proc/self/fd/{descriptor}"), path, movable=unfinished is not None)
    finally:
        os.close(descriptor)
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)


def _name(unfinished: Path, path: Path, *, movable: bool) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The folder is named for one reason: only so does Python follow the link that /proc/self/fd holds.
        os.link(unfinished.absolute(), path, src_dir_fd=folder, follow_symlinks=True)
        os.fsync(folder)
        return
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not movable:
            raise
        if not path.exists():
            os.replace(unfinished.absolute(), path)
            return
    finally:
        os.close(folder)
    raise RunFileError(
        "this file exists, and runs are never overwritten",
        where=str(path),
        hint="choose another --out, or --resume it",
    )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What fails inside becomes a RunFileError."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise RunFileError(
            f"cannot be written: {_reason(error)}",
            where=str(path),
            hint="check the folder, its free space and your rights; what was measured so far is kept",
        ) from error


@contextlib.contextmanager
def reading(path: Path, newest_schema: int) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write; whatever turns out not to be a run becomes a RunFileError."""
    header = _read_header(path, newest_schema)
    try:
        with contextlib.closing(connect(path, _read_parameters(path, header))) as connection:
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


def _read_header(path: Path, newest_schema: int) -> bytes:
    """The first bytes of a run file, read without SQLite, which may change a foreign database by opening it.

    Raises RunFileError when they are not those of a run file.
    """
    try:
        if path.exists() and not path.is_file():
            raise RunFileError("not a file", where=str(path), hint=LIST_RUNS)
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        raise RunFileError(_reason(error), where=str(path), hint=LIST_RUNS) from error
    remedy = "give a file that `mlaprof sweep` wrote"
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise RunFileError("not a run file" if header else "empty file, not a run", where=str(path), hint=remedy)
    version, application = struct.unpack(">I4xI", header[60:72])
    if application != APPLICATION_ID:
        raise RunFileError("a database of another program, not a run file", where=str(path), hint=remedy)
    if version > newest_schema:
        raise RunFileError(
            f"written by a newer mlaprof (schema {version}; this one reads up to {newest_schema})",
            where=str(path),
            hint="upgrade mlaprof",
        )
    return header


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200]
