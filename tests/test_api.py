"""`mlaprof.load_run`: a run in a notebook says what the command line says, and costs nothing until it is used."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import mlaprof
from mlaprof import store
from mlaprof.analysis.compare import compare
from mlaprof.errors import MachineError, RunFileError
from mlaprof.records import Run
from mlaprof.report.export import to_csv
from mlaprof.report.figures.write import write_figures


@pytest.fixture(scope="session")
def h100(checkout: Path) -> mlaprof.LoadedRun:
    """A run of an H100 with three ways, two of them with graphs."""
    return mlaprof.load_run(checkout / "results/reference/layer-h100/v3.2-tp8-prefill.mlaprof")


def stored(run: Run, path: Path) -> Path:
    manifest = run.manifest.model_copy(update={"schema_version": store.SCHEMA_VERSION})
    with store.create(path, manifest) as writer:
        for measurement in run.measurements:
            writer.append(measurement)
    return path


def test_importing_mlaprof_imports_nothing_heavy(checkout: Path) -> None:
    """Not torch, nor what a table or a figure needs; opening a run imports no torch either."""
    run = checkout / "results/reference/layer-h100/v3.2-prefill.mlaprof"
    code = (
        "import sys, mlaprof\n"
        "print(*[name for name in ('torch', 'triton', 'numpy', 'pydantic', 'matplotlib') if name in sys.modules])\n"
        f"mlaprof.load_run({str(run)!r}).figure_names\n"
        "print(*[name for name in ('torch', 'triton', 'pandas', 'matplotlib.pyplot') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "\n\n"), done.stderr


def test_the_face_offers_what_it_lists_and_nothing_else() -> None:
    for name in mlaprof.__all__:
        assert getattr(mlaprof, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'sweeps'"):
        mlaprof.sweeps  # noqa: B018


def test_a_run_is_found_as_on_the_command_line(fake_runs: ModuleType, tmp_path: Path) -> None:
    run = fake_runs.make_run([fake_runs.timing(fake_runs.point(), 1e-4)])
    stored(run, tmp_path / "mine.mlaprof")
    for name in ("latest", run.manifest.run_id, run.manifest.run_id[:12], tmp_path / "mine.mlaprof"):
        found = mlaprof.load_run(name, tmp_path)
        assert (found.run_id, found.path) == (run.manifest.run_id, tmp_path / "mine.mlaprof")
    with pytest.raises(RunFileError, match="no such run"):
        mlaprof.load_run("gone", tmp_path)


def test_a_run_of_single_kernels_is_refused(checkout: Path) -> None:
    with pytest.raises(RunFileError, match="single kernels"):
        mlaprof.load_run(checkout / "results/reference/kernels-h100.mlaprof")


def test_a_run_shows_what_it_is(h100: mlaprof.LoadedRun, checkout: Path) -> None:
    """In a notebook its name is what is seen first, so an emulated one says so there."""
    assert repr(h100) == f"<mlaprof run {h100.run_id}: {len(h100.cells)} cells on NVIDIA H100 80GB HBM3>"
    assert h100.cells == h100.summary.cells and h100.measurements == h100.run.measurements
    planted = mlaprof.load_run(checkout / "results/reference/planted/base.mlaprof")
    assert repr(planted).endswith(" EMULATED>")


def test_a_table_of_cells_is_the_csv(h100: mlaprof.LoadedRun) -> None:
    pandas = pytest.importorskip("pandas")
    frame = h100.to_pandas()
    header, *rows = csv.reader(io.StringIO(to_csv(h100.summary)))
    assert list(frame.columns) == header
    assert list(frame["key"]) == [row[header.index("key")] for row in rows]
    timed = frame[frame["outcome"] == "ok"]
    assert timed["device_s_median"].tolist() == [cell.device_s.median for cell in h100.cells if cell.device_s]
    assert pandas.api.types.is_float_dtype(timed["device_s_median"])


def test_a_table_of_samples_has_a_row_a_round(fake_runs: ModuleType, tmp_path: Path) -> None:
    """Of every process and twin; nothing of a cell that is incorrect in one of them."""
    pytest.importorskip("pandas")
    base, wrong = fake_runs.point("monolithic_eager"), fake_runs.point("full")
    rows = [
        fake_runs.timing(base, 1e-4, n=10),
        fake_runs.in_process(fake_runs.timing(base, 1e-4, n=12), 1),
        fake_runs.timing(base.model_copy(update={"twin": True}), 1e-4, n=10),
        fake_runs.timing(wrong, 1e-4, n=10),
        fake_runs.ended(wrong, "incorrect", "max_abs").model_copy(update={"process": 1}),
    ]
    run = mlaprof.load_run(stored(fake_runs.make_run(rows), tmp_path / "r.mlaprof"))
    frame = run.to_pandas("samples")
    assert frame.groupby(["key", "process"]).size().to_dict() == {
        (base.key, 0): 10,
        (base.key, 1): 12,
        (f"{base.key}/aa", 0): 10,
    }
    assert frame["twin"].sum() == 10 and not frame["emulated"].any()
    first = frame[(frame["key"] == base.key) & (frame["process"] == 0)]
    assert first["device_s"].tolist() == list(run.measurements[0].timing.device_s)
    assert first["round"].tolist() == list(range(10)) and first["latency_s"].isna().all()
    with pytest.raises(ValueError, match="rows: expected"):
        run.to_pandas("rounds")  # type: ignore[arg-type]


def test_without_pandas_the_error_says_what_to_install(
    h100: mlaprof.LoadedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install pandas .*mlaprof\[notebook\]"):
        h100.to_pandas()


def test_a_comparison_is_that_of_the_command_line(h100: mlaprof.LoadedRun, checkout: Path) -> None:
    ways = {"base_way": "monolithic_eager", "new_way": "split_piecewise"}
    assert h100.compare(h100, **ways) == compare(h100.run, h100.run, **ways)
    base, new = (mlaprof.load_run(checkout / f"results/reference/planted/{name}.mlaprof") for name in ("base", "new"))
    assert base.compare(new, threshold=0.2).base.run_id == base.run_id
    with pytest.raises(MachineError, match="the runs do not compare"):
        h100.compare(base)


def test_figures_are_those_that_plot_writes(h100: mlaprof.LoadedRun, tmp_path: Path) -> None:
    """The same names and the same bytes."""
    written = {path.stem: path for path in write_figures(h100.run, h100.summary, tmp_path) if path.suffix == ".svg"}
    assert list(h100.figure_names) == list(written)
    figure = h100.figure("speedup")
    assert type(figure).__module__ == "matplotlib.figure"
    assert figure.get_axes()
    assert figure is not h100.figure("speedup-prefill-ctx0")  # to be changed at will


def test_a_figure_that_is_not_there_names_those_that_are(h100: mlaprof.LoadedRun) -> None:
    for name in ("speed", "tiles", "speedup-decode-ctx0"):
        with pytest.raises(ValueError, match=r"there are latency-prefill-ctx0, .*speedup-prefill-ctx0"):
            h100.figure(name)


def test_one_kind_of_two_figures_must_be_named_in_full(checkout: Path) -> None:
    run = mlaprof.load_run(checkout / "results/reference/v3.2-tp8-decode/run.mlaprof")
    with pytest.raises(ValueError, match="is of several"):
        run.figure("latency")
    assert run.figure("latency-decode-ctx8192") is not None
