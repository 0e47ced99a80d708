"""`mlaprof report` and `bundle`: a run as what goes into a ticket."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlaprof import store
from mlaprof.analysis.compare import Comparison
from mlaprof.analysis.compare import compare as compare_runs
from mlaprof.analysis.differences import refusal
from mlaprof.cli.door import RESULTS, ResultsDir, RunArgument, app, out
from mlaprof.errors import ConfigError
from mlaprof.records import Run
from mlaprof.report.bundle import write_bundle
from mlaprof.report.folder import PAGE, write_report
from mlaprof.runs import found_run, run_file

BaseOption = Annotated[
    str | None, typer.Option("--base", help="A run to compare with: its cells are judged against it.")
]
LayersOption = Annotated[
    int | None, typer.Option("--layers", min=1, help="Layers of the whole model, where its preset does not say.")
]


@app.command()
def report(
    run: RunArgument,
    base: BaseOption = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder; by default the run's id in results/.")
    ] = None,
    layers: LayersOption = None,
    results: ResultsDir = RESULTS,
) -> None:
    """Write a run as one page for a ticket, report.html, with its plots, summary.csv, summary.md and run.json."""
    found = found_run(run, results)
    folder = out_folder or results / f"{found.manifest.run_id}-report"
    write_report(found, folder, comparison=_comparison(base, found, results), layers=layers)
    for name in (PAGE, "summary.md", "summary.csv", "run.json", "plots"):
        out.print(f"{'page' if name == PAGE else 'file'}  {folder / name}", soft_wrap=True, highlight=False)


@app.command()
def bundle(
    run: RunArgument,
    base: BaseOption = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Zip file; by default the run's id in results/.")
    ] = None,
    layers: LayersOption = None,
    results: ResultsDir = RESULTS,
) -> None:
    """Write a run as one zip for a ticket: report, raw samples, study, environment, reproduce.sh and checksums."""
    with run_file(run, results) as file:
        found = store.load(file)
        path = out_file or results / f"{found.manifest.run_id}.zip"
        write_bundle(found, file, path, comparison=_comparison(base, found, results), layers=layers)
    out.print(f"bundle  {path}", soft_wrap=True, highlight=False)
    out.print(f"open it elsewhere with: mlaprof show {path.name}", soft_wrap=True, highlight=False)


def _comparison(base: str | None, new: Run, results: Path) -> Comparison | None:
    """The run beside a base run; None without one. Raises MachineError where the two do not compare."""
    if base is None:
        return None
    before = found_run(base, results)
    for each in (before, new):
        if each.is_of_kernels or each.is_of_tuning:
            raise ConfigError(
                f"{each.manifest.run_id} is no run of the layer",
                where="--base",
                hint="leave out --base, or give sweeps",
            )
    comparison = compare_runs(before, new)
    if comparison.mismatches:
        raise refusal(comparison.mismatches)
    return comparison
