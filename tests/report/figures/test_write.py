"""The files of a run: which, how they are named, and that they are the same each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mlaprof import store
from mlaprof.analysis.groups import groups
from mlaprof.analysis.summary import summarize
from mlaprof.report.figures.canvas import DPI, WIDTH_IN
from mlaprof.report.figures.write import FIGURES, write_figures

REFERENCE = sorted((Path(__file__).parents[3] / "results" / "reference").glob("*/run.mlaprof"))


def test_files_are_named_by_phase_and_context_and_wide_enough(fake_runs: ModuleType, tmp_path: Path) -> None:
    rows = [*fake_runs.sweep(fake_runs.laptop()), *fake_runs.sweep(fake_runs.laptop(), "decode", 4096)]
    run = fake_runs.make_run(rows, device="cpu")
    paths = write_figures(run, summarize(run), tmp_path / "new" / "plots")
    assert [path.name for path in paths if path.suffix == ".png"] == [
        f"{name}-{place}.png"
        for place in ("prefill-ctx0", "decode-ctx4096")
        for name in ("latency", "speedup", "memory")
    ]
    assert {path.with_suffix("") for path in paths if path.suffix == ".svg"} == {
        path.with_suffix("") for path in paths if path.suffix == ".png"
    }
    header = paths[0].read_bytes()[:24]
    assert int.from_bytes(header[16:20], "big") == WIDTH_IN * DPI == 1600


def test_a_run_with_counts_and_ledgers_draws_them_too(fake_runs: ModuleType, tmp_path: Path) -> None:
    run = fake_runs.make_run(fake_runs.complete(fake_runs.h100(sizes=(64, 8)), ("index_quant",)))
    names = {path.name for path in write_figures(run, summarize(run), tmp_path)}
    assert {"counts-prefill-ctx0.png", "capture-cost-prefill-ctx0.svg"} <= names


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.parent.name)
def test_reference_runs_still_draw_what_they_drew(path: Path) -> None:
    """Every committed figure, though the oldest runs have no counts, no ledger and no boundary."""
    summary = summarize(store.load(path))
    drawn = {
        f"{name}-{group.phase}-ctx{group.context_len}.png"
        for group in groups(summary)
        for name, draw in FIGURES.items()
        if draw(summary, group)
    }
    assert drawn >= {each.name for each in path.parent.glob("*.png")}


def test_the_same_run_draws_the_same_files(fake_runs: ModuleType, tmp_path: Path) -> None:
    run = fake_runs.make_run([fake_runs.timing(fake_runs.point(), 1e-4)])
    first, second = (write_figures(run, summarize(run), tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_run_without_numbers_draws_nothing(fake_runs: ModuleType, tmp_path: Path) -> None:
    run = fake_runs.make_run([fake_runs.ended(fake_runs.point(), "failed", "OOM")])
    assert write_figures(run, summarize(run), tmp_path) == []


def test_names_with_dollars_and_underscores_are_drawn_as_they_are(fake_runs: ModuleType, tmp_path: Path) -> None:
    at = fake_runs.point(preset="my_$x^{$_shape")
    run = fake_runs.make_run([fake_runs.timing(at, 1e-4)], run_id="r_$1")
    assert write_figures(run, summarize(run), tmp_path)


def test_a_summary_of_another_run_is_refused(fake_runs: ModuleType, tmp_path: Path) -> None:
    run = fake_runs.make_run([])
    with pytest.raises(ValueError, match="expected the one of run other"):
        write_figures(fake_runs.make_run([], run_id="other"), summarize(run), tmp_path)


def test_tables_need_no_matplotlib_and_nothing_here_needs_torch(checkout: Path) -> None:
    """`show` answers at once: importing tables and figures must not pull in slow packages."""
    code = (
        "import sys\n"
        "from mlaprof.report import comparison, console, export, listing, progress\n"
        "from mlaprof.report.figures import write\n"
        "slow = {'torch', 'matplotlib', 'scipy.stats', 'triton'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=checkout)
