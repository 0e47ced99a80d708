"""The run file under a sweep: a full disk, a shut folder, a vanished file, a second writer, other code."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mlaprof import store

pytestmark = pytest.mark.drill

STUDY = """\
name: small
preset: tiny
sweep: {num_tokens: [9, 8, 7, 6, 5, 4, 3, 2], mode: [monolithic_eager, split_eager]}
measure: {processes: 1, memory: false, counts: false, twin: false}
"""
HANG_AT_3 = "hang:3"
FAST = ("--device", "cpu")


@pytest.fixture(autouse=True)
def study(place) -> None:
    (place.folder / "study.yaml").write_text(STUDY)


def kept(path: Path) -> list[tuple[int, str]]:
    return [(each.point.num_tokens, each.point.mode) for each in store.load(path).measurements]


def until_it_hangs(place, *arguments: object):
    """A sweep that has measured 12 of 16 Points and waits for the 13th."""
    process = place.start(HANG_AT_3, "sweep", *arguments, program=(str(Path(__file__).with_name("command.py")),))
    assert process.stderr is not None
    seen = ""
    while "[12/16]" not in seen:
        line = process.stderr.readline()
        assert line, f"the sweep ended early: {seen}"
        seen += line
    return process


def end(process) -> None:
    process.kill()
    process.communicate(timeout=60)


def test_a_full_disk_is_one_line_and_what_was_measured_is_kept(place) -> None:
    """No file may grow beyond 40 kB, which the write-ahead log reaches first; with room the run goes on."""
    path = place.folder / "run.mlaprof"

    ended = place.fake("ok", "--disk=40000", "sweep", "study.yaml", *FAST, "--out", path)

    assert ended.code == 2, ended.err
    (complaint,) = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert "cannot be written" in complaint and "what was measured so far is kept" in complaint
    assert "Traceback" not in ended.err
    before = kept(path)
    assert 0 < len(before) < 16

    assert place.fake("ok", "sweep", "--resume", path).code == 0
    assert kept(path)[: len(before)] == before and len(kept(path)) == 16


@pytest.mark.parametrize("folder", ["/proc/1/results", "/sys/results", "study.yaml/results"])
def test_a_folder_that_takes_nothing_is_one_line(place, folder: str) -> None:
    """Before anything is measured."""
    ended = place.fake("ok", "sweep", "study.yaml", *FAST, "--out", f"{folder}/run.mlaprof")

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1 and "cannot be written" in ended.err


@pytest.mark.skipif(os.getuid() == 0, reason="root writes where it may not")
def test_a_folder_without_rights_is_one_line(place) -> None:
    (place.folder / "shut").mkdir(mode=0o500)
    ended = place.fake("ok", "sweep", "study.yaml", *FAST, "--out", "shut/run.mlaprof")

    assert ended.code == 2 and "Permission denied" in ended.err


@pytest.mark.parametrize("how", ["removed", "moved", "folder removed", "replaced"])
def test_a_run_file_that_vanishes_is_told_and_its_content_rescued(place, how: str) -> None:
    """SQLite would go on writing into a file that nobody finds."""
    runs = place.folder / "runs"
    path = runs / "run.mlaprof"
    process = until_it_hangs(place, "study.yaml", *FAST, "--out", path, "--set", "measure.point_timeout_s=3")
    match how:
        case "removed":
            path.unlink()
        case "moved":
            path.rename(place.folder / "elsewhere.mlaprof")
        case "folder removed":
            shutil.rmtree(runs)
        case "replaced":
            path.unlink()
            path.write_text("my notes")
    _, err = process.communicate(timeout=60)

    assert process.returncode == 2, err
    assert "was removed or replaced while it was written" in err and "Traceback" not in err
    (rescued,) = runs.glob("run-rescued-*.mlaprof")
    assert str(rescued) in err
    found = kept(rescued)
    assert len(found) == 13 and (3, "monolithic_eager") in found  # with what showed that the file was gone
    left = {each.name for each in runs.iterdir()}
    assert left == {rescued.name} | ({"run.mlaprof"} if how == "replaced" else set())

    assert place.fake("ok", "sweep", "--resume", rescued).code == 0
    assert len(kept(rescued)) == 16


def test_a_second_sweep_into_one_run_file_is_refused(place) -> None:
    """By --resume and by --out; the first one is not disturbed."""
    path = place.folder / "run.mlaprof"
    process = until_it_hangs(place, "study.yaml", *FAST, "--out", path)

    again = place.fake("ok", "sweep", "--resume", path)
    other = place.fake("ok", "sweep", "study.yaml", *FAST, "--out", path)
    shown = place.fake("ok", "show", path)

    assert again.code == 2 and again.err.count("\n") == 1
    assert "another mlaprof is writing this run; wait for it or stop it" in again.err
    assert other.code == 2 and "this file exists" in other.err
    assert shown.code == 0 and len(kept(path)) == 12
    end(process)

    assert place.fake("ok", "sweep", "--resume", path).code == 0
    assert len(kept(path)) == 16


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_that_is_told_to_end_ends_in_order(place, number: signal.Signals) -> None:
    """Ctrl-C, a batch system, a lost terminal: one file, no worker, and the line that goes on."""
    path = place.folder / "run.mlaprof"
    process = until_it_hangs(place, "study.yaml", *FAST, "--out", path)

    process.send_signal(number)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert f"--resume {path}" in err and "Traceback" not in err
    assert {each.name for each in place.folder.iterdir()} == {"run.mlaprof", "study.yaml", "temporary"}
    assert len(kept(path)) == 12


def changed(path: Path, sql: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE manifest SET record = json_set(record, {sql})")
    connection.close()


CHANGES = {
    "'$.environment.source_sha256', 'abcdefabcdef0123'": "source abcdefabcdef -> ",
    "'$.environment.kernel_source_sha256', 'abcdefabcdef0123'": "kernel source abcdefabcdef -> ",
    "'$.environment.packages.torch', '1.0'": "torch 1.0 -> ",
    "'$.environment.python', '2.7'": "python 2.7 -> ",
    "'$.environment.variables.TORCH_ANY', '1'": "TORCH_ANY 1 -> absent",
    "'$.mlaprof_version', '0.0.1'": "mlaprof 0.0.1 -> ",
}


def test_a_run_is_not_gone_on_with_after_any_change(place) -> None:
    """Exit 4, one line that names the change, and the run stays as it is."""
    whole = place.folder / "run.mlaprof"
    end(until_it_hangs(place, "study.yaml", *FAST, "--out", whole))
    with closing(sqlite3.connect(whole)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # most of it lies in the log yet, which no copy has
    for number, (sql, words) in enumerate(CHANGES.items()):
        path = shutil.copy(whole, place.folder / f"{number}.mlaprof")
        changed(path, sql)
        before = store.load(path).measurements
        assert len(before) == 12

        refused = place.fake("ok", "sweep", "--resume", path)

        assert refused.code == 4 and refused.err.count("\n") == 1, sql
        assert words in refused.err and "--force" in refused.err
        assert store.load(path).measurements == before


def test_a_forced_run_goes_on_after_changes_and_says_that_it_is_of_both(place) -> None:
    """All of them at once; nothing is measured twice."""
    path = place.folder / "run.mlaprof"
    end(until_it_hangs(place, "study.yaml", *FAST, "--out", path))
    for sql in CHANGES:
        changed(path, sql)
    before = store.load(path).measurements

    forced = place.fake("ok", "sweep", "--resume", path, "--force")

    assert forced.code == 0, forced.err
    assert "[4/4]" in forced.err
    run = store.load(path)
    assert run.measurements[:12] == before and len(run.measurements) == 16
    (line,) = run.manifest.forced
    assert all(words in line for words in CHANGES.values()) and "after 12 measurements" in line
    assert "gone on with by --force" in place.fake("ok", "show", path).out


def test_a_change_that_touches_no_source_is_none(place) -> None:
    """A commit of a README, or a run resumed from a copy of the checkout without git."""
    path = place.folder / "run.mlaprof"
    end(until_it_hangs(place, "study.yaml", *FAST, "--out", path))
    changed(path, "'$.environment.git_commit', 'abc'")

    assert place.fake("ok", "sweep", "--resume", path).code == 0


def test_force_without_a_run_to_go_on_with_is_a_mistake(place) -> None:
    ended = place.fake("ok", "sweep", "study.yaml", "--force")

    assert ended.code == 2 and "--force" in ended.err and ended.err.count("\n") == 1


def test_kill_9_of_the_sweep_ends_what_its_worker_started(place) -> None:
    """This worker does not ask to die with its parent, and has a child that hangs, too; a temporary file is open."""
    process = until_it_hangs(place, "study.yaml", *FAST, "--out", "run.mlaprof")
    (folder,) = place.temporary.iterdir()
    (folder / "half a cubin").write_text("")
    assert len(place.processes()) == 4  # the sweep, the keeper, the worker, its child

    end(process)

    place.assert_clean()


def test_what_a_killed_sweep_and_its_keeper_left_goes_with_the_next(place) -> None:
    """A container that is stopped kills everything at once."""
    path = place.folder / "run.mlaprof"
    process = until_it_hangs(place, "study.yaml", *FAST, "--out", path)
    (folder,) = place.temporary.iterdir()
    for pid in place.processes():
        os.kill(pid, signal.SIGSTOP)  # so that none outlives another
    for pid in place.processes():
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert folder.is_dir()

    assert place.fake("ok", "sweep", "--resume", path).code == 0
    assert not folder.exists()
