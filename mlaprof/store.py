"""A run is one SQLite file: a manifest and one row a Measurement, each row in its own commit.

Schema history (`PRAGMA user_version`; `PRAGMA application_id` says that the file is ours)
    1   manifest(record), measurement(kind, key, record); a record is the JSON of records.py
    2   a Point has a boundary, a Measurement counts, gate and dispatch; GraphFacts.capture_s is of the captures alone,
        and prepare_s, absent before, of what capture_s was
    3   a Point may be the A/A twin of its cell's baseline
    4   measurement(kind, key, process, record): several processes may time a Point; Timing has latency_s, sustained_s
        and the rounds that were dropped; before, one process timed each, and no round was
    5   kind "kernel": measurements of single kernels, in runs of their own
    6   kind "search": configurations that a search tried, in runs of tuning, with resources and search of a
        KernelMeasurement; a KernelPoint may be a twin; the manifest says which tuned tiles a layer was run with
    7   an Outcome names its fault; the Environment has a hash of mlaprof's own source, and the Manifest what changed
        when a run was gone on with by --force
    8   a LayerSpec says how many tensor parallel ranks run the layer; a Measurement has what each rank's clock said;
        a Timing says on which GPU (UUID) and CPUs it was taken, and how long its thread waited for a CPU; there are
        faults gpu_lost and host_lost; the Manifest names the runs that were merged
Old files are read as they are: a new field has a default that says what the old mlaprof did. A field that is new,
renamed or of another meaning raises the version, because an older mlaprof refuses or misreads it. A run goes on only
under the schema that it began with.

While a sweep writes, the file is in WAL mode with synchronous=FULL: a killed sweep loses no finished
Measurement, and others can read. A finished run is in rollback mode again: one file, readable anywhere.
"""

from __future__ import annotations

import contextlib
import gc
import re
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from mlaprof.errors import RunFileError
from mlaprof.records import AnyMeasurement, KernelMeasurement, Kind, Manifest, Measurement, Run
from mlaprof.runfile import APPLICATION_ID, LIST_RUNS, open_to_append, publish, reading, writing
from mlaprof.runlock import RunLock
from mlaprof.wire import decode_manifest, decode_row, encode

Work = tuple[Kind, str, int]
"""(kind, key, process) of one Measurement."""

SCHEMA_VERSION = 8
SUFFIX = ".mlaprof"

_SCHEMA = """
CREATE TABLE manifest (id INTEGER PRIMARY KEY CHECK (id = 1), record TEXT NOT NULL);
CREATE TABLE measurement (
    id INTEGER PRIMARY KEY,  -- in the order of first recording
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    process INTEGER NOT NULL,
    record TEXT NOT NULL,
    UNIQUE (kind, key, process)
);
"""
_APPEND = """
INSERT INTO measurement (kind, key, process, record) VALUES (?, ?, ?, ?)
ON CONFLICT (kind, key, process) DO UPDATE SET record = excluded.record
"""


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
        with writing(path):
            self._lock = RunLock(path)
        try:
            with writing(path):
                self._connection = open_to_append(path)
        except BaseException:
            self._lock.close()
            raise

    def append(self, measurement: AnyMeasurement) -> None:
        """Keep measurement, in the place of an earlier one of the same kind, key and process. Raises RunFileError."""
        row = _row(measurement)
        with writing(self.path):
            self._connection.execute(_APPEND, row)
        if not self._lock.is_in_place():
            self._rescue()

    def done(self) -> set[Work]:
        """As store.done of the file, which must not be opened a second time here."""
        with writing(self.path):
            return _done(self._connection)

    def note_forced(self, line: str) -> None:
        """Let the manifest say what had changed when the run was gone on with. Raises RunFileError."""
        with writing(self.path):
            manifest = _manifest(self._connection)
            manifest = manifest.model_copy(update={"forced": (*manifest.forced, line)})
            self._connection.execute("UPDATE manifest SET record = ?", (manifest.model_dump_json(),))

    def _rescue(self) -> NoReturn:
        """The file has lost its name, to rm or mv: SQLite goes on writing, but nobody will find it. Keep a copy."""
        copy = self.path.with_name(f"{self.path.stem}-rescued-{secrets.token_hex(2)}{SUFFIX}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Never under the old name, beside which the write-ahead log of the lost file may lie.
            self._connection.execute("VACUUM INTO ?", (str(copy),))
        except (sqlite3.Error, OSError) as error:
            kept = f"and what was measured cannot be kept: {error}"
        else:
            kept = f"so what was measured is now in {copy}"
        raise RunFileError(
            f"was removed or replaced while it was written, {kept}",
            where=str(self.path),
            hint=f"go on with --resume {copy}" if kept.startswith("so") else "sweep again",
        )

    def finish(self) -> None:
        """Close the file and leave no -wal or -shm beside it, unless another process still has it open."""
        try:
            self._connection.execute("PRAGMA busy_timeout = 1000")
            self._connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        except sqlite3.OperationalError:
            pass  # another process reads; what is committed is safe in either mode
        finally:
            try:
                with writing(self.path):
                    self._connection.close()
            finally:
                self._lock.close()

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
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        publish(_content(manifest), path)
    return RunWriter(path)


def write_whole(path: Path, manifest: Manifest, measurements: Iterable[AnyMeasurement]) -> None:
    """A run file with these Measurements, and its folders; it appears whole or not at all. Raises RunFileError."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        publish(_content(manifest, measurements), path)


def _content(manifest: Manifest, measurements: Iterable[AnyMeasurement] = ()) -> bytes:
    """The bytes of a run file."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.executescript(
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; BEGIN; {_SCHEMA}"
        )
        connection.execute("INSERT INTO manifest (id, record) VALUES (1, ?)", (manifest.model_dump_json(),))
        connection.executemany(_APPEND, map(_row, measurements))
        connection.execute("COMMIT")
        return connection.serialize()


def open_for_resume(path: Path) -> RunWriter:
    """Go on with an existing run.

    Raises RunFileError when path is not a run file, is of an older schema or cannot be written.
    """
    resumable_manifest(path)
    return RunWriter(path)


def load(path: Path) -> Run:
    """The whole run, in the order of first recording. Raises RunFileError on anything but a run file."""
    with reading(path, SCHEMA_VERSION) as connection, _no_collector():
        rows = connection.execute("SELECT record, kind FROM measurement ORDER BY id")
        every = [decode_row(row[1], _text(row)) for row in rows]
        return Run(
            manifest=_manifest(connection),
            measurements=tuple(each for each in every if isinstance(each, Measurement)),
            kernels=tuple(each for each in every if isinstance(each, KernelMeasurement)),
        )


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Records hold no cycles, and looking for some among a hundred thousand takes a third of the time to read them."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def copy(path: Path, target: Path) -> None:
    """Write the run at path, as it stands at this moment, to a new file of its own. Raises RunFileError."""
    with reading(path, SCHEMA_VERSION) as connection:
        connection.execute("VACUUM INTO ?", (str(target),))


def load_layers(path: Path) -> Run:
    """As load, of a run of the layer. Raises RunFileError on one of single kernels, too."""
    run = load(path)
    if run.is_of_tuning:
        raise RunFileError("a run of tuning, not of the layer", where=str(path), hint="`mlaprof show` prints it")
    if run.is_of_kernels:
        hint = "`mlaprof show` prints it; two providers are compared within one run of `mlaprof kernels`"
        raise RunFileError("a run of single kernels, not of the layer", where=str(path), hint=hint)
    return run


def read_manifest(path: Path) -> Manifest:
    """The head of a run. Raises RunFileError on anything but a run file."""
    with reading(path, SCHEMA_VERSION) as connection:
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


def load_to_go_on(path: Path) -> Run:
    """As load, of a run of this schema. Raises RunFileError as resumable_manifest does."""
    resumable_manifest(path)
    return load(path)


def done(path: Path) -> set[Work]:
    """(kind, key, process) of every Measurement in the file that did not fail. Raises RunFileError as load does."""
    with reading(path, SCHEMA_VERSION) as connection:
        return _done(connection)


def _done(connection: sqlite3.Connection) -> set[Work]:
    failed = "json_extract(record, '$.outcome.status') = 'failed'"
    process = "coalesce(json_extract(record, '$.process'), 0)"  # the table of an older schema has no such column
    return set(connection.execute(f"SELECT kind, key, {process} FROM measurement WHERE NOT {failed}"))


def list_runs(folder: Path) -> list[RunEntry]:
    """Every run file in folder, newest first; passes over other files, and a folder that is not there."""
    entries = []
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(RunFileError), reading(path, SCHEMA_VERSION) as connection:
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
    # What `compare --confirm` measured again is no run to compare: asked twice, it would take the place of the first.
    swept = [entry for entry in entries if entry.manifest.command[1:2] != ("compare",)]
    if run == "latest" and swept:
        return swept[0].path
    exact = [entry.path for entry in entries if run in (entry.manifest.run_id, entry.path.name)]
    if len(exact) == 1:
        return exact[0]
    matches = exact or [entry.path for entry in entries if run and entry.manifest.run_id.startswith(run)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(sorted(path.name for path in matches)[:5])
        raise RunFileError(f"{len(matches)} runs go by that name", where=run, hint=f"write more of one: {names}")
    raise RunFileError(f"no such file, and no such run in {results}", where=run, hint=LIST_RUNS)


def _row(measurement: AnyMeasurement) -> tuple[str, str, int, str]:
    return measurement.kind, measurement.point.key, measurement.process, encode(measurement)


def _manifest(connection: sqlite3.Connection) -> Manifest:
    row = connection.execute("SELECT record FROM manifest").fetchone()
    if row is None:
        raise ValueError("it has no manifest")
    return decode_manifest(_text(row))


def _text(row: tuple[object, ...]) -> str:
    if not isinstance(row[0], str):
        raise ValueError(f"expected a record as text, got {type(row[0]).__name__}")
    return row[0]
