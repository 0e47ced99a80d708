"""`mlaprof kernels` as a user meets it: the door, a real worker on a CPU, the table, and `show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlaprof import store
from mlaprof.cli.door import app
from mlaprof.errors import ConfigError, RunFileError

STUDY = """
name: few
kernels:
  topk:
    shapes: [{num_rows: [1, 5], width: 300, k: 64}]
    provider: [torch, triton, vllm]
measure: {processes: 1, min_samples: 6, max_samples: 6, warmup_s: 0.0}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, str]:
    """(run file, what the command printed)."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "few.yaml").write_text(STUDY)
    path = folder / "few.mlaprof"
    arguments = ["kernels", str(folder / "few.yaml"), "--device", "cpu", "--out", str(path)]
    answer = CliRunner().invoke(app, arguments, env={"COLUMNS": "140"})
    assert answer.exit_code == 0, answer.output
    return path, answer.stdout


def test_every_cell_is_stored_with_its_checks(run):
    """Proven before timed; what is not installed or needs a GPU is a row with its reason."""
    found = store.load(run[0])
    assert found.is_of_kernels and not found.measurements
    assert len(found.kernels) == 2 * 3 == len(found.manifest.planned)
    for each in found.kernels:
        if each.point.provider == "torch":
            assert each.outcome.status == "ok" and each.timing and each.checks and each.emulated
            assert all(check.passed for check in each.checks)
            assert each.bytes > 0 and each.version.startswith("torch ")
        else:
            assert each.outcome.status == "skipped" and each.timing is None


def test_the_table_says_what_was_timed_and_why_the_rest_was_not(run):
    text = run[1]
    assert "EMULATED topk | width=300, k=64" in text
    assert "SKIPPED vllm: vllm is not installed; pip install vllm" in " ".join(text.split())
    assert "needs a CUDA GPU" in " ".join(text.split())
    assert "ceilings" in text  # in the legend; an emulated run has none of its own
    assert "ceilings of this run:" not in text


def test_show_prints_the_run_in_every_format(run):
    path = str(run[0])
    outputs = {
        name: CliRunner().invoke(app, ["show", path, "--format", name], env={"COLUMNS": "140"}).stdout
        for name in ("table", "md", "csv", "json")
    }
    assert "EMULATED topk" in outputs["table"]
    assert "### topk" in outputs["md"]
    assert len(outputs["csv"].splitlines()) == 1 + 6
    assert len(json.loads(outputs["json"])["cells"]) == 6


@pytest.mark.parametrize("command", [["plot"], ["compare"]])
def test_commands_of_the_layer_refuse_a_run_of_kernels(run, command):
    path = str(run[0])
    answer = CliRunner().invoke(app, [*command, path, *([path] if command == ["compare"] else [])])
    assert isinstance(answer.exception, RunFileError) and "not of the layer" in str(answer.exception)


def test_a_dry_run_lists_the_plan_and_writes_nothing(tmp_path):
    (tmp_path / "few.yaml").write_text(STUDY)
    arguments = ["kernels", str(tmp_path / "few.yaml"), "--dry-run", "--device", "cpu", "--only", "topk"]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0
    first, *_, last = answer.stdout.splitlines()
    assert first == "kernel topk/num_rows=1,width=300,k=64/torch"
    assert last == "6 measurements in 1 worker process; nothing was run"
    assert list(tmp_path.iterdir()) == [tmp_path / "few.yaml"]


def test_a_wrong_study_is_the_users_mistake(tmp_path):
    (tmp_path / "few.yaml").write_text(STUDY.replace("topk:", "top_k:"))
    answer = CliRunner().invoke(app, ["kernels", str(tmp_path / "few.yaml")])
    assert isinstance(answer.exception, ConfigError) and "did you mean topk" in str(answer.exception)
