"""`mlaprof buckets`: which sizes to capture for a trace, chosen from a run's times, and measured if asked."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mlaprof import store
from mlaprof.analysis.cells import Summary
from mlaprof.analysis.stored import stored_layers
from mlaprof.analysis.summary import summarize
from mlaprof.cli.door import (
    RESULTS,
    SOME_FAILED,
    DeviceOption,
    ResultsDir,
    RunArgument,
    SharedGpuOption,
    TableOrJson,
    app,
    err,
    out,
)
from mlaprof.cli.measure import measure
from mlaprof.config.load import study_from_resolved
from mlaprof.errors import ConfigError, MachineError, RunFileError
from mlaprof.opening import DeviceChoice, new_run, require_gpu_alone, same_machine
from mlaprof.records import Run
from mlaprof.report.buckets_choice import choice_json, print_check, print_choice
from mlaprof.report.figures.buckets import write_choice_figure
from mlaprof.report.lines import print_line
from mlaprof.sizing.check import Checked, check, strata, study_under
from mlaprof.sizing.choose import Choice, Limits, choose
from mlaprof.sizing.costs import Costs, costs_of
from mlaprof.sizing.engines import ENGINES, Engine, default_sizes, naive_lists
from mlaprof.sizing.lists import MOST_SIZES
from mlaprof.sizing.named import DISTRIBUTIONS, NAMED, requests_of
from mlaprof.sizing.scheduler import Scheduler
from mlaprof.sizing.scheduler import run as schedule
from mlaprof.sizing.steps import Steps
from mlaprof.sizing.tracefile import read_trace
from mlaprof.study import Study

DEFAULT_SIZES = 64  # near the longest list that an engine captures by itself
MOST_BUDGET = 2.0**60
CLOCK_LAYERS = 61  # of DeepSeek-V3.2: how long an iteration lasts where --layers does not say


class ClockChoice(StrEnum):
    step = "step"
    device = "device"


class EngineChoice(StrEnum):
    tensorrt_llm = "tensorrt-llm"
    vllm = "vllm"
    sglang = "sglang"


@app.command()
def buckets(
    run: RunArgument,
    trace: Annotated[
        str,
        typer.Option(
            help="Token counts of steps or requests, CSV or JSONL (docs/buckets.md), or one of "
            f"{', '.join((*NAMED, *DISTRIBUTIONS))}."
        ),
    ],
    memory: Annotated[str | None, typer.Option(help="Most device memory for graphs, e.g. 2GiB or 300MiB.")] = None,
    capture_time: Annotated[str | None, typer.Option(help="Most time to capture, e.g. 30s or 500ms.")] = None,
    max_sizes: Annotated[int, typer.Option(min=1, max=MOST_SIZES, help="Most sizes in the list.")] = DEFAULT_SIZES,
    layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Layers of the model, to scale to; by default those of the run, and 61 for the clock of requests.",
        ),
    ] = None,
    engine: Annotated[EngineChoice | None, typer.Option(help="Print its keys alone; by default all engines'.")] = None,
    way: Annotated[str | None, typer.Option(help="Mode with piecewise graphs, MODE[@BOUNDARY].")] = None,
    context: Annotated[int | None, typer.Option(min=0, help="Context length, where the run has several.")] = None,
    clock: Annotated[
        ClockChoice,
        typer.Option(help="step: what a step takes in service. device: what the GPU needs, the host never waited for."),
    ] = ClockChoice.step,
    max_num_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of requests: most tokens a step; by default what the run measured.")
    ] = None,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Of requests: most that run at once.")] = 256,
    measure_it: Annotated[
        bool, typer.Option("--measure", help="Measure steps under the chosen list; say how far the prediction is off.")
    ] = False,
    device: DeviceOption = DeviceChoice.auto,
    shared_gpu: SharedGpuOption = False,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for the plot; by default the run file's name, of json none.")
    ] = None,
    format: Annotated[TableOrJson, typer.Option(help="table for a terminal; json goes to stdout.")] = TableOrJson.table,
    results: ResultsDir = RESULTS,
) -> None:
    """Choose the capture sizes with the least expected step time on a trace, from the times of RUN."""
    limits = Limits(_bytes(memory), _seconds(capture_time), max_sizes)
    path = store.resolve(run, results)
    stored = store.load_layers(path)
    summary = summarize(stored)
    depth = stored_layers(stored.manifest.study_yaml)
    costs = costs_of(summary, measured_layers=depth, layers=layers, way=way, context_len=context, clock=clock.value)
    steps = _steps(trace, costs, max_num_tokens, max_batch_size, layers or CLOCK_LAYERS)
    others = {name: default_sizes(name) for name in ENGINES} | naive_lists(costs.largest)
    choice = choose(steps, costs, limits, others)
    checked = _measured(choice, stored, summary, device, shared_gpu, results, context) if measure_it else None
    engines: Sequence[Engine] = (engine.value,) if engine else ENGINES
    if format is TableOrJson.json:
        out.out(choice_json(choice, summary, engines, checked), highlight=False)
    else:
        print_choice(choice, summary, engines, out)
        if checked:
            print_check(checked, out)
    if out_folder or format is TableOrJson.table:
        folder = out_folder or (path.with_suffix("") if path.suffix else path.with_name(f"{path.name}-plots"))
        _draw(choice, summary, checked, folder)
    if checked and checked.failed:
        raise typer.Exit(SOME_FAILED)


def _steps(trace: str, costs: Costs, max_num_tokens: int | None, max_batch_size: int, clock_layers: int) -> Steps:
    """The steps of a file or of a trace that goes by name; a file of that name comes first."""
    most = max_num_tokens or costs.largest
    if most > costs.largest:
        hint = f"give at most {costs.largest}, or sweep up to {most} tokens"
        raise ConfigError(f"{most}: the run measured up to {costs.largest} tokens", where="--max-num-tokens", hint=hint)
    path = Path(trace)
    if _is_there(path):
        found = read_trace(path)
    elif trace in DISTRIBUTIONS:
        found = DISTRIBUTIONS[trace](most)
    elif trace in NAMED:
        found = requests_of(NAMED[trace])
    else:
        known = ", ".join((*NAMED, *DISTRIBUTIONS))
        raise ConfigError("no such file, and no trace of that name", where=trace[:200], hint=f"the names are {known}")
    if isinstance(found, Steps):
        return found
    scheduler = Scheduler(most, min(max_batch_size, max(1, most - 1)), clock_layers)
    return schedule(path.name, found, scheduler, costs.eager.scaled(1 / costs.layers))


def _measured(
    choice: Choice,
    stored: Run,
    summary: Summary,
    device: DeviceChoice,
    shared_gpu: bool,
    results: Path,
    context: int | None,
) -> Checked:
    """Run steps that stand for the trace under the chosen list, in a run of their own."""
    if not choice.chosen.sizes:
        raise ConfigError("the best list captures nothing", where="--measure", hint="leave out --measure")
    study = _study_of(stored, device)
    asked = strata(choice.steps, choice.chosen.sizes)
    lengths = {cell.context_len for cell in summary.cells if cell.phase != "decode" and cell.way == choice.costs.way}
    study = study_under(
        study,
        choice.chosen.sizes,
        [each.num_tokens for each in asked],
        choice.costs.way,
        min(lengths) if context is None else context,
    )
    opening = new_run(study, device, None, results, command=("mlaprof", *sys.argv[1:]))
    if not shared_gpu:
        require_gpu_alone(opening.manifest.device)
    measure(opening.plan, opening.writer())
    print_line(f"run   {opening.path}", err)
    try:
        return check(choice.chosen, asked, choice.costs, summarize(store.load(opening.path)))
    except ValueError as error:
        hint = f"`mlaprof show {opening.path}` says why"
        raise RunFileError("no step under the chosen list was timed", where=str(opening.path), hint=hint) from error


def _study_of(stored: Run, device: DeviceChoice) -> Study:
    """The run's study, to go on with here. Raises MachineError on another machine, RunFileError on an older study."""
    try:
        same_machine(stored.manifest, device)
    except MachineError as error:
        raise MachineError(error.message, where="--measure", hint="measure there, or leave out --measure") from error
    try:
        return study_from_resolved(stored.manifest.study_yaml)
    except ConfigError as error:
        hint = "sweep it again, then choose from that run"
        raise RunFileError("a study of an older mlaprof", where=stored.manifest.run_id, hint=hint) from error


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file system takes
        return False


def _draw(choice: Choice, summary: Summary, checked: Checked | None, folder: Path) -> None:
    try:
        written = write_choice_figure(choice, summary, checked, folder)
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", where=str(folder), hint="name one with --out") from error
    for path in written:
        if path.suffix == ".png":
            print_line(f"plot  {path}", err)


def _bytes(text: str | None) -> int | None:
    units = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
    value = _budget(text, units, "--memory", "write e.g. 2GiB or 300MiB")
    return None if value is None else int(value)


def _seconds(text: str | None) -> float | None:
    units = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0}
    return _budget(text, units, "--capture-time", "write e.g. 30s or 500ms")


def _budget(text: str | None, units: dict[str, float] | dict[str, int], option: str, hint: str) -> float | None:
    """The budget in base units. Raises ConfigError on anything but a positive number with one of the units."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]*)", text.strip().lower())
    value = float(match[1]) * units.get(match[2], 0) if match else 0.0
    if not 0 < value <= MOST_BUDGET:
        raise ConfigError(f"{text[:40]!r} is not a budget", where=option, hint=hint)
    return value
