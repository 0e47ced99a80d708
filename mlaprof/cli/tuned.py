"""`mlaprof tuned`: what libraries hold, whether it still holds, and how it travels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlaprof import store
from mlaprof.cli.door import (
    INTERRUPTED,
    NOT_HELD,
    RESULTS,
    SOME_FAILED,
    DeviceOption,
    ResultsDir,
    SharedGpuOption,
    app,
    err,
    out,
)
from mlaprof.cli.tune import LibraryOption
from mlaprof.errors import ConfigError
from mlaprof.machine import environment
from mlaprof.opening import DeviceChoice, device_of, manifest_of, require_gpu_alone
from mlaprof.report.lines import print_line
from mlaprof.report.progress import progress
from mlaprof.report.tuned import print_checks, print_library
from mlaprof.sweep import sweep
from mlaprof.tuning import library
from mlaprof.tuning.check import Check, check_plan, outcomes, to_check
from mlaprof.tuning.serve import RESULTS_FOLDER

tuned = typer.Typer(help="Libraries of tuned tiles: list, verify, export, import.", no_args_is_help=True)
app.add_typer(tuned, name="tuned")

FileArgument = Annotated[Path, typer.Argument(help="One JSON file with entries of any GPU and kernel.")]


@tuned.command("list")
def list_(folder: LibraryOption = None, results: ResultsDir = RESULTS) -> None:
    """Print every entry of a library with its evidence, and of the shipped one behind it."""
    folders = _folders(folder, results)
    found = {each: library.every_file(each) for each in folders}
    print_library(found, out)


@tuned.command()
def verify(
    folder: LibraryOption = None,
    kernel: Annotated[str, typer.Option("--kernel", help="Entries of these kernels alone, e.g. topk.")] = "",
    device: DeviceOption = DeviceChoice.auto,
    shared_gpu: SharedGpuOption = False,
    out_file: Annotated[Path | None, typer.Option("--out", help="Run file of the rounds.")] = None,
    results: ResultsDir = RESULTS,
) -> None:
    """Measure each tuned entry of this GPU beside the default once more: exit 1 where one is slower than the default.

    Entries of another Triton, CUDA or kernel source are measured, too: they serve nothing until they are tuned anew.
    """
    chosen = device_of(device)
    if not shared_gpu:
        require_gpu_alone(chosen)
    entries = [
        entry for each in _folders(folder, results) for found in library.every_file(each).values() for entry in found
    ]
    kernels = [each for each in kernel.split(",") if each]
    checked = to_check(entries, environment.snapshot(), chosen, kernels)
    if not checked:
        print_line("no tuned entry is of this GPU; nothing to verify", out)
        return
    plan = check_plan(checked, chosen)
    manifest = manifest_of("tuned-verify", chosen, "", plan.planned, command=("mlaprof", "tuned", "verify"))
    path = out_file or store.default_path(results, manifest.run_id)
    try:
        with store.create(path, manifest) as writer, progress(len(plan), err) as tell:
            for event in sweep(plan, keep=writer.append):
                tell(event)
    except KeyboardInterrupt:
        print_line(f"interrupted; what was measured is kept. See it with: mlaprof show {path}", err)
        raise typer.Exit(INTERRUPTED) from None
    checks: list[Check] = outcomes(checked, store.load(path).kernels)
    print_checks(checks, out)
    out.print(f"run   {path}", soft_wrap=True, highlight=False)
    if any(each.verdict == "slower" for each in checks):
        raise typer.Exit(NOT_HELD)
    if any(each.verdict == "not measured" for each in checks):
        raise typer.Exit(SOME_FAILED)


@tuned.command("export")
def export_(file: FileArgument, folder: LibraryOption = None, results: ResultsDir = RESULTS) -> None:
    """Write a library, all GPUs and kernels of it, as one file; the shipped one only where --library names it."""
    source = folder or results / RESULTS_FOLDER
    entries = [entry for found in library.every_file(source).values() for entry in found]
    if not entries:
        raise ConfigError("has no entries", where=str(source), hint="name another with --library, or tune first")
    if file.exists():
        raise ConfigError("exists, and is not overwritten", where=str(file), hint="choose another name")
    library.save(file, entries)
    print_line(f"{len(entries)} entries in {file}", out)


@tuned.command("import")
def import_(file: FileArgument, folder: LibraryOption = None, results: ResultsDir = RESULTS) -> None:
    """Merge a file of `tuned export` into a library; its entries take the place of those of the same key."""
    if not file.is_file():
        raise ConfigError("no such file", where=str(file), hint="give a file that `mlaprof tuned export` wrote")
    into, entries = folder or results / RESULTS_FOLDER, library.load(file)
    by_path: dict[Path, list[library.Entry]] = {}
    for entry in entries:
        by_path.setdefault(library.path_of(into, entry.conditions), []).append(entry)
    for path in by_path:
        library.load(path)  # all are read before any is written: a broken one changes nothing
    for path, found in by_path.items():
        library.save(path, found)
    print_line(f"{len(entries)} entries merged into {into}", out)


def _folders(folder: Path | None, results: Path) -> list[Path]:
    if folder is not None and not folder.is_dir():
        raise ConfigError("no such folder", where=str(folder), hint="give the folder of a library")
    return [folder] if folder is not None else [results / RESULTS_FOLDER, library.shipped()]
