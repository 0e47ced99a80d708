"""The door: parse, call, print, and the one exit policy.

0 ok, 1 regression or broken budget, 2 usage or config error, 3 ambiguous (with --fail-on ambiguous),
4 environment mismatch, 5 some cells failed or sizes were not captured, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from mlaprof import __version__, store
from mlaprof.analysis.cells import Summary
from mlaprof.analysis.compare import FailOn
from mlaprof.analysis.compare import compare as compare_runs
from mlaprof.analysis.differences import refusal
from mlaprof.analysis.summary import summarize
from mlaprof.config.load import load_study
from mlaprof.errors import ConfigError, MlaprofError, RunFileError
from mlaprof.machine import checks, environment
from mlaprof.opening import DeviceChoice, device_of, new_run, resumed_run
from mlaprof.plan import Plan, dispatch_plan, inspection
from mlaprof.records import Measurement, Run
from mlaprof.report import export, listing
from mlaprof.report.buckets import print_buckets
from mlaprof.report.comparison import comparison_json, print_comparison
from mlaprof.report.console import print_summary
from mlaprof.report.figures.write import write_figures
from mlaprof.report.lines import print_error, print_line
from mlaprof.report.partition import partitions_json, print_partitions
from mlaprof.report.progress import progress
from mlaprof.study import Study
from mlaprof.sweep import sweep as run_sweep

OVER_BUDGET, SOME_FAILED, INTERRUPTED = 1, 5, 130  # errors.py and Comparison.exit_code hold the others
READER_LEFT = 141  # what a shell reports for a program whose output nobody reads any more


class Screen(Console):
    def on_broken_pipe(self) -> None:
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(READER_LEFT) from None  # Rich says 1, which means a regression here


app = typer.Typer(
    help="Profile the split MLA-DSA attention layer across CUDA-graph capture modes.\n\n"
    "Exit codes: 0 ok, 1 regression or broken budget, 2 usage or config error, 3 ambiguous "
    "(with --fail-on ambiguous), 4 environment mismatch, 5 some cells failed or sizes were not captured, "
    "130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out, err = Screen(), Screen(stderr=True)

ResultsDir = Annotated[Path, typer.Option("--results", help="Folder that runs land in.")]
RunArgument = Annotated[str, typer.Argument(help="A run file, a run id or the beginning of one, or `latest`.")]
AxisOption = Annotated[list[str] | None, typer.Option("-a", "--axis", help="Replace an axis: num_tokens=1,8,64.")]
SettingOption = Annotated[list[str] | None, typer.Option("--set", help="Change a key: measure.min_samples=100.")]
DeviceOption = Annotated[DeviceChoice, typer.Option(help="auto takes the GPU where there is one.")]
RESULTS = Path("results")


class TableOrJson(StrEnum):
    table = "table"
    json = "json"


class Format(StrEnum):
    table = "table"
    md = "md"
    csv = "csv"
    json = "json"


class Listing(StrEnum):
    presets = "presets"
    modes = "modes"
    boundaries = "boundaries"
    kernels = "kernels"
    runs = "runs"


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"mlaprof {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def mlaprof(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """What every command shares."""


@app.command()
def sweep(
    config: Annotated[Path | None, typer.Argument(help="The study, a YAML file; not needed with --resume.")] = None,
    axis: AxisOption = None,
    setting: SettingOption = None,
    device: DeviceOption = DeviceChoice.auto,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Run file; by default results/<run id>.mlaprof.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with a run: measure what is not recorded, and what failed, again.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and measure nothing.")] = False,
    results: ResultsDir = RESULTS,
) -> None:
    """Measure every cell of CONFIG, store the run, print its table and draw its plots."""
    if resume is None:
        opening = new_run(_study(config, axis, setting), device, out_file, results, command=("mlaprof", *sys.argv[1:]))
    else:
        study = _study_beside_a_run(config, axis, setting, out_file)
        opening = resumed_run(resume, results, device, study=study, config=config)
    plan, manifest = opening.plan, opening.manifest
    if dry_run:
        listing.print_plan(plan, out)
    if plan.buckets is not None:
        print_buckets(plan.buckets, out if dry_run else err)
    if dry_run:
        return
    writer = opening.writer()
    listing.print_warnings(checks.warnings(manifest.environment, manifest.device), err)
    _measure(plan, writer)
    run = store.load(opening.path)
    summary = summarize(run)
    print_summary(summary, out)
    _draw(run, summary, opening.path, None)
    raise typer.Exit(_verdict(run.measurements, summary))


@app.command()
def graph(
    config: Annotated[Path | None, typer.Argument(help="The study, a YAML file.")] = None,
    axis: AxisOption = None,
    setting: SettingOption = None,
    device: DeviceOption = DeviceChoice.auto,
    tokens: Annotated[int | None, typer.Option(min=1, help="The size to look at; by default the largest.")] = None,
    dispatch_tax: Annotated[
        bool, typer.Option("--dispatch-tax", help="Time what calling an operator costs the host, too.")
    ] = False,
    format: Annotated[TableOrJson, typer.Option(help="table for a terminal; json goes to stdout.")] = TableOrJson.table,
) -> None:
    """Print how each mode cuts CONFIG's step: its segments, what is captured, what is launched. Stores nothing."""
    study, chosen = _study(config, axis, setting), device_of(device)
    plan = inspection(study, chosen, tokens)
    if dispatch_tax:
        plan = replace(plan, jobs=(*plan.jobs, *dispatch_plan(study, chosen, tokens).jobs))
    found: list[Measurement] = []
    with progress(len(plan), err) as tell:
        for event in run_sweep(plan, keep=found.append):
            tell(event)
    if format is TableOrJson.json:
        out.out(partitions_json(found).rstrip("\n"), highlight=False)
    else:
        print_partitions(found, out)
    raise typer.Exit(_verdict(found))


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


@app.command()
def plot(
    run: RunArgument,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder; by default the run file's name.")] = None,
    results: ResultsDir = RESULTS,
) -> None:
    """Draw a run's figures as PNG and SVG, and write its summary.json beside them."""
    path = store.resolve(run, results)
    loaded = store.load(path)
    _draw(loaded, summarize(loaded), path, out_folder)


@app.command("list")
def list_(what: Annotated[Listing, typer.Argument(help="What to list.")], results: ResultsDir = RESULTS) -> None:
    """List presets, capture modes, their boundaries, kernels with their tiles, or the runs there are."""
    match what:
        case Listing.presets:
            listing.print_presets(out)
        case Listing.modes:
            listing.print_modes(out)
        case Listing.boundaries:
            listing.print_boundaries(out)
        case Listing.kernels:
            listing.print_kernels(out)
        case Listing.runs:
            listing.print_runs(store.list_runs(results), out)


@app.command()
def doctor() -> None:
    """Print what this machine is and what on it speaks against a number. Changes nothing."""
    found = environment.snapshot()
    listing.print_environment(found, checks.warnings(found, device_of(DeviceChoice.auto)), out)


def _study(config: Path | None, axis: Iterable[str] | None, setting: list[str] | None) -> Study:
    if config is None:
        raise ConfigError("no study given", where="CONFIG", hint="name a YAML file, e.g. configs/quickstart.yaml")
    return load_study(config, axes=_axes(axis), settings=setting or ())


def _axes(given: Iterable[str] | None) -> dict[str, str]:
    axes: dict[str, str] = {}
    for text in given or ():
        name, equals, values = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not axis=values", where="-a", hint="e.g. -a num_tokens=1,8,64")
        if name in axes:
            raise ConfigError(f"{name} is given twice", where="-a", hint="give all its values in one -a")
        axes[name] = values
    return axes


def _study_beside_a_run(
    config: Path | None, axis: Iterable[str] | None, setting: list[str] | None, out_file: Path | None
) -> Study | None:
    """The study given beside --resume, None without; what would change the run is refused."""
    if out_file is not None:
        raise ConfigError("a resumed run stays in its file", where="--out", hint="leave out --out")
    if config is None and (axis or setting):
        raise ConfigError("a resumed run keeps its axes and settings", where="--resume", hint="leave out -a and --set")
    return None if config is None else _study(config, axis, setting)


def _verdict(measurements: Iterable[Measurement], summary: Summary | None = None) -> int:
    """The exit code of what was measured; a failure says more than a budget."""
    if any(found.outcome.status in ("failed", "incorrect") for found in measurements):
        return SOME_FAILED
    if summary is not None and any(cell.not_captured for cell in summary.cells):
        return SOME_FAILED
    return OVER_BUDGET if summary is not None and summary.over_budget else 0


def _measure(plan: Plan, writer: store.RunWriter) -> None:
    try:
        with writer, progress(len(plan), err) as tell:
            for event in run_sweep(plan, keep=writer.append):
                tell(event)
    except KeyboardInterrupt:
        print_line(f"interrupted; what was measured is kept. Go on with: mlaprof sweep --resume {writer.path}", err)
        raise typer.Exit(INTERRUPTED) from None


def _draw(run: Run, summary: Summary, path: Path, folder: Path | None) -> None:
    folder = folder or (path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-plots"))
    try:
        written = write_figures(run, summary, folder)
        text = folder / "summary.json"
        text.write_text(export.summary_json(run, summary) + "\n")
    except OSError as error:
        raise ConfigError(
            f"cannot write plots: {error.strerror}", where=str(folder), hint=f"mlaprof plot {path} --out FOLDER"
        ) from error
    out.print(f"run   {path}", soft_wrap=True, highlight=False)
    for each in (text, *(each for each in written if each.suffix == ".png")):
        out.print(f"plot  {each}" if each.suffix == ".png" else f"json  {each}", soft_wrap=True, highlight=False)


def main() -> NoReturn:
    """Run the command line; errors that a user can mend are one line."""
    try:
        app()
    except MlaprofError as error:
        print_error(error, err)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    raise SystemExit(0)
