"""The committed reference runs: real, proven, and quoted as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mlaprof import store
from mlaprof.analysis.cells import Cell
from mlaprof.analysis.summary import summarize

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "results" / "reference"
RUNS = sorted(REFERENCE.glob("*/run.mlaprof"))


def cells(name: str) -> dict[tuple[int, str], Cell]:
    summary = summarize(store.load(REFERENCE / name / "run.mlaprof"))
    return {(cell.num_tokens, cell.mode): cell for cell in summary.cells}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.parent.name)
def test_a_reference_run_is_of_a_gpu_and_every_cell_of_it_was_proven(path):
    """No emulated time, no failed cell, no timed cell without a passed check."""
    run = store.load(path)
    assert run.manifest.device == "cuda" and run.manifest.environment.gpus
    assert {f"{found.kind} {found.point.key}" for found in run.measurements} == set(run.manifest.planned)
    for found in run.measurements:
        assert found.outcome.status in ("ok", "skipped") and not found.emulated
        assert found.kind != "timing" or found.outcome.status == "skipped" or found.checks
        assert all(check.passed for check in found.checks)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.parent.name)
def test_a_summary_tells_the_medians_of_its_run(path):
    told = json.loads((path.parent / "summary.json").read_text())
    found = {cell.key: cell for cell in summarize(store.load(path)).cells}
    assert len(told["cells"]) == len(found)
    for cell in told["cells"]:
        device_s = found[cell["key"]].device_s
        assert device_s is not None and cell["device_s"]["median"] == pytest.approx(device_s.median)


def test_every_reference_run_is_listed_with_its_command():
    listed = re.findall(
        r"^\| `([^`]+)/` \| `mlaprof sweep configs/([^`]+)\.yaml` \|", (REFERENCE / "README.md").read_text(), re.M
    )
    assert listed and sorted(folder for folder, _ in listed) == [path.parent.name for path in RUNS]
    for folder, config in listed:
        manifest = store.read_manifest(REFERENCE / folder / "run.mlaprof")
        assert f"configs/{config}.yaml" in manifest.command
        assert manifest.environment.kernel_source_sha256.startswith("5dc3a49f0efcec99")


def test_the_readme_quotes_the_prefill_run():
    """Each number of the table, to the digits it is written with."""
    rows = re.findall(
        r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
        (ROOT / "README.md").read_text(),
        re.M,
    )
    found = cells("v3.2-tp8-prefill")
    assert len(rows) >= 5
    for tokens, *numbers in rows:
        pairs = zip(numbers[0::2], numbers[1::2], strict=True)
        for mode, (device_ms, submit_ms) in zip(("monolithic_eager", "split_piecewise", "full"), pairs, strict=True):
            cell = found[int(tokens), mode]
            assert cell.device_s is not None and cell.submit_s is not None
            assert (device_ms, submit_ms) == (f"{cell.device_s.median * 1e3:.3f}", f"{cell.submit_s.median * 1e3:.2f}")
