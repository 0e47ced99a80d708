"""`mlaprof sweep --json-events` at the door, with workers that measure nothing."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from mlaprof import cli
from mlaprof.engine.job import spawn_worker
from mlaprof.machine.child import Child
from mlaprof.records import Job
from mlaprof.sweep import sweep

STUDY = """\
name: small
preset: tiny
sweep: {num_tokens: [5, 3], mode: [monolithic_eager, split_eager]}
measure: {cache: warm, processes: 2, min_samples: 6, warmup_s: 0, memory: false, counts: false, twin: false}
"""


@pytest.fixture
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Sweep STUDY with workers that fail as told; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY)
    worker = Path(__file__).with_name("fake_worker.py")

    def run(*arguments: object, told: tuple[object, ...] = ("ok",)) -> tuple[int, str, str]:
        def spawn(job: Job) -> Child:
            return spawn_worker(job, command=[sys.executable, str(worker), *map(str, told)])

        monkeypatch.setattr(cli.measure, "run_sweep", partial(sweep, spawn=spawn))
        given = ["mlaprof", "sweep", "study.yaml", "--device", "cpu", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", given)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def events(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_measurement_of_a_sweep_is_an_event(swept, tmp_path: Path) -> None:
    """Stdout is what it is without; a second sweep appends."""
    for sweeps in (1, 2):
        code, out, _ = swept("--json-events", "events.jsonl", "--out", f"run{sweeps}.mlaprof")
        assert code == 0 and '"event"' not in out and f"run   run{sweeps}.mlaprof" in out
        found = events(tmp_path / "events.jsonl")
        assert [each["event"] for each in found].count("began") == sweeps
        assert [each["done"] for each in found if each["event"] == "measured"] == list(range(1, 9)) * sweeps
    assert found[-1]["statuses"] == {"ok": 8} and found[0]["emulated"] is True


def test_a_failed_cell_is_an_event_too(swept, tmp_path: Path) -> None:
    code, _, _ = swept("--json-events", "events.jsonl", told=("exit", 3))
    assert code == 5
    found = events(tmp_path / "events.jsonl")
    failed = [each for each in found if each.get("status") == "failed"]
    assert failed and all(each["verdict"] == "FAILED" and each["reason"] for each in failed)
    assert found[-1]["statuses"]["failed"] == len(failed)


def test_a_file_of_something_else_is_refused_before_anything_is_made(swept, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not ours")
    code, out, err = swept("--json-events", "notes.txt", "--out", "run.mlaprof")
    assert (code, out) == (2, "") and "holds something else; name another with --json-events" in err
    assert (tmp_path / "notes.txt").read_text() == "not ours" and not (tmp_path / "run.mlaprof").exists()
