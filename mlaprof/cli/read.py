"""`mlaprof show` and `compare`: what stored runs say."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mlaprof import store
from mlaprof.analysis.compare import Comparison, FailOn
from mlaprof.analysis.compare import compare as compare_runs
from mlaprof.analysis.differences import refusal
from mlaprof.analysis.kernels import summarize_kernels
from mlaprof.analysis.summary import summarize
from mlaprof.cli.door import RESULTS, ResultsDir, RunArgument, SharedGpuOption, TableOrJson, app, out
from mlaprof.cli.measure import measure
from mlaprof.confirm import confirmation, confirmed
from mlaprof.errors import ConfigError, RunFileError
from mlaprof.opening import require_gpu_alone
from mlaprof.records import Run
from mlaprof.report import export
from mlaprof.report.comparison import comparison_json, print_comparison
from mlaprof.report.console import print_summary
from mlaprof.report.kernels import kernels_csv, kernels_json, kernels_markdown, print_kernels
from mlaprof.report.tuning import evaluations_csv, print_tuning, tuning_json, tuning_markdown
from mlaprof.tuning.summary import summarize_tuning

RunOrWay = Annotated[str, typer.Argument(help="A run as for show, or one way of it: RUN:MODE[@BOUNDARY].")]


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
    found = store.load(store.resolve(run, results))
    if found.is_of_kernels:
        _show_kernels(found, format)
        return
    if found.is_of_tuning:
        _show_tuning(found, format)
        return
    summary = summarize(found)
    if format is Format.table:
        print_summary(summary, out)
        return
    text = {Format.md: export.to_markdown, Format.csv: export.to_csv, Format.json: export.to_json}
    out.out(text[format](summary).rstrip("\n"), highlight=False)


def _show_kernels(run: Run, format: Format) -> None:
    summary = summarize_kernels(run)
    if format is Format.table:
        print_kernels(summary, run.manifest, out)
        return
    text = {
        Format.md: lambda: kernels_markdown(summary, run.manifest),
        Format.csv: lambda: kernels_csv(summary),
        Format.json: lambda: kernels_json(summary, run.manifest),
    }
    out.out(text[format]().rstrip("\n"), highlight=False)


def _show_tuning(run: Run, format: Format) -> None:
    summaries = summarize_tuning(run)
    if format is Format.table:
        print_tuning(summaries, run.manifest, out)
        return
    text = {
        Format.md: lambda: tuning_markdown(summaries, run.manifest),
        Format.csv: lambda: evaluations_csv(run.kernels),
        Format.json: lambda: tuning_json(summaries, run.manifest),
    }
    out.out(text[format]().rstrip("\n"), highlight=False)


@app.command()
def compare(
    base: RunOrWay,
    new: RunOrWay,
    threshold: Annotated[
        float,
        typer.Option(
            help="Smallest change that counts, 0.01 is 1 %; the noise floor where that is larger. A change of just "
            "this size is on the line, so ambiguous: to find 1 % ask for 0.005."
        ),
    ] = 0.01,
    fail_on: Annotated[
        FailOn,
        typer.Option(
            help="slower: exit 1 if a cell is slower, newly failed or incorrect. ambiguous: also if one is missing, "
            "and 3 if one is ambiguous or throttled. never: only report."
        ),
    ] = FailOn.slower,
    confirm: Annotated[
        bool,
        typer.Option(
            "--confirm", help="Measure what is slower once more, here and now, and fail only if it is slower again."
        ),
    ] = False,
    shared_gpu: SharedGpuOption = False,
    cross_machine: Annotated[
        bool, typer.Option("--cross-machine", help="Compare runs of different GPUs, or of a GPU and a CPU, too.")
    ] = False,
    format: Annotated[TableOrJson, typer.Option(help="table for a terminal; json goes to stdout.")] = TableOrJson.table,
    results: ResultsDir = RESULTS,
) -> None:
    """Judge NEW against BASE, the reference, cell by cell. Exits 4 if they do not compare, else as --fail-on says.

    RUN:WAY is one way of a run, e.g. latest:split_piecewise, latest:breakable@logits, or latest:monolithic_eager/aa,
    the second timing of the baseline; two ways of one run are compared round by round.
    """
    if not 0 < threshold < 1:
        raise ConfigError(f"{threshold} is not a ratio", where="--threshold", hint="give a number such as 0.01")
    (base_name, base_way), (new_name, new_way) = (_run_and_way(name) for name in (base, new))
    if (base_way is None) != (new_way is None):
        raise ConfigError(
            "one way against a whole run", where=f"{base} {new}", hint="give a way behind both runs, RUN:WAY, or none"
        )
    before, after = (store.load_layers(store.resolve(name, results)) for name in (base_name, new_name))
    comparison = compare_runs(
        before, after, base_way=base_way, new_way=new_way, threshold=threshold, cross_machine=cross_machine
    )
    if confirm and not comparison.mismatches:
        comparison = _confirmed(comparison, before, after, results, shared_gpu)
    if format is TableOrJson.json:
        out.out(comparison_json(comparison), highlight=False)
    else:
        print_comparison(comparison, out)
    if comparison.mismatches:
        raise refusal(comparison.mismatches)
    if not comparison.judged:
        raise RunFileError("no cell was timed in both runs", where=new, hint="measure the cells of the base run")
    raise typer.Exit(comparison.exit_code(fail_on))


def _run_and_way(text: str) -> tuple[str, str | None]:
    """`latest:full` apart; a file whose name has a colon is that file."""
    name, colon, way = text.rpartition(":")
    return (name, way) if colon and not Path(text).is_file() else (text, None)


def _confirmed(comparison: Comparison, base: Run, new: Run, results: Path, shared_gpu: bool) -> Comparison:
    """The comparison with what it finds SLOWER measured once more, in a run of its own."""
    opening = confirmation(comparison, new, results, command=("mlaprof", *sys.argv[1:]))
    if opening is None:
        return comparison
    if not shared_gpu:
        require_gpu_alone(opening.manifest.device)
    measure(opening.plan, opening.writer())
    return confirmed(comparison, base, new, store.load(opening.path))
