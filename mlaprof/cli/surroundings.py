"""`mlaprof list` and `doctor`: what there is, and what this machine is."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mlaprof import store
from mlaprof.analysis.noise import noise_of
from mlaprof.cli.door import (
    NOT_HELD,
    RESULTS,
    SOME_FAILED,
    DeviceOption,
    ResultsDir,
    SharedGpuOption,
    TableOrJson,
    app,
    err,
    out,
)
from mlaprof.errors import ConfigError
from mlaprof.machine import checks, environment
from mlaprof.noise_plan import LEAST_ROUNDS, MOST_ROUNDS, noise_plan
from mlaprof.opening import DeviceChoice, device_of, require_gpu_alone
from mlaprof.records import AnyMeasurement, Device, Measurement
from mlaprof.report import listing
from mlaprof.report.noise import Made, noise_json, print_noise
from mlaprof.report.progress import progress
from mlaprof.sweep import sweep


class Listing(StrEnum):
    presets = "presets"
    modes = "modes"
    boundaries = "boundaries"
    kernels = "kernels"
    runs = "runs"


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
def doctor(
    noise: Annotated[
        bool,
        typer.Option(
            "--noise",
            help="Time steps that do not change, and steps slowed by a known spin, and print what verdicts make of "
            "them: minutes. Exits 1 where a GPU does not hold what is promised.",
        ),
    ] = False,
    device: DeviceOption = DeviceChoice.auto,
    processes: Annotated[
        int | None, typer.Option(min=1, help="With --noise: fresh processes; by default 12 on a GPU, 6 on a CPU.")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=LEAST_ROUNDS, max=MOST_ROUNDS, help="With --noise: of each process; by default 60."),
    ] = None,
    shared_gpu: SharedGpuOption = False,
    out_file: Annotated[Path | None, typer.Option("--out", help="With --noise: write its JSON here, too.")] = None,
    format: Annotated[TableOrJson, typer.Option(help="table for a terminal; json goes to stdout.")] = TableOrJson.table,
) -> None:
    """Print what this machine is and what on it speaks against a number; with --noise, measure what it can tell apart.

    Changes nothing, and stores nothing but --out.
    """
    if noise:
        _self_test(device_of(device), processes, rounds, shared_gpu, out_file, format)
    for name, given in (("--processes", processes), ("--rounds", rounds), ("--out", out_file)):
        if given is not None:
            raise ConfigError("is of the self-test", where=name, hint="add --noise")
    if format is TableOrJson.json:
        raise ConfigError("is of the self-test", where="--format", hint="add --noise")
    found = environment.snapshot()
    listing.print_environment(found, checks.warnings(found, device_of(device)), out)


def _self_test(
    device: Device,
    processes: int | None,
    rounds: int | None,
    shared_gpu: bool,
    out_file: Path | None,
    format: TableOrJson,
) -> NoReturn:
    """Measure, print and exit."""
    if out_file is not None and not out_file.parent.is_dir():
        raise ConfigError("no such folder", where=str(out_file.parent), hint="make it first")
    if not shared_gpu:
        require_gpu_alone(device)
    made = Made(
        command=("mlaprof", *sys.argv[1:]),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        device=device,
        environment=environment.snapshot(),
    )
    listing.print_warnings(checks.warnings(made.environment, device), err)
    plan = noise_plan(device, processes=processes, rounds=rounds)
    kept: list[AnyMeasurement] = []
    with progress(len(plan), err) as tell:
        for event in sweep(plan, keep=kept.append):
            tell(event)
    measured = [each for each in kept if isinstance(each, Measurement)]
    found = noise_of(measured)
    if found is None:
        raise typer.Exit(SOME_FAILED)  # the lines of progress say why
    text = noise_json(found, made, measured)
    if format is TableOrJson.json:
        out.out(text, highlight=False)
    else:
        print_noise(found, made, out)
    if out_file is not None:
        _write(out_file, text)
    if any(not each.outcome.usable for each in measured):
        raise typer.Exit(SOME_FAILED)
    # The emulation promises nothing.
    raise typer.Exit(0 if found.holds or made.emulated else NOT_HELD)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", where=str(path), hint="name another file") from error
