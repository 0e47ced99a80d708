"""The committed reference runs: real, proven, and quoted as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlaprof import store
from mlaprof.analysis.cells import Cell
from mlaprof.analysis.compare import compare
from mlaprof.analysis.summary import summarize
from mlaprof.report.export import summary_json
from mlaprof.study import MODES

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "results" / "reference"
RUNS = sorted(REFERENCE.glob("*/run.mlaprof"))
CAPTURE = REFERENCE / "capture-h100"
LAYER = REFERENCE / "layer-h100"
CAPTURE_RUNS = sorted(CAPTURE.glob("*.mlaprof"))
OF_A_SIZE = (
    "outcome",
    "reason",
    "state",
    "graph_nodes",
    "graph_launches",
    "kernel_launches",
    "syncs",
    "d2h_copies",
    "coverage",
    "prepare_s",
    "capture_s",
    "instantiate_s",
    "first_replay_s",
    "break_even_replays",
    "gate",
)


def cells(path: Path) -> dict[tuple[int, str], Cell]:
    summary = summarize(store.load(path))
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


def quoted(text: str, cell: Cell) -> tuple[str, str]:
    """Device and submit time in ms, with as many digits as text has in front of it."""
    assert cell.device_s is not None and cell.submit_s is not None
    digits = len(text.partition(".")[2])
    return f"{cell.device_s.median * 1e3:.{digits}f}", f"{cell.submit_s.median * 1e3:.2f}"


def test_the_readme_quotes_the_prefill_run():
    """Each number of the table, to the digits it is written with."""
    number = r" ([\d.]+) \|"
    rows = re.findall(rf"^\| (\d+) \|{number * 8}$", (ROOT / "README.md").read_text(), re.M)
    found = cells(LAYER / "v3.2-tp8-prefill.mlaprof")
    assert len(rows) >= 5
    for tokens, *numbers in rows:
        pairs = zip(numbers[0::2], numbers[1::2], strict=True)
        for mode, pair in zip(("monolithic_eager", "split_piecewise", "breakable", "full"), pairs, strict=True):
            assert pair == quoted(pair[0], found[int(tokens), mode])


@pytest.mark.parametrize("path", sorted(LAYER.glob("*.mlaprof")), ids=lambda path: path.stem)
def test_the_layer_runs_are_of_a_gpu_and_a_commit_and_every_cell_was_proven(path):
    run = store.load(path)
    assert (
        run.manifest.device == "cuda" and run.manifest.environment.git_commit and not run.manifest.environment.git_dirty
    )
    assert f"| `{path.name}` | `{' '.join(run.manifest.command)}`" in (REFERENCE / "README.md").read_text()
    for found in run.measurements:
        assert found.outcome.status == "ok" and not found.emulated and all(check.passed for check in found.checks)
        assert found.kind != "timing" or found.checks


def test_the_readme_tells_what_fp8_projections_are_worth():
    """Milliseconds of one layer at 4096 tokens, of runs of two."""
    bf16, fp8 = (
        cells(LAYER / f"{name}.mlaprof")[4096, "monolithic_eager"]
        for name in ("v3.2-prefill", "v3.2-prefill-fp8_block")
    )
    one = [f"{cell.device_s.median * 1e3 / 2:.1f} ms" for cell in (bf16, fp8) if cell.device_s]
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"takes {one[0]} at 4096 tokens, and {one[1]} with its four large projections" in readme


def test_the_page_on_capture_quotes_the_same_run():
    number = r" ([\d.]+)(?: ms)? \|"
    rows = re.findall(rf"^\| `(\w+)` \|{number * 4} (\d+) % \| (.+) \|$", (ROOT / "docs/capture.md").read_text(), re.M)
    found = cells(CAPTURE / "v3.2-tp8-prefill.mlaprof")
    assert [mode for mode, *_ in rows] == [mode for mode in MODES if mode != "split_eager"]
    for mode, *numbers, share, calls in rows:
        small, large = found[64, mode], found[8192, mode]
        assert tuple(numbers[:2]) == quoted(numbers[0], small)
        assert tuple(numbers[2:]) == quoted(numbers[2], large)
        counts = small.counts
        assert counts is not None and counts.coverage is not None and share == f"{counts.coverage * 100:.0f}"
        launches = f"{counts.kernel_launches} launches" if counts.kernel_launches else ""
        graphs = f"{counts.graph_launches} graph{'s' * (counts.graph_launches > 1)}" if counts.graph_launches else ""
        assert calls == " + ".join(part for part in (launches, graphs) if part)


def capture_summary() -> dict[str, Any]:
    """What results/reference/capture-h100/summary.json holds: by run, way and token count, all on capture."""
    found: dict[str, Any] = {}
    for path in CAPTURE_RUNS:
        run = store.load(path)
        told = json.loads(summary_json(run, summarize(run)))
        ways: dict[str, Any] = {}
        for cell in told["cells"]:
            row = {name: cell[name] for name in OF_A_SIZE}
            row |= {name: cell[name] and cell[name]["median"] for name in ("device_s", "submit_s")}
            row["ledger"] = cell["ledger"] and cell["ledger"]["size"]
            ways.setdefault(cell["way"], {"ledger": None, "sizes": {}})["sizes"][str(cell["num_tokens"])] = row
        for ledger in told["ledgers"]:
            ways[ledger["way"]]["ledger"] = {name: value for name, value in ledger.items() if name != "sizes"}
        head = {name: told[name] for name in ("run_id", "created_at", "command", "processor")}
        found[path.stem] = head | {"ways": ways}
    return found


def test_the_capture_summary_is_that_of_its_runs():
    assert json.loads((CAPTURE / "summary.json").read_text()) == json.loads(json.dumps(capture_summary()))


def test_the_capture_runs_cover_both_models_both_phases_and_every_mode():
    sizes = {2**power for power in range(14)}
    for model in ("v3.2-tp8", "glm-5-tp8"):
        for phase in ("prefill", "decode"):
            run = store.load(CAPTURE / f"{model}-{phase}.mlaprof")
            timed = {(each.point.mode, each.point.num_tokens) for each in run.measurements if each.kind == "timing"}
            assert timed == {(mode, size) for mode in MODES for size in sizes}


def test_every_cell_of_the_capture_runs_was_proven_in_one_of_them():
    """A cell may be incorrect in one run where a later one, beside it, has it right."""
    right: set[str] = set()
    wrong: dict[str, str] = {}
    for path in CAPTURE_RUNS:
        for found in store.load(path).measurements:
            assert found.outcome.status in ("ok", "skipped", "incorrect") and not found.emulated
            if found.kind == "timing" and found.outcome.status == "ok":
                assert found.checks and all(check.passed for check in found.checks)
                assert found.gate is not None or found.point.mode.endswith("_eager")
                right.add(found.point.key)
            elif found.outcome.status == "incorrect":
                wrong[found.point.key] = path.stem
            if found.counts is not None:
                assert found.counts.complete and found.counts.syncs == found.counts.d2h_copies == 0
            if found.memory is not None and found.memory.ledger is not None:
                residual_bytes = found.memory.ledger.residual_bytes
                assert residual_bytes is not None and abs(residual_bytes) <= 4 * 2**20
    assert wrong.keys() <= right
    assert set(wrong.values()) <= {"glm-5-tp8-prefill"}


def test_a_setting_that_did_not_exist_yet_is_no_difference():
    """The older run had no block on capture and ran as its defaults say; what was really set otherwise is told."""
    older = store.load(REFERENCE / "v3.2-tp8-prefill" / "run.mlaprof")
    newer = store.load(CAPTURE / "v3.2-tp8-prefill.mlaprof")
    told = {each.name: (each.base, each.new) for each in compare(older, newer).notes}
    assert told.keys() == {"GPU uuid", "git commit", "measure.min_samples"}
    assert told["measure.min_samples"] == ("50", "30")


PLANTED = {
    "t32/ctx0/full": "SLOWER",
    "t48/ctx0/breakable": "FASTER",
    "t64/ctx0/full": "INCORRECT",
    "t64/ctx0/breakable": "FAILED",
    **{f"t16/ctx0/{mode}": "MISSING" for mode in ("monolithic_eager", "breakable", "full")},
    **{f"t96/ctx0/{mode}": "NEW" for mode in ("monolithic_eager", "breakable", "full")},
    **{f"t{size}/ctx0/monolithic_eager": "AMBIGUOUS" for size in (32, 48, 64)},
    "t32/ctx0/breakable": "AMBIGUOUS",
    "t48/ctx0/full": "AMBIGUOUS",
}


def test_two_runs_of_different_commits_compare_with_the_verdicts_that_were_planted():
    """Three processes of each, emulated; nothing that was left alone is called faster or slower."""
    base, new = (store.load(REFERENCE / "planted" / f"{name}.mlaprof") for name in ("base", "new"))
    found = compare(base, new)
    assert {delta.key.removeprefix("tiny/prefill/"): delta.verdict for delta in found.deltas} == PLANTED
    assert "git commit" in {note.name for note in found.notes} and found.base.emulated and found.exit_code() == 1
    told = (REFERENCE / "planted" / "README.md").read_text()
    for run, name in ((base, "base"), (new, "new")):
        assert run.manifest.environment.git_commit and not run.manifest.environment.git_dirty
        assert f"| `{name}.mlaprof` | {run.manifest.environment.git_commit[:7]}: " in told
        assert (REFERENCE / "planted" / f"{name}.patch").read_text().count("planted") >= 1


def test_the_drills_of_a_gpu_named_every_fault_and_left_nothing():
    """docs/reliability.md quotes the counts."""
    told = json.loads((REFERENCE / "drills-h100.json").read_text())
    page = (ROOT / "docs" / "reliability.md").read_text()

    assert told["device"] == "cuda" and "H100" in told["processor"] and told["wrong"] == []
    assert f"all {len(told['faults'])} faults were called by their" in page
    assert f"all {told['cells_without_a_fault']} cells without a fault" in page
    assert told["of_them_as_in_the_clean_sweep"] == told["cells_without_a_fault"]
    for fault in told["faults"]:
        assert fault["found"] and all(found == fault["expected"] for found in fault["found"])
    for sweep in (each[which] for each in told["sweeps"] for which in ("clean", "drilled")):
        assert sweep["gpu_used_after_bytes"] == sweep["gpu_used_before_bytes"]
        assert sweep["temporary_files_left"] == sweep["processes_left"] == []
