"""`mlaprof report` and `bundle` from the command line, and a bundle opened elsewhere."""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mlaprof import store
from mlaprof.config.kernels import load_kernel_study
from mlaprof.config.load import load_study
from mlaprof.report.bundle import reproduce_script, samples_csv

REFERENCE = Path(__file__).parents[1] / "results" / "reference"
RUN = REFERENCE / "layer-h100" / "v3.2-prefill.mlaprof"


@pytest.fixture
def mlaprof(checkout: Path, tmp_path: Path):
    """Run the command line in an empty folder."""

    def run(*words: object, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "NO_COLOR": "1", "COLUMNS": "200"}
        command = [sys.executable, "-m", "mlaprof", *map(str, words)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture(scope="module")
def bundle(checkout: Path, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "ticket.zip"
    command = [sys.executable, "-m", "mlaprof", "bundle", str(RUN), "--out", str(path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(checkout)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


def test_report_writes_a_folder_and_names_it(mlaprof, tmp_path):
    done = mlaprof("report", RUN)
    folder = tmp_path / "results" / f"{store.read_manifest(RUN).run_id}-report"
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").is_file() and f"{folder.relative_to(tmp_path)}/report.html" in done.stdout


def test_report_beside_a_base_run_judges_it(mlaprof, tmp_path):
    planted = REFERENCE / "planted"
    done = mlaprof("report", planted / "new.mlaprof", "--base", planted / "base.mlaprof", "--out", "out")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "report.html").read_text()
    assert "1 SLOWER" in text and "Against the base run" in text


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("report", "nothing"), 2, "no such run"),
        (("bundle", "nothing"), 2, "no such run"),
        (("report", RUN, "--base", REFERENCE / "kernels-h100.mlaprof"), 2, "is no run of the layer"),
        (("report", RUN, "--base", REFERENCE / "planted" / "base.mlaprof"), 4, "device"),
        (("report", RUN, "--out", "full"), 2, "holds no earlier report"),
        (("bundle", RUN, "--out", "full/notes.txt"), 2, "no zip to be replaced"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(mlaprof, tmp_path, words, code, told):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    done = mlaprof(*words)
    assert done.returncode == code and told in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["full", "notes.txt"]


def test_a_bundle_holds_the_report_the_samples_and_the_way_back(bundle):
    with zipfile.ZipFile(bundle) as opened:
        names = set(opened.namelist())
    assert names >= {"SHA256SUMS", "run.mlaprof", "samples.csv", "study.yaml", "environment.json", "reproduce.sh"}
    assert names >= {"report/report.html", "report/run.json", "report/summary.md", "report/summary.csv"}


def test_a_bundle_shows_elsewhere_what_the_run_shows_here(mlaprof, bundle, tmp_path):
    there = shutil.copy(bundle, tmp_path / "from ticket.zip")
    here, elsewhere = mlaprof("show", RUN), mlaprof("show", there)
    assert elsewhere.returncode == 0 and elsewhere.stdout == here.stdout
    assert mlaprof("report", there, "--out", "again").returncode == 0
    assert [each.name for each in tmp_path.iterdir() if each.suffix == ".mlaprof"] == []


def test_a_changed_bundle_is_exit_2_with_the_file_that_changed(mlaprof, bundle, tmp_path):
    with zipfile.ZipFile(bundle) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    files["study.yaml"] = files["study.yaml"].replace(b"cold", b"warm")
    with zipfile.ZipFile(tmp_path / "changed.zip", "w") as out:
        for name, content in files.items():
            out.writestr(name, content)
    done = mlaprof("show", "changed.zip")
    assert done.returncode == 2 and "'study.yaml' is not what its checksum says" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_every_sample_of_the_run_is_in_the_table():
    run = store.load(RUN)
    rows = list(csv.DictReader(io.StringIO(samples_csv(run))))
    assert len([row for row in rows if row["series"] == "device_s"]) == sum(
        len(each.timing.device_s) for each in run.measurements if each.timing
    )
    first = next(each for each in run.measurements if each.timing)
    told = [float(row["value"]) for row in rows if (row["key"], row["series"]) == (first.point.key, "device_s")]
    assert told[: len(first.timing.device_s)] == pytest.approx(first.timing.device_s, rel=1e-6)


def test_the_study_of_a_bundle_plans_again(bundle, tmp_path, mlaprof):
    with zipfile.ZipFile(bundle) as opened:
        opened.extract("study.yaml", tmp_path)
    load_study(tmp_path / "study.yaml")
    (tmp_path / "kernels.yaml").write_text(store.read_manifest(REFERENCE / "kernels-h100.mlaprof").study_yaml)
    load_kernel_study(tmp_path / "kernels.yaml")


def test_the_script_runs_what_it_says_with_no_word_of_the_run_in_a_command(tmp_path):
    manifest = store.read_manifest(RUN)
    evil = "x\n$(touch owned); `touch owned`\r\x0b"
    environment = manifest.environment.model_copy(update={"variables": {"LD_PRELOAD": evil}, "git_commit": evil})
    manifest = manifest.model_copy(update={"environment": environment, "run_id": evil, "command": ("mlaprof", evil)})
    script = tmp_path / "reproduce.sh"
    script.write_text(reproduce_script(manifest))
    fake = tmp_path / "mlaprof"
    fake.write_text('#!/bin/sh\necho "$@" >>calls\n')
    fake.chmod(0o755)
    done = subprocess.run(["sh", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().splitlines() == [
        "sweep study.yaml --device cuda --out again.mlaprof",
        "compare run.mlaprof again.mlaprof",
    ]
    assert not (tmp_path / "owned").exists()
