"""`mlaprof kernels`: single kernels beside their peers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mlaprof import store
from mlaprof.analysis.kernels import summarize_kernels
from mlaprof.cli.door import (
    INTERRUPTED,
    RESULTS,
    SOME_FAILED,
    DeviceOption,
    GpusOption,
    ResultsDir,
    SettingOption,
    SharedGpuOption,
    app,
    err,
    out,
    preset_of,
)
from mlaprof.config.kernels import load_kernel_study, resolved_kernel_yaml
from mlaprof.engine.local import Lanes, in_turn
from mlaprof.kernel_plan import expand_kernels
from mlaprof.machine import checks
from mlaprof.machine.seats import seats
from mlaprof.opening import DeviceChoice, device_of, manifest_of, require_gpu_alone
from mlaprof.report import listing
from mlaprof.report.kernels import print_kernels
from mlaprof.report.lines import print_line
from mlaprof.report.progress import progress
from mlaprof.sweep import sweep


@app.command()
def kernels(
    config: Annotated[Path, typer.Argument(help="A kernel study, a YAML file, e.g. configs/kernels.yaml.")],
    only: Annotated[str, typer.Option("--only", help="Kernels of the study to measure, e.g. topk,sparse_attn.")] = "",
    setting: SettingOption = None,
    device: DeviceOption = DeviceChoice.auto,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Run file; by default results/<run id>.mlaprof.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A first look: one process, few rounds.")] = False,
    rigorous: Annotated[bool, typer.Option("--rigorous", help="Five processes, at least 100 rounds.")] = False,
    gpus: GpusOption = None,
    shared_gpu: SharedGpuOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and measure nothing.")] = False,
    results: ResultsDir = RESULTS,
) -> None:
    """Prove and time the single kernels of CONFIG by every provider that is installed, beside the chip's ceilings."""
    study = load_kernel_study(
        config,
        settings=setting or (),
        preset=preset_of(quick, rigorous),
        only=[each for each in only.split(",") if each],
    )
    chosen = device_of(device)
    plan = expand_kernels(study, chosen)
    if dry_run:
        for kind, key, process in plan.planned:
            if process == 0:
                print_line(f"{kind} {key}", out)
        workers = "1 worker process" if len(plan.jobs) == 1 else f"{len(plan.jobs)} worker processes"
        print_line(f"{len(plan)} measurements in {workers}; nothing was run", out)
        return
    places = seats(gpus, chosen) if gpus else ()
    if not shared_gpu:
        require_gpu_alone(chosen, places)
    for place in places:
        print_line(f"GPU {place}", err)
    manifest = manifest_of(
        study.name, chosen, resolved_kernel_yaml(study), plan.planned, command=("mlaprof", *sys.argv[1:])
    )
    path = out_file or store.default_path(results, manifest.run_id)
    listing.print_warnings(checks.warnings(manifest.environment, chosen), err)
    try:
        with store.create(path, manifest) as writer, progress(len(plan), err) as tell:
            for event in sweep(plan, engine=Lanes(places) if places else in_turn, keep=writer.append):
                tell(event)
    except KeyboardInterrupt:
        print_line(f"interrupted; what was measured is kept. See it with: mlaprof show {path}", err)
        raise typer.Exit(INTERRUPTED) from None
    run = store.load(path)
    print_kernels(summarize_kernels(run), run.manifest, out)
    out.print(f"run   {path}", soft_wrap=True, highlight=False)
    if any(each.outcome.status in ("failed", "incorrect") for each in run.kernels):
        raise typer.Exit(SOME_FAILED)
