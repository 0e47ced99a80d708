"""Runs joined to one: parts that were swept apart, copies that went further, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlaprof import store
from mlaprof.errors import RunFileError
from mlaprof.merge import merged
from mlaprof.records import Measurement, Outcome, Run

STUDY = """\
name: parted
preset: tiny
sweep: {num_tokens: [4, 2], context_len: [0, 64], mode: [monolithic_eager, split_eager]}
measure: {processes: 2, memory: true, counts: true, twin: false}
"""
Sweep = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def folder(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """whole.mlaprof, and the same study in three parts, by workers that answer at once."""
    place = tmp_path_factory.mktemp("parts")
    (place / "study.yaml").write_text(STUDY)
    assert mlaprof(place, checkout, "ok", "sweep", "study.yaml", "--out", "whole.mlaprof").returncode == 0
    for number in (1, 2, 3):
        named = ("--part", f"{number}/3", "--out", f"{number}.mlaprof")
        done = mlaprof(place, checkout, "ok", "sweep", "study.yaml", *named)
        assert done.returncode == 0, done.stderr
    return place


def mlaprof(place: Path, checkout: Path, mode: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(checkout / "tests" / "drills" / "command.py"), mode, *arguments]
    command += ["--device", "cpu"] if arguments[0] == "sweep" else []
    environment = {**os.environ, "PYTHONPATH": str(checkout), "COLUMNS": "200"}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=120)


def parts(folder: Path) -> list[Path]:
    return [folder / f"{number}.mlaprof" for number in (3, 1, 2)]


def rewritten(path: Path, target: Path, change: Callable[[Run], Run]) -> Path:
    run = change(store.load(path))
    store.write_whole(target, run.manifest, run.measurements)
    return target


def test_parts_share_nothing_and_are_the_whole(folder: Path) -> None:
    each = [store.done(path) for path in parts(folder)]
    assert all(each) and sum(map(len, each)) == len(set().union(*each))
    assert set().union(*each) == store.done(folder / "whole.mlaprof")


def test_merged_parts_are_a_run(folder: Path, checkout: Path, tmp_path: Path) -> None:
    """In plan order, with its parts named; show and compare take it, and nothing is left to resume."""
    done = mlaprof(folder, checkout, "ok", "merge", *map(str, parts(folder)), "--out", str(tmp_path / "all.mlaprof"))
    assert (done.returncode, done.stderr) == (0, "")

    found, whole = store.load(tmp_path / "all.mlaprof"), store.load(folder / "whole.mlaprof")
    assert [each.point.key for each in found.measurements] == [each.point.key for each in whole.measurements]
    assert len(found.manifest.merged) == 3 and found.manifest.planned == whole.manifest.planned
    assert found.manifest.run_id.split("-")[2] == "parted"
    assert mlaprof(folder, checkout, "ok", "show", str(tmp_path / "all.mlaprof")).returncode == 0
    assert [each.name for each in tmp_path.iterdir()] == ["all.mlaprof"]


def test_what_no_part_has_is_told_and_resumed(folder: Path, checkout: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "some.mlaprof")
    done = mlaprof(folder, checkout, "ok", "merge", *map(str, parts(folder)[:2]), "--out", target)
    assert done.returncode == 0 and f"go on with: mlaprof sweep --resume {target}" in " ".join(done.stderr.split())

    assert mlaprof(folder, checkout, "ok", "sweep", "--resume", target).returncode == 0
    assert store.done(tmp_path / "some.mlaprof") == store.done(folder / "whole.mlaprof")


def test_a_copy_that_went_further_is_no_conflict(folder: Path) -> None:
    """The whole has every row of an older copy of it."""
    older = rewritten(
        folder / "whole.mlaprof",
        folder / "older.mlaprof",
        lambda run: run.model_copy(update={"measurements": run.measurements[:5]}),
    )

    for paths in ([older, folder / "whole.mlaprof"], [folder / "whole.mlaprof", older]):
        assert len(merged(paths, command=()).measurements) == len(store.load(folder / "whole.mlaprof").measurements)


def failed(each: Measurement) -> Measurement:
    return each.model_copy(update={"outcome": Outcome(status="failed", reason="killed", fault="killed")})


def test_what_one_part_failed_at_is_taken_from_another(folder: Path) -> None:
    broken = rewritten(
        folder / "1.mlaprof",
        folder / "broken.mlaprof",
        lambda run: run.model_copy(update={"measurements": tuple(map(failed, run.measurements))}),
    )

    found = merged([broken, *parts(folder)], command=())
    assert found.missing == 0 and {each.outcome.status for each in found.measurements} == {"ok"}
    assert {each.outcome.status for each in merged([broken], command=()).measurements} == {"failed"}


def later(run: Run) -> Run:
    return run.model_copy(
        update={"measurements": tuple(each.model_copy(update={"recorded_at": "x"}) for each in run.measurements)}
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (later, "was measured in .*1.mlaprof, too; a cell counts once"),
        ({"study_yaml": "name: other\n"}, "of another study than run"),
        ({"device": "cuda"}, "of another study than run"),
        ({"environment": {"cpu": "another"}}, "of another processor than run"),
        ({"environment": {"source_sha256": "0"}}, "of another mlaprof than run"),
    ],
    ids=["conflict", "study", "device", "processor", "source"],
)
def test_what_is_no_part_is_refused(folder: Path, checkout: Path, tmp_path: Path, change, words: str) -> None:
    """In one line, with exit code 2, and nothing is written."""
    if isinstance(change, dict):
        fields = dict(change)

        def change(run: Run) -> Run:
            place = run.manifest.environment.model_copy(update=fields.pop("environment", {}))
            return run.model_copy(update={"manifest": run.manifest.model_copy(update={"environment": place, **fields})})

    other = rewritten(folder / "1.mlaprof", tmp_path / "other.mlaprof", change)

    with pytest.raises(RunFileError, match=words):
        merged([folder / "1.mlaprof", other], command=())
    target = tmp_path / "all.mlaprof"
    done = mlaprof(folder, checkout, "ok", "merge", "1.mlaprof", str(other), "--out", str(target))
    assert done.returncode == 2 and not target.exists() and "Traceback" not in done.stderr


def test_a_run_is_never_overwritten(folder: Path, checkout: Path) -> None:
    before = (folder / "1.mlaprof").read_bytes()
    done = mlaprof(folder, checkout, "ok", "merge", "1.mlaprof", "2.mlaprof", "--out", "1.mlaprof")
    assert done.returncode == 2 and "never overwritten" in done.stderr
    assert (folder / "1.mlaprof").read_bytes() == before


@pytest.mark.parametrize("part", ["0/2", "3/2", "half", "1/", "-1/2"])
def test_a_part_that_is_none_is_refused(folder: Path, checkout: Path, part: str) -> None:
    done = mlaprof(folder, checkout, "ok", "sweep", "study.yaml", "--part", part)
    assert done.returncode == 2 and "is no part" in done.stderr
