"""A run file: each Measurement durable when append returns, and nothing but a run file is taken for one."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlaprof import store
from mlaprof.errors import RunFileError
from mlaprof.facts import Check, Timing
from mlaprof.records import Environment, Manifest, Measurement, Outcome, Point, Run

ENVIRONMENT = Environment(
    gpus=(),
    nvml="no NVIDIA driver",
    cpu="some CPU",
    cpu_count=2,
    memory_bytes=2**34,
    os="some Linux",
    python="3.11.7",
    packages={"torch": "2.13.0+cpu"},
    kernel_source_sha256="0" * 64,
)


def make_manifest(run_id: str = "20261123-101500-tiny-3f2a", created_at: str = "2026-11-23T10:15:00+00:00") -> Manifest:
    return Manifest(
        schema_version=store.SCHEMA_VERSION,
        run_id=run_id,
        created_at=created_at,
        mlaprof_version="0.1.0",
        command=("mlaprof", "sweep", "configs/tiny.yaml"),
        device="cpu",
        study_yaml="name: tiny # ü\n",
        environment=ENVIRONMENT,
        planned=("timing tiny/prefill/t1/ctx0/full",),
    )


def make_measurement(num_tokens: int, status: str = "ok", samples: tuple[float, ...] = (1e-3, 2e-3)) -> Measurement:
    return Measurement(
        point=Point(preset="tiny", phase="prefill", num_tokens=num_tokens, context_len=0, mode="full"),
        kind="timing",
        outcome=Outcome(status=status, reason="" if status == "ok" else "a reason\nof two lines"),
        emulated=True,
        recorded_at="2026-11-23T10:15:01+00:00",
        timing=Timing(
            device_s=tuple(struct.unpack("<f", struct.pack("<f", sample))[0] for sample in samples),
            submit_s=(),
            cache="cold",
            clock="perf_counter",
            warmup_s=0.25,
            first_call_s=0.5,
        ),
    )


def write_run(
    path: Path, *num_tokens: int, run_id: str = "20261123-101500-tiny-3f2a", created_at: str = "2026"
) -> Path:
    with store.create(path, make_manifest(run_id, created_at)) as writer:
        for each in num_tokens:
            writer.append(make_measurement(each))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_was_appended_is_loaded_in_order(tmp_path):
    """Manifest and Measurements come back equal, in the order of recording."""
    path = tmp_path / "a run #1 100%?.mlaprof"
    measurements = (make_measurement(63), make_measurement(1, "failed"), make_measurement(111))

    with store.create(path, make_manifest()) as writer:
        for each in measurements:
            writer.append(each)

    assert Run(manifest=make_manifest(), measurements=measurements) == store.load(path)
    assert make_manifest() == store.read_manifest(path)


def test_a_finished_run_is_one_file(tmp_path):
    """Neither writing nor reading leaves -wal, -shm, -journal or temporary files."""
    path = write_run(tmp_path / "run.mlaprof", 1, 2)
    store.load(path)

    assert [path] == list(tmp_path.iterdir())


def test_create_makes_the_folders(tmp_path):
    """results/ need not exist."""
    path = write_run(tmp_path / "results" / "deep" / "run.mlaprof", 1)

    assert path.is_file()


@pytest.mark.parametrize("content", [b"", b"my notes", None], ids=["empty", "text", "run"])
def test_an_existing_file_is_never_overwritten(tmp_path, content):
    """create refuses whatever is there, and leaves it as it was."""
    path = tmp_path / "run.mlaprof"
    if content is None:
        write_run(path, 1)
    else:
        path.write_bytes(content)
    before = contents(tmp_path)

    with pytest.raises(RunFileError, match=r"run.mlaprof: .*never overwritten; .*--out"):
        store.create(path, make_manifest())

    assert before == contents(tmp_path)


def test_create_without_hard_links_still_never_overwrites(tmp_path, monkeypatch):
    """On a file system without links the run appears by a rename."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY | os.O_CREAT)  # which every file system refuses
    path = write_run(tmp_path / "run.mlaprof", 1)

    with pytest.raises(RunFileError, match="never overwritten"):
        store.create(path, make_manifest())
    assert [path] == list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    """A parent that is a file leaves nothing behind."""
    (tmp_path / "results").write_text("a file")

    with pytest.raises(RunFileError, match="cannot be written"):
        store.create(tmp_path / "results" / "run.mlaprof", make_manifest())
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_manifest_of_another_schema_is_a_programmers_error(tmp_path):
    """The version in the manifest is the version of the file."""
    manifest = make_manifest().model_copy(update={"schema_version": 99})

    with pytest.raises(ValueError, match=f"expected {store.SCHEMA_VERSION}, got 99"):
        store.create(tmp_path / "run.mlaprof", manifest)
    assert list(tmp_path.iterdir()) == []


def test_an_append_replaces_the_same_kind_key_and_process(tmp_path):
    """A cell that runs again has one row, in its old place."""
    path = write_run(tmp_path / "run.mlaprof", 1, 2)
    with store.open_for_resume(path) as writer:
        writer.append(make_measurement(1, samples=(5.0,)))
        writer.append(make_measurement(1).model_copy(update={"kind": "memory"}))
        for process in (1, 1, 0):
            writer.append(make_measurement(2).model_copy(update={"process": process}))

    measurements = store.load(path).measurements
    assert [(m.kind, m.point.num_tokens, m.process) for m in measurements] == [
        *(("timing", 1, 0), ("timing", 2, 0), ("memory", 1, 0), ("timing", 2, 1)),
    ]
    assert measurements[0].timing is not None
    assert measurements[0].timing.device_s == (5.0,)


def test_done_names_every_kind_key_and_process_but_failures(tmp_path):
    """Resume asks which are done: what is missing and what failed is measured again."""
    path = write_run(tmp_path / "run.mlaprof", 1)
    with store.open_for_resume(path) as writer:
        writer.append(make_measurement(2, "failed"))
        writer.append(make_measurement(3, "incorrect"))
        writer.append(make_measurement(3, "failed").model_copy(update={"process": 1}))
        writer.append(make_measurement(1).model_copy(update={"process": 2}))

    one, three = "tiny/prefill/t1/ctx0/full", "tiny/prefill/t3/ctx0/full"
    assert {("timing", one, 0), ("timing", one, 2), ("timing", three, 0)} == store.done(path)


def test_a_run_can_be_read_while_it_is_written(tmp_path):
    """`show` during a sweep sees what is there so far, and does not disturb the writer."""
    path = tmp_path / "run.mlaprof"
    with store.create(path, make_manifest()) as writer:
        for number in range(1, 6):
            writer.append(make_measurement(number))
            assert number == len(store.load(path).measurements)

    assert [path] == list(tmp_path.iterdir())


def test_finish_with_a_reader_still_there_loses_nothing(tmp_path):
    """A reader that holds the file keeps it in WAL mode; the run stays whole and readable."""
    path = tmp_path / "run.mlaprof"
    writer = store.create(path, make_manifest())
    writer.append(make_measurement(1))
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM measurement").fetchone()
    writer.append(make_measurement(2))
    writer.finish()

    assert len(store.load(path).measurements) == 2
    reader.close()
    assert len(store.load(path).measurements) == 2


CRASHING = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
import test_store_makers as makers
from mlaprof import store
writer = store.create(pathlib.Path(sys.argv[2]), makers.make_manifest())
for number in range(1, 8):
    writer.append(makers.make_measurement(number))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def killed_run(tmp_path, checkout) -> Path:
    """A run whose writer was killed after seven appends."""
    path = tmp_path / "results" / "run.mlaprof"
    shutil.copy(__file__, tmp_path / "test_store_makers.py")
    python_path = os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        [sys.executable, "-c", CRASHING, str(tmp_path), str(path)], env={**os.environ, "PYTHONPATH": python_path}
    )
    assert process.returncode == -signal.SIGKILL
    return path


def test_a_killed_sweep_loses_no_measurement(killed_run):
    """All that append returned for is there, and a resumed run ends as one file."""
    assert len(store.load(killed_run).measurements) == 7
    with store.open_for_resume(killed_run) as writer:
        writer.append(make_measurement(8))

    assert list(range(1, 9)) == [each.point.num_tokens for each in store.load(killed_run).measurements]
    assert [killed_run] == list(killed_run.parent.iterdir())


def test_a_truncated_log_leaves_a_consistent_prefix(killed_run):
    """Whatever is cut off the write-ahead log, the run opens with its first Measurements."""
    log = killed_run.with_name(f"{killed_run.name}-wal")
    whole = log.read_bytes()
    killed_run.with_name(f"{killed_run.name}-shm").unlink()
    counts = set()
    for length in range(len(whole), 0, -997):
        log.write_bytes(whole[:length])
        measurements = store.load(killed_run).measurements
        assert list(range(1, len(measurements) + 1)) == [each.point.num_tokens for each in measurements]
        counts.add(len(measurements))

    assert {0, 7} <= counts


def test_a_run_copied_without_its_log_is_read_without_a_trace(killed_run, tmp_path):
    """A file left in WAL mode is read where nothing may be written: no -wal or -shm appears."""
    copied = tmp_path / "copy" / "run.mlaprof"
    copied.parent.mkdir()
    shutil.copy(killed_run, copied)
    copied.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)

    assert make_manifest() == store.read_manifest(copied)
    assert [copied] == list(copied.parent.iterdir())


def test_a_file_system_without_shared_memory_gets_the_rollback_journal(tmp_path):
    """Where WAL cannot work, as on network file systems, the run is written all the same."""
    path = tmp_path / "run.mlaprof"
    write_run(path, 1)
    obstacle = tmp_path / "run.mlaprof-shm"
    obstacle.mkdir()

    with store.open_for_resume(path) as writer:
        writer.append(make_measurement(2))
        writer.append(make_measurement(3))

    assert len(store.load(path).measurements) == 3
    assert {path, obstacle} == set(tmp_path.iterdir())


def foreign_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE measurement (record TEXT)")
    connection.close()


def newer_run(path: Path) -> None:
    write_run(path, 1)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {store.SCHEMA_VERSION + 1}")
    connection.close()


def without_manifest(path: Path) -> None:
    write_run(path, 1)
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM manifest")
    connection.close()


def without_tables(path: Path) -> None:
    write_run(path, 1)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE measurement")
    connection.close()


def record_of(value: object):
    def make(path: Path) -> None:
        write_run(path, 1)
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE measurement SET record = ?", (value,))
        connection.close()

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "not a file"),
        (os.mkfifo, "not a file"),
        (lambda path: path.write_bytes(b""), "empty file"),
        (lambda path: path.write_text("num_tokens: [1, 8]\n" * 50), "not a run file"),
        (lambda path: path.write_bytes(b"SQLite format 3\0"), "not a run file"),
        (lambda path: path.write_bytes(os.urandom(5000)), "not a run file"),
        (foreign_database, "another program"),
        (newer_run, "newer mlaprof .*upgrade"),
        (without_manifest, "no manifest"),
        (without_tables, "no such table"),
        (record_of("{}"), "damaged"),
        (record_of("[" * 100_000), "damaged"),
        (record_of(b"\xff\x00"), "damaged"),
        (record_of(7), "damaged"),
    ],
    ids=[
        "missing", "folder", "pipe", "empty", "text", "magic alone", "noise", "other database", "newer",
        "no manifest", "no table", "row without fields", "deep row", "blob row", "number row",
    ],
)  # fmt: skip
def test_anything_but_a_run_file_is_one_line_with_a_remedy(tmp_path, make, words):
    """The error names the file and what to do, and the file stays as it was."""
    path = tmp_path / "thing.mlaprof"
    make(path)
    before = contents(tmp_path)

    with pytest.raises(RunFileError, match=words) as caught:
        store.load(path)

    assert str(path) == caught.value.where
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert before == contents(tmp_path)


@pytest.mark.parametrize("open_", [store.open_for_resume, store.done, store.read_manifest])
def test_every_door_refuses_a_foreign_database(tmp_path, open_):
    """Resuming into it, too, is refused before a byte is written."""
    path = tmp_path / "thing.mlaprof"
    foreign_database(path)
    before = contents(tmp_path)

    with pytest.raises(RunFileError):
        open_(path)
    assert before == contents(tmp_path)


def test_a_run_cut_at_any_length_is_refused_or_whole(tmp_path):
    """No truncation passes for a shorter run."""
    whole = write_run(tmp_path / "run.mlaprof", *range(1, 30)).read_bytes()
    cut = tmp_path / "cut.mlaprof"
    for length in [*range(0, 200, 7), *range(200, len(whole), 613), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(RunFileError):
            store.load(cut)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=20))
def test_a_run_with_changed_bytes_never_ends_in_a_traceback(tmp_path, changes):
    """Flipped bytes are found, or they hit what nobody reads; never an error of another type."""
    source = tmp_path / "run.mlaprof"
    if not source.exists():
        write_run(source, *range(1, 10))
    damaged = bytearray(source.read_bytes())
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    path = tmp_path / "damaged.mlaprof"
    path.write_bytes(damaged)

    try:
        store.load(path)
    except RunFileError as error:
        assert "\n" not in str(error)


# What schema 1 wrote: a table and a Measurement without a process, a Point without a boundary, a manifest that says 1.
FIRST_SCHEMA_TABLE = """
CREATE TABLE measurement (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, key TEXT NOT NULL, record TEXT NOT NULL, UNIQUE (kind, key)
);
"""
FIRST_SCHEMA_ROW = {
    "point": {"preset": "tiny", "phase": "prefill", "num_tokens": 8, "context_len": 0, "mode": "full", "tiles": []},
    "kind": "memory",
    "outcome": {"status": "ok", "stage": "measure", "reason": ""},
    "emulated": False,
    "recorded_at": "2026-11-23T10:15:01+00:00",
    "timing": None,
    "memory": {"weights_bytes": 3, "caches_bytes": 2, "buffers_bytes": 1, "graph_pool_bytes": 0},
    "graph": {
        "captured_segments": 1,
        "eager_segments": 0,
        "graph_launches": 1,
        "graph_nodes": 7,
        "capture_s": 0.5,
        "padded_tokens": 8,
    },
    "resources": [],
    "checks": [],
}


def first_schema_run(path: Path) -> Path:
    write_run(path)
    with sqlite3.connect(path) as connection:
        connection.executescript(f"DROP TABLE measurement; {FIRST_SCHEMA_TABLE}")
        connection.execute("UPDATE manifest SET record = json_set(record, '$.schema_version', 1)")
        row = ("memory", "tiny/prefill/t8/ctx0/full", json.dumps(FIRST_SCHEMA_ROW))
        connection.execute("INSERT INTO measurement (kind, key, record) VALUES (?, ?, ?)", row)
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    return path


def test_a_run_of_the_first_schema_is_read_as_it_is(tmp_path):
    """What it lacks has the value of what was done then, and its time of capture is not taken for the new one."""
    path = first_schema_run(tmp_path / "run.mlaprof")
    before = contents(tmp_path)

    (found,) = store.load(path).measurements
    assert found.point == Point(preset="tiny", phase="prefill", num_tokens=8, context_len=0, mode="full")
    assert (found.point.boundary, found.point.key) == ("index_quant", "tiny/prefill/t8/ctx0/full")
    assert found.graph is not None
    assert (found.graph.capture_s, found.graph.prepare_s, found.graph.state) == (0.5, None, None)
    assert (found.counts, found.gate, found.dispatch) == (None, None, None)
    assert found.process == 0
    assert store.done(path) == {("memory", found.point.key, 0)}
    assert [entry.recorded for entry in store.list_runs(tmp_path)] == [1]
    assert before == contents(tmp_path)


@pytest.mark.parametrize("open_", [store.open_for_resume, store.resumable_manifest])
def test_a_run_of_the_first_schema_is_not_gone_on_with(tmp_path, open_):
    """Its mlaprof could not read what this one appends."""
    path = first_schema_run(tmp_path / "run.mlaprof")
    before = contents(tmp_path)

    with pytest.raises(RunFileError, match=rf"schema 1, this one writes {store.SCHEMA_VERSION}.*mlaprof show.*new run"):
        open_(path)
    assert before == contents(tmp_path)


def test_list_runs_is_newest_first_and_passes_over_the_rest(tmp_path):
    """Foreign and damaged files in results/ hide no run."""
    write_run(tmp_path / "b.mlaprof", 1, run_id="20261123-101500-b-0001", created_at="2026-11-23T10:15:00+00:00")
    write_run(tmp_path / "a.mlaprof", 1, 2, run_id="20261124-101500-a-0002", created_at="2026-11-24T10:15:00+00:00")
    foreign_database(tmp_path / "c.mlaprof")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "d.mlaprof").mkdir()

    assert [(run.path.name, run.recorded) for run in store.list_runs(tmp_path)] == [("a.mlaprof", 2), ("b.mlaprof", 1)]
    assert store.list_runs(tmp_path / "nowhere") == []


def test_resolve_takes_a_path_an_id_a_beginning_or_latest(tmp_path, monkeypatch):
    """All that a user may write for one run."""
    results = tmp_path / "results"
    old = write_run(results / "20261123-101500-tiny-0001.mlaprof", run_id="20261123-101500-tiny-0001", created_at="1")
    new = write_run(results / "20261124-101500-tiny-0002.mlaprof", run_id="20261124-101500-tiny-0002", created_at="2")
    other = write_run(tmp_path / "mine.mlaprof", run_id="20261125-101500-mine-0003", created_at="3")
    monkeypatch.chdir(tmp_path)

    assert new == store.resolve("latest", results)
    assert old == store.resolve("20261123-101500-tiny-0001", results)
    assert old == store.resolve("20261123-101500-tiny-0001.mlaprof", results)
    assert new == store.resolve("20261124", results)
    assert other == store.resolve(str(other), results)
    assert Path("mine.mlaprof") == store.resolve("mine.mlaprof", results)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("202611", "2 runs go by that name; write more of one: 20261123"),
        ("20270101", "no such file, and no such run"),
        ("", "no such file"),
        ("nowhere/run.mlaprof", "no such file"),
        ("a\0b", "no such file"),
    ],
)
def test_resolve_says_what_to_do_when_there_is_no_single_run(tmp_path, run, words):
    """None and several are different mistakes."""
    for run_id in ("20261123-101500-tiny-0001", "20261124-101500-tiny-0002"):
        write_run(store.default_path(tmp_path, run_id), run_id=run_id)

    with pytest.raises(RunFileError, match=words):
        store.resolve(run, tmp_path)


def test_resolve_latest_without_any_run(tmp_path):
    """The first command of a new user may be `show latest`."""
    with pytest.raises(RunFileError, match="no such run"):
        store.resolve("latest", tmp_path)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("quickstart", "quickstart"),
        ("V3.2 TP8/Prefill", "v3.2-tp8-prefill"),
        ("../../etc/passwd", "etc-passwd"),
        ("模型", "study"),
        ("", "study"),
        ("x" * 300, "x" * 40),
    ],
)
def test_a_run_id_is_a_sortable_file_name(name, slug):
    """UTC time, the study's name without anything a path could use, and four random digits."""
    now = datetime(2026, 11, 23, 12, 15, 0, tzinfo=timezone(timedelta(hours=2)))

    head, _, random = store.new_run_id(name, now).rpartition("-")
    assert f"20261123-101500-{slug}" == head
    assert len(random) == 4 and int(random, 16) >= 0


def test_run_ids_of_one_second_differ():
    """Two sweeps started together do not share a file."""
    now = datetime(2026, 11, 23, tzinfo=UTC)

    assert len({store.new_run_id("tiny", now) for _ in range(8)}) > 1
    with pytest.raises(ValueError, match="naive"):
        store.new_run_id("tiny", datetime(2026, 11, 23))


def test_the_default_path_is_the_run_id_in_results():
    """results/<run id>.mlaprof."""
    assert Path("results/20261123-x.mlaprof") == store.default_path(Path("results"), "20261123-x")


def test_a_check_that_is_not_a_number_comes_back_as_it_was(tmp_path):
    """An output of NaN has such checks; their line must be a record, on the pipe and on disk."""
    checks = tuple(Check(name=str(value), value=value, limit=0.0) for value in (math.nan, math.inf, -math.inf, 1.5))
    measurement = make_measurement(1, "incorrect").model_copy(update={"checks": checks})
    with store.create(tmp_path / "run.mlaprof", make_manifest()) as writer:
        writer.append(measurement)

    (found,) = store.load(tmp_path / "run.mlaprof").measurements

    assert [str(each.value) for each in found.checks] == ["nan", "inf", "-inf", "1.5"]
    assert not any(each.passed for each in found.checks[:2])
    assert store.done(tmp_path / "run.mlaprof") == {("timing", "tiny/prefill/t1/ctx0/full", 0)}
