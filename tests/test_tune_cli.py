"""`mlaprof tune` and `mlaprof tuned` from the command line, on a machine without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlaprof import store
from mlaprof.cli import app
from mlaprof.errors import ConfigError, MlaprofError, RunFileError
from mlaprof.tuning import library

ROOT = Path(__file__).resolve().parents[1]
STUDY = """\
name: few
kernels:
  topk:
    shapes: [{num_rows: 1, width: 200, k: 32}]
  rmsnorm:
    shapes: [{m: 4}]
measure: {cache: warm, min_samples: 6, max_samples: 8, warmup_s: 0.0}
"""


def mlaprof(folder: Path, *arguments: str, interpret: bool = False) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment.pop("TRITON_INTERPRET", None)
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    return subprocess.run(
        [sys.executable, "-m", "mlaprof", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """One tuning in Triton's interpreter, end to end: its folder and what was said."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "few.yaml").write_text(STUDY)
    arguments = ("tune", "few.yaml", "--device", "cpu", "--budget", "30s", "--max-evals", "2", "--out", "run.mlaprof")
    return folder, mlaprof(folder, *arguments, interpret=True)


def test_a_tuning_ends_with_a_decision_a_library_and_a_run(emulated):
    folder, answer = emulated
    assert answer.returncode == 0, answer.stderr
    assert "EMULATED topk/num_rows=1,width=200,k=32" in answer.stdout
    assert "keep-default: " in answer.stdout or "tuned: " in answer.stdout
    assert "best " in answer.stderr and " emulated by triton " in answer.stderr
    run = store.load(folder / "run.mlaprof")
    assert run.is_of_tuning and {row.kind for row in run.kernels} == {"search", "kernel"}
    assert all(row.emulated for row in run.kernels)
    [file] = (folder / "results" / "tuned").glob("*/topk.json")
    [entry] = library.load(file)
    assert file.parent.name.startswith("emulated-on-") and entry.conditions.gpu.startswith("emulated on ")
    assert entry.evaluations >= 1 and entry.gain_low <= entry.gain <= entry.gain_high


def test_show_tells_the_run_in_every_format(emulated):
    folder, _ = emulated
    outputs = {
        name: CliRunner().invoke(app, ["show", str(folder / "run.mlaprof"), "--format", name]).stdout
        for name in ("table", "md", "csv", "json")
    }
    assert "EMULATED topk" in outputs["table"] and "### EMULATED topk" in outputs["md"]
    rows = store.load(folder / "run.mlaprof").kernels
    assert len(outputs["csv"].splitlines()) == 1 + len(rows)
    [target] = json.loads(outputs["json"])["targets"]
    assert target["space_size"] == 2352 and target["evaluations"] >= 1 and target["wall_s"] > 0
    assert target["decision"] in ("tuned", "keep-default") and len(target["finalists"]) >= 1


def test_a_tuning_that_is_done_resumes_to_the_same_decision_at_once(emulated):
    folder, first = emulated
    before = len(store.load(folder / "run.mlaprof").kernels)
    answer = mlaprof(folder, "tune", "--resume", "run.mlaprof", interpret=True)
    assert answer.returncode == 0, answer.stderr
    assert len(store.load(folder / "run.mlaprof").kernels) == before
    line = next(each for each in first.stdout.splitlines() if each.startswith(("keep-default", "tuned:")))
    assert line in answer.stdout


def test_the_library_is_listed_exported_and_imported(emulated, tmp_path):
    folder, _ = emulated
    assert "num_rows=1,width=200,k=32" in mlaprof(folder, "tuned", "list").stdout
    assert mlaprof(folder, "tuned", "export", str(tmp_path / "all.json")).returncode == 0
    assert mlaprof(folder, "tuned", "export", str(tmp_path / "all.json")).returncode == 2  # never overwritten
    assert mlaprof(folder, "tuned", "import", str(tmp_path / "all.json"), "--library", "other").returncode == 0
    [one], [two] = (list((folder / each).glob("*/topk.json")) for each in ("results/tuned", "other"))
    assert library.load(one) == library.load(two)


def test_a_broken_library_is_left_as_it_is_and_nothing_is_imported(emulated, tmp_path):
    folder, _ = emulated
    source = next((folder / "results" / "tuned").glob("*/topk.json"))
    into = tmp_path / "lib"
    shutil.copytree(source.parent, into / source.parent.name)
    broken = into / source.parent.name / "topk.json"
    broken.write_text('{"schema_version": 9}')
    for arguments in (
        ["tuned", "import", str(source), "--library", str(into)],
        ["tuned", "list", "--library", str(into)],
    ):
        answer = mlaprof(folder, *arguments)
        assert answer.returncode == 2 and len(answer.stderr.strip().splitlines()) == 1
        assert "is of schema 9" in answer.stderr and "move it away" in answer.stderr
    assert broken.read_text() == '{"schema_version": 9}'


def test_without_a_gpu_it_compiles_and_says_that_there_is_no_time(tmp_path):
    (tmp_path / "few.yaml").write_text(STUDY)
    answer = mlaprof(tmp_path, "tune", "few.yaml", "--device", "cpu", "--budget", "30s", "--max-evals", "3")
    assert answer.returncode == 0, answer.stderr
    assert "not measured: compiled only: there is no GPU here" in answer.stdout
    assert not (tmp_path / "results" / "tuned").exists()


def invoked(folder: Path, *arguments: str):
    (folder / "few.yaml").write_text(STUDY)
    return CliRunner().invoke(
        app, ["tune", *(str(folder / each) if each == "few.yaml" else each for each in arguments)]
    )


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["few.yaml", "--kernel", "topkk"], "topkk is not a kernel; did you mean topk"),
        (["few.yaml", "--kernel", "rmsnorm"], "rmsnorm takes no tiles"),
        (["few.yaml", "--kernel", "absorb"], "has no absorb to tune"),
        (["few.yaml", "--tokens", "7"], "no target has such a size.*has 1"),
        (["few.yaml", "--tokens", "a"], "are no sizes"),
        (["few.yaml", "--mode", "ful"], "ful is not a mode; did you mean full"),
        (["few.yaml", "--budget", "soon"], "'soon' is not a budget"),
        (["few.yaml", "--budget", "0"], "'0' is not a budget"),
        ([], "no study given"),
        (["--resume", "x", "--kernel", "topk"], "a resumed tuning keeps its study"),
    ],
)
def test_what_a_user_can_mend_is_one_line_with_its_remedy(tmp_path, arguments, message):
    answer = invoked(tmp_path, *arguments)
    assert isinstance(answer.exception, ConfigError) and answer.exception.exit_code == 2
    assert answer.exception.hint
    assert __import__("re").search(message, str(answer.exception))
    assert not (tmp_path / "results").exists()


def test_a_run_of_another_command_is_not_resumed(tmp_path, fake_runs):
    path = tmp_path / "run.mlaprof"
    run = fake_runs.make_run([])
    with store.create(path, run.manifest.model_copy(update={"schema_version": store.SCHEMA_VERSION})):
        pass
    answer = invoked(tmp_path, "--resume", str(path))
    assert isinstance(answer.exception, MlaprofError)
    assert isinstance(answer.exception, RunFileError) and "not a run of tuning" in str(answer.exception)


def test_a_dry_run_prints_the_spaces_and_writes_nothing(tmp_path):
    answer = invoked(tmp_path, "few.yaml", "--dry-run", "--device", "cpu", "--results", str(tmp_path / "r"))
    assert answer.exit_code == 0
    assert "topk/num_rows=1,width=200,k=32: 3036 legal of 4704" in answer.stdout
    assert "1 search of at most 60 s; nothing was run" in answer.stdout
    assert not (tmp_path / "r").exists()
