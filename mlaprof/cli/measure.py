"""`mlaprof sweep`, `graph` and `plot`: measure, and draw what was measured."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer

from mlaprof import store
from mlaprof.analysis.cells import Summary
from mlaprof.analysis.running import Running
from mlaprof.analysis.summary import summarize
from mlaprof.cli.cluster import EngineChoice, EngineOption, GpuKindOption, SchedulerOption, members_of
from mlaprof.cli.door import (
    INTERRUPTED,
    OVER_BUDGET,
    RESULTS,
    SOME_FAILED,
    AxisOption,
    DeviceOption,
    GpusOption,
    ResultsDir,
    RunArgument,
    SettingOption,
    SharedGpuOption,
    TableOrJson,
    app,
    err,
    out,
    part_of,
    preset_of,
    require_ranks,
    study_of,
)
from mlaprof.engine.cluster import Cluster
from mlaprof.engine.local import Engine, Lanes, in_turn
from mlaprof.errors import ClusterError, ConfigError
from mlaprof.machine import checks
from mlaprof.machine.seats import Seat, seats
from mlaprof.opening import DeviceChoice, device_of, new_run, require_gpu_alone, resumed_run
from mlaprof.plan import Plan, dispatch_plan, inspection
from mlaprof.records import AnyMeasurement, Device, Measurement, Run
from mlaprof.report import export, listing
from mlaprof.report.buckets import print_buckets
from mlaprof.report.console import print_summary
from mlaprof.report.events import EventLog
from mlaprof.report.figures.write import write_figures
from mlaprof.report.lines import print_line
from mlaprof.report.partition import partitions_json, print_partitions
from mlaprof.report.progress import progress
from mlaprof.study import Preset, Study
from mlaprof.sweep import sweep as run_sweep
from mlaprof.tuning.serve import rules_line


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
    force: Annotated[
        bool,
        typer.Option("--force", help="With --resume: go on although code or environment changed; the run will say so."),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look: one process, few rounds; no gate should rest on it.")
    ] = False,
    rigorous: Annotated[
        bool, typer.Option("--rigorous", help="For a gate: five processes, at least 100 rounds, steady clocks.")
    ] = False,
    part: Annotated[
        str, typer.Option("--part", help="Measure every N-th job alone: 2/8; `mlaprof merge` joins.")
    ] = "1/1",
    gpus: GpusOption = None,
    engine: EngineOption = EngineChoice.local,
    scheduler: SchedulerOption = None,
    gpu_kind: GpuKindOption = None,
    shared_gpu: SharedGpuOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and measure nothing.")] = False,
    json_events: Annotated[
        Path | None,
        typer.Option("--json-events", help="Append one JSON line an event to this file; /dev/fd/N is a descriptor."),
    ] = None,
    results: ResultsDir = RESULTS,
) -> None:
    """Measure every cell of CONFIG, store the run, print its table and draw its plots."""
    preset, share = preset_of(quick, rigorous), part_of(part)
    if resume is None and force:
        raise ConfigError("is of a run to go on with", where="--force", hint="add --resume RUN, or leave it out")
    with members_of(engine, scheduler, gpu_kind, gpus) as members:
        hosts = members.hosts() if members else ()
        if resume is None:
            study = study_of(config, axis, setting, preset)
            if members is None:
                require_ranks(study, device, config, setting)
            command = ("mlaprof", *sys.argv[1:])
            opening = new_run(study, device, out_file, results, command=command, part=share, hosts=hosts)
        else:
            beside = _study_beside_a_run(config, axis, setting, preset, out_file)
            opening = resumed_run(
                resume, results, device, study=beside, config=config, force=force, part=share, hosts=hosts
            )
        plan, manifest = opening.plan, opening.manifest
        if dry_run:
            listing.print_plan(plan, out)
        if plan.buckets is not None:
            print_buckets(plan.buckets, out if dry_run else err)
        if dry_run:
            return
        if members is None:
            places = _seats(gpus, plan, manifest.device)
            if plan.jobs and not shared_gpu:
                require_gpu_alone(manifest.device, places)
            where: Engine = Lanes(places) if places else in_turn
            lines = tuple(map(str, places))
        else:
            _require_single_gpus(plan, "--engine dask")
            members.admit(manifest, shared_gpu=shared_gpu)
            where, lines = Cluster(members), tuple(map(members.line, members.usable()))
        for line in lines:
            print_line(f"GPU {line}", err)
        for line in rules_line(manifest.tuned):
            print_line(line, err)
        events = EventLog(json_events)  # refused before a run file is made
        writer = opening.writer()
        listing.print_warnings(checks.warnings(manifest.environment, manifest.device), err)
        measure(plan, writer, events, where)
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
    shared_gpu: SharedGpuOption = False,
    format: Annotated[TableOrJson, typer.Option(help="table for a terminal; json goes to stdout.")] = TableOrJson.table,
) -> None:
    """Print how each mode cuts CONFIG's step: its segments, what is captured, what is launched. Stores nothing."""
    study, chosen = study_of(config, axis, setting), device_of(device)
    require_ranks(study, device, config, setting)
    plan = inspection(study, chosen, tokens)
    if dispatch_tax:
        if not shared_gpu:
            require_gpu_alone(chosen)
        plan = replace(plan, jobs=(*plan.jobs, *dispatch_plan(study, chosen, tokens).jobs))
    kept: list[AnyMeasurement] = []
    with progress(len(plan), err) as tell:
        for event in run_sweep(plan, keep=kept.append):
            tell(event)
    found = [each for each in kept if isinstance(each, Measurement)]
    if format is TableOrJson.json:
        out.out(partitions_json(found).rstrip("\n"), highlight=False)
    else:
        print_partitions(found, out)
    raise typer.Exit(_verdict(found))


@app.command()
def plot(
    run: RunArgument,
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder; by default the run file's name.")] = None,
    results: ResultsDir = RESULTS,
) -> None:
    """Draw a run's figures as PNG and SVG, and write its summary.json beside them."""
    path = store.resolve(run, results)
    loaded = store.load_layers(path)
    _draw(loaded, summarize(loaded), path, out_folder)


def _study_beside_a_run(
    config: Path | None,
    axis: Iterable[str] | None,
    setting: list[str] | None,
    preset: Preset,
    out_file: Path | None,
) -> Study | None:
    """The study given beside --resume, None without; what would change the run is refused."""
    if out_file is not None:
        raise ConfigError("a resumed run stays in its file", where="--out", hint="leave out --out")
    if config is None and (axis or setting or preset != "standard"):
        hint = "leave out -a, --set, --quick and --rigorous"
        raise ConfigError("a resumed run keeps its axes and settings", where="--resume", hint=hint)
    return None if config is None else study_of(config, axis, setting, preset)


def _verdict(measurements: Iterable[Measurement], summary: Summary | None = None) -> int:
    """The exit code of what was measured; a failure says more than a budget."""
    if any(found.outcome.status in ("failed", "incorrect") for found in measurements):
        return SOME_FAILED
    if summary is not None and any(cell.not_captured for cell in summary.cells):
        return SOME_FAILED
    return OVER_BUDGET if summary is not None and summary.over_budget else 0


def _seats(gpus: str | None, plan: Plan, device: Device) -> tuple[Seat, ...]:
    """The seats that --gpus asks for. Raises ConfigError where a worker of a single GPU would want several."""
    if not gpus:
        return ()
    _require_single_gpus(plan, "--gpus")
    return seats(gpus, device)


def _require_single_gpus(plan: Plan, where: str) -> None:
    """Raise ConfigError where a worker wants several GPUs, and `where` gives it one."""
    world = max((job.layer.tp.world for job in plan.jobs), default=1)
    if world > 1:
        wrong = f"gives every worker one GPU, and tp.world wants {world} in each"
        raise ConfigError(wrong, where=where, hint="leave it out; CUDA_VISIBLE_DEVICES says which GPUs ranks take")


def measure(plan: Plan, writer: store.RunWriter, events: EventLog | None = None, engine: Engine = in_turn) -> None:
    """Measure plan into an open run file, and tell of it on stderr and in events; an interrupt ends the command."""
    events = events or EventLog(None)
    begun = store.load(writer.path)
    running = Running(plan.planned, known=begun.measurements, begin_s=monotonic())
    try:
        with writer, events, progress(len(plan), err) as tell:
            events.begin(begun.manifest, writer.path, len(plan))
            for event in run_sweep(plan, engine=engine, keep=writer.append):
                cell = running.take(event, monotonic()) if isinstance(event, Measurement) else None
                events.tell(event, cell)
                tell(event, cell)
        if events.trouble:
            print_line(events.trouble, err)
    except ClusterError as error:
        error.message += ", what was measured is kept"
        error.hint += f", then go on with: mlaprof sweep --resume {writer.path} and the same --engine and --scheduler"
        raise
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
