"""Tuning on a GPU: recorded launches are found compiled, a search ends with a decision, a layer runs what was tuned."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlaprof import store
from mlaprof.tuning import library

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
KERNELS = """\
name: few
launch: [graph]
kernels:
  topk:
    shapes: [{num_rows: 64, width: 4096}]
measure: {min_samples: 10, max_samples: 40}
"""
LAYER = """\
name: few-layer
preset: v3.2-tp8
sweep: {phase: prefill, num_tokens: [64, 100], mode: [split_piecewise, full]}
measure: {processes: 1, min_samples: 6, max_samples: 10, cell_time_s: 2.0, memory: false, counts: false}
"""


def mlaprof(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(folder / "triton")}
    return subprocess.run(
        [sys.executable, "-m", "mlaprof", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """One kernel tuned from a cold cache."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "few.yaml").write_text(KERNELS)
    answer = mlaprof(
        folder, "tune", "few.yaml", "--budget", "40s", "--max-evals", "16", "--out", "run.mlaprof", "--shared-gpu"
    )
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    return folder, answer


def test_a_recorded_launch_is_found_compiled_by_the_launch_itself(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    import triton

    from mlaprof.cases import CASES
    from mlaprof.kernel_shapes import complete
    from mlaprof.kernels.launches import recorded
    from mlaprof.worker.compilers import Compilers

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    shape = complete("topk", {"num_rows": 8, "width": 1000, "k": 100})
    values = {"block": 1024, "num_warps": 8, "num_pieces": 2, "ambiguous": 128, "num_registers": 0}
    case = CASES["topk"](shape, seed=0, device=torch.device("cuda"))
    call = case.call("triton", values)
    launches = recorded(call)
    with Compilers(1) as compilers:
        compilers.submit("one", launches)
        found = []
        while not found:
            found = compilers.done(1.0)
    assert launches and found[0].built is not None, found[0].reason
    hits: list[bool] = []
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda *, cache_hit, **rest: hits.append(cache_hit))
    assert all(check.passed for check in case.check(call()))
    assert hits == [True] * len(launches)


def test_a_search_decides_and_its_compilers_spare_it_the_waiting(tuned):
    folder, answer = tuned
    run = store.load(folder / "run.mlaprof")
    rows = [row for row in run.kernels if row.kind == "search"]
    timed = [row for row in rows if row.timing]
    assert len(timed) >= 8 and not any(row.emulated for row in run.kernels)
    assert all(check.passed for row in timed for check in row.checks)
    slow_first_calls = [row for row in timed if row.timing.first_call_s > 0.5]
    assert len(slow_first_calls) <= len(timed) // 4  # most were compiled before their launch
    assert {row.process for row in run.kernels if row.kind == "kernel"} == {0, 1}
    assert answer.stdout.count("in all, finalists in two fresh processes included") == 1


def test_the_library_has_an_entry_of_this_gpu_and_verify_measures_the_tuned_ones(tuned):
    folder, _ = tuned
    files = list((folder / "results" / "tuned").glob("*/*.json"))
    entries = [entry for file in files for entry in library.load(file)]
    assert {entry.conditions.kernel for entry in entries} == {"topk"}
    for entry in entries:
        assert entry.conditions.sm_count > 0 and entry.conditions.launch == "graph"
        assert (entry.decision == "tuned") == (entry.values is not None)
        if entry.decision == "tuned":
            assert entry.confirmed_low is not None and entry.confirmed_low > 1.01
    answer = mlaprof(folder, "tuned", "verify", "--shared-gpu")
    assert answer.returncode in (0, 1), answer.stderr  # 1: slower here and now, which is what it is for
    assert "traceback" not in answer.stderr.lower()


def test_a_layer_runs_what_the_library_holds_and_passes_its_gate(tuned, tmp_path):
    """An entry for 64 tokens serves 64 exactly and 100 by the bucket, in graphs and outside, bit for bit as eager."""
    from mlaprof.config.load import load_study
    from mlaprof.machine import environment
    from mlaprof.tuning.conditions import conditions_of
    from mlaprof.tuning.targets import layer_shapes

    (tmp_path / "few.yaml").write_text(LAYER)
    study, here = load_study(tmp_path / "few.yaml"), environment.snapshot()
    shape = layer_shapes(study.layer.shape, study.layer.options, study.batch, "prefill", 64, 0)["absorb"]
    values = {"block_m": 16, "block_n": 64, "block_k": 64, "num_warps": 4, "num_stages": 3}
    for launch in ("eager", "graph"):
        conditions = conditions_of(here, "cuda", "absorb", shape, launch, study.measure.cache)
        entry = library.Entry(
            conditions=conditions, shape=shape, decision="tuned", form="absorb", values=values, device_s=1e-5,
            default_device_s=1e-5, gain=1.0, gain_low=1.0, gain_high=1.0, evaluations=1, seed=0, date="2026-11-23",
            mlaprof_version="0",
        )  # fmt: skip
        library.save(library.path_of(tmp_path / "results" / "tuned", conditions), [entry])
    answer = mlaprof(tmp_path, "sweep", "few.yaml", "--out", "run.mlaprof", "--shared-gpu")
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-2000:]
    assert "tuned absorb: bucket 2, exact 2" in answer.stderr
    run = store.load(tmp_path / "run.mlaprof")
    assert {use.rule for use in run.manifest.tuned if use.kernel == "absorb"} == {"exact", "bucket"}
    assert all(row.outcome.status == "ok" for row in run.measurements if row.kind == "timing")
