"""`mlaprof trace` at the door: a file that is whole or not there, and refusals of one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from mlaprof import store
from mlaprof.analysis.differences import other_shape
from mlaprof.config.load import load_study, resolved_yaml
from mlaprof.machine import environment
from mlaprof.plan import expand
from mlaprof.records import Manifest, work
from mlaprof.trace import retrace

STUDY = """\
name: small
preset: tiny
num_layers: 2
sweep: {num_tokens: [5, 3], context_len: [0, 100], mode: [monolithic_eager, split_piecewise]}
tiles: {sparse_attn: [{block_n: 16}]}
measure: {cache: warm, processes: 1, memory: false, counts: false}
"""
KEY = "tiny/prefill/t5/ctx0/split_piecewise"


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


@pytest.fixture
def mlaprof(checkout: Path, tmp_path: Path) -> Callable[..., Answer]:
    def run(*arguments: object) -> Answer:
        done = subprocess.run(
            [sys.executable, "-m", "mlaprof", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def manifest(fake_runs: ModuleType, tmp_path: Path) -> Manifest:
    """The head of a run of STUDY on this CPU, of which nothing needs to have been measured."""
    (tmp_path / "study.yaml").write_text(STUDY)
    study = load_study(tmp_path / "study.yaml")
    return fake_runs.make_run([]).manifest.model_copy(
        update={
            "schema_version": store.SCHEMA_VERSION,
            "device": "cpu",
            "study_yaml": resolved_yaml(study),
            "environment": environment.snapshot(),
            "planned": tuple(work(*each) for each in expand(study, "cpu").planned),
        }
    )


@pytest.fixture
def run(manifest: Manifest, tmp_path: Path) -> Path:
    store.create(tmp_path / "run.mlaprof", manifest).finish()
    return tmp_path / "run.mlaprof"


def test_a_trace_lands_whole_beside_the_plots(mlaprof, run: Path) -> None:
    """Traced anew it is replaced; the run file stays as it was."""
    before = run.read_bytes()
    for _ in range(2):
        answer = mlaprof("trace", run, KEY)
        assert (answer.code, answer.out) == (
            0,
            f"trace {run.parent}/run/trace-tiny-prefill-t5-ctx0-split_piecewise.json\n",
        )
    (path,) = (run.parent / "run").iterdir()
    trace = json.loads(path.read_text())
    segments = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "segment"]
    assert segments[:2] == ["piece 0 graph", "op mla_dsa_attn_inplace eager"]
    assert trace["otherData"]["emulated"] is True and "EMULATED" in trace["otherData"]["label"]
    assert trace["otherData"]["differs_from_run"] == []
    assert run.read_bytes() == before


def refusal(answer: Answer) -> str:
    assert (answer.code, answer.out) == (2, "")
    (line,) = answer.err.splitlines()
    return line


def test_an_unknown_key_names_the_nearest_ones(mlaprof, run: Path) -> None:
    line = refusal(mlaprof("trace", run, "tiny/prefill/t5/ctx0/split_picewise"))
    assert "no such cell" in line and KEY in line
    assert not (run.parent / "run").exists()


def test_a_file_that_is_there_is_not_overwritten(mlaprof, run: Path) -> None:
    assert "exists" in refusal(mlaprof("trace", run, KEY, "--out", run))


def test_a_run_of_a_gpu_cannot_be_traced_without_it(mlaprof, checkout: Path) -> None:
    """It says what differs; nothing is emulated in its place."""
    run = checkout / "results/reference/layer-h100/v3.2-tp8-prefill.mlaprof"
    key = "v3.2-tp8/prefill/t64/ctx0/split_piecewise"
    if environment.snapshot().gpus:
        pytest.skip("of a machine without a GPU")
    line = refusal(mlaprof("trace", run, key))
    assert "cannot be run again here: GPU was NVIDIA H100 80GB HBM3, here none" in line


def test_a_run_of_single_kernels_has_no_cell_to_trace(mlaprof, checkout: Path) -> None:
    line = refusal(mlaprof("trace", checkout / "results/reference/kernels-h100.mlaprof", KEY))
    assert "single kernels" in line


def test_what_was_not_run_is_refused_with_its_reason(manifest: Manifest) -> None:
    tiles = f"{KEY}/sparse_attn=n16"
    with pytest.raises(Exception, match="compiled and not run") as refused:
        retrace(manifest, tiles, manifest.environment)
    assert refused.value.exit_code == 2  # type: ignore[attr-defined]


def test_what_is_traced_is_the_point_alone_as_the_run_had_it(manifest: Manifest) -> None:
    """Its A/A twin can be asked for, too; what differs without keeping the step from running is told."""
    for key in (KEY, "tiny/prefill/t5/ctx0/monolithic_eager/aa"):
        (job,) = retrace(manifest, key, manifest.environment).plan.jobs
        assert (job.kind, [point.key for point in job.points]) == ("trace", [key])
    newer = manifest.environment.model_copy(update={"kernel_source_sha256": "0" * 64})
    assert [each.name for each in retrace(manifest, KEY, newer).differs] == ["kernel source"]


def test_gpus_of_another_shape_are_told_apart(fake_runs: ModuleType) -> None:
    """By what a kernel finds of them; another card of the same kind is the same shape."""
    machines = fake_runs.make_run([]).manifest
    was = machines.environment.model_copy(update={"gpus": (fake_runs.H100.model_copy(update={"sm_count": 132}),)})
    base = machines.model_copy(update={"environment": was, "device": "cuda"})

    def here(**changes: object):
        gpu = was.gpus[0].model_copy(update={"uuid": "GPU-9", **changes})
        return was.model_copy(update={"gpus": (gpu,), "used_gpu": 0})

    assert list(other_shape(base, here())) == []
    assert [(each.name, each.new) for each in other_shape(base, here(sm_count=114))] == [("SMs", "114")]
    assert [each.name for each in other_shape(base, here(name="NVIDIA H200"))] == ["GPU"]
    assert [each.name for each in other_shape(base, was.model_copy(update={"gpus": (), "used_gpu": None}))] == ["GPU"]
