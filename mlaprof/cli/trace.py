"""`mlaprof trace`: one cell of a run once more, as a timeline."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mlaprof import store
from mlaprof.cli.door import RESULTS, SOME_FAILED, ResultsDir, RunArgument, SharedGpuOption, app, err, out
from mlaprof.errors import ConfigError
from mlaprof.machine import environment
from mlaprof.opening import require_gpu_alone
from mlaprof.records import AnyMeasurement, Environment, Manifest
from mlaprof.report.chrome_trace import chrome_trace
from mlaprof.report.lines import print_line
from mlaprof.report.progress import progress
from mlaprof.sweep import sweep
from mlaprof.trace import Retrace, retrace
from mlaprof.traces import TraceMeasurement


@app.command()
def trace(
    run: RunArgument,
    key: Annotated[str, typer.Argument(help="The key of a cell, as `show --format csv` lists them.")],
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="Trace file, not there yet; by default in the folder of the run's plots."),
    ] = None,
    shared_gpu: SharedGpuOption = False,
    results: ResultsDir = RESULTS,
) -> None:
    """Run one cell of RUN again and write one warm step of it as a trace that Perfetto opens (ui.perfetto.dev).

    Segments, graph launches, eager operators and kernels by name; emulated on a CPU where the run was, and labelled so.
    """
    path = store.resolve(run, results)
    manifest = store.load_layers(path).manifest
    here = environment.snapshot()
    found = retrace(manifest, key, here)
    if out_file is not None and out_file.exists():
        raise ConfigError("exists, and is not overwritten", where=str(out_file), hint="choose another --out")
    if not shared_gpu:
        require_gpu_alone(manifest.device)
    if found.differs:
        names = ", ".join(each.name for each in found.differs)
        print_line(f"not what the run was measured with: {names}; the trace says what was and is", err)
    kept: list[AnyMeasurement] = []
    with progress(len(found.plan), err) as tell:
        for event in sweep(found.plan, keep=kept.append):
            tell(event)
    traced = [each for each in kept if isinstance(each, TraceMeasurement) and each.outcome.usable]
    if not traced:
        raise typer.Exit(SOME_FAILED)  # the line of progress says why
    into = out_file or _default_path(path, key)
    _write(into, chrome_trace(traced[0], _about(manifest, here, found)))
    out.print(f"trace {into}", soft_wrap=True, highlight=False)


def _about(manifest: Manifest, here: Environment, found: Retrace) -> dict[str, object]:
    return {
        "run_id": manifest.run_id,
        "command": " ".join(("mlaprof", *sys.argv[1:])),
        "processor": here.processor(manifest.device),
        "differs_from_run": [asdict(each) for each in found.differs],
    }


def _default_path(run: Path, key: str) -> Path:
    folder = run.with_suffix("") if run.suffix else run.with_name(f"{run.name}-plots")
    return folder / f"trace-{re.sub(r'[^A-Za-z0-9._=@+-]+', '-', key)}.json"


def _write(path: Path, text: str) -> None:
    """The whole trace or nothing."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_text(text, encoding="utf-8")
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", where=str(path), hint="name another with --out") from error
