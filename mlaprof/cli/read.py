"""`mlaprof show` and `compare`: what stored runs say."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from mlaprof import store
from mlaprof.analysis.compare import FailOn
from mlaprof.analysis.compare import compare as compare_runs
from mlaprof.analysis.differences import refusal
from mlaprof.analysis.summary import summarize
from mlaprof.cli.door import RESULTS, ResultsDir, RunArgument, TableOrJson, app, out
from mlaprof.errors import ConfigError, RunFileError
from mlaprof.report import export
from mlaprof.report.comparison import comparison_json, print_comparison
from mlaprof.report.console import print_summary


class Format(StrEnum):
    table = "table"
    md = "md"
    csv = "csv"
    json = "json"


@app.command()
def show(
    run: RunArgument,
    format: Annotated[Format, typer.Option(help="table for a terminal; md, csv and json go to stdout.")] = Format.table,
    results: ResultsDir = RESULTS,
) -> None:
    """Print a run: its cells with medians and intervals, memory, and what failed."""
    summary = summarize(store.load(store.resolve(run, results)))
    if format is Format.table:
        print_summary(summary, out)
        return
    text = {Format.md: export.to_markdown, Format.csv: export.to_csv, Format.json: export.to_json}
    out.out(text[format](summary).rstrip("\n"), highlight=False)


@app.command()
def compare(
    base: RunArgument,
    new: RunArgument,
    threshold: Annotated[
        float, typer.Option(help="Smallest change that counts, 0.01 is 1 %; the noise floor where that is larger.")
    ] = 0.01,
    fail_on: Annotated[
        FailOn,
        typer.Option(
            help="slower: exit 1 if a cell is slower, newly failed or incorrect. ambiguous: also if one is missing, "
            "and 3 if one is ambiguous. never: only report."
        ),
    ] = FailOn.slower,
    cross_machine: Annotated[
        bool, typer.Option("--cross-machine", help="Compare runs of different GPUs, or of a GPU and a CPU, too.")
    ] = False,
    format: Annotated[TableOrJson, typer.Option(help="table for a terminal; json goes to stdout.")] = TableOrJson.table,
    results: ResultsDir = RESULTS,
) -> None:
    """Judge NEW against BASE, the reference, cell by cell. Exits 4 if they do not compare, else as --fail-on says."""
    if not 0 < threshold < 1:
        raise ConfigError(f"{threshold} is not a ratio", where="--threshold", hint="give a number such as 0.01")
    runs = [store.load(store.resolve(name, results)) for name in (base, new)]
    comparison = compare_runs(runs[0], runs[1], threshold=threshold, cross_machine=cross_machine)
    if format is TableOrJson.json:
        out.out(comparison_json(comparison), highlight=False)
    else:
        print_comparison(comparison, out)
    if comparison.mismatches:
        raise refusal(comparison.mismatches)
    if not comparison.judged:
        raise RunFileError("no cell was timed in both runs", where=new, hint="measure the cells of the base run")
    raise typer.Exit(comparison.exit_code(fail_on))
