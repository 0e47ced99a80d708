"""`mlaprof tune`: the best tile configuration of single kernels, proven better than the default or left alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from mlaprof import store
from mlaprof.cli.door import (
    INTERRUPTED,
    RESULTS,
    SOME_FAILED,
    DeviceOption,
    ResultsDir,
    SettingOption,
    SharedGpuOption,
    app,
    err,
    out,
    preset_of,
)
from mlaprof.errors import ConfigError, RunFileError
from mlaprof.machine import checks
from mlaprof.opening import DeviceChoice, device_of, manifest_of, require_gpu_alone, same_machine
from mlaprof.records import KernelMeasurement, Manifest
from mlaprof.report import listing
from mlaprof.report.figures.tuning import write_tuning_figures
from mlaprof.report.lines import print_line
from mlaprof.report.tuning import print_tuning
from mlaprof.report.tuning_progress import tuning_progress
from mlaprof.study import TuneStudy
from mlaprof.tune import Decided, tune
from mlaprof.tuning import library
from mlaprof.tuning.entries import entry_of
from mlaprof.tuning.plan import Search, has_hopper_forms, plan_search
from mlaprof.tuning.serve import RESULTS_FOLDER
from mlaprof.tuning.study import load_tune_study, resolved_tune_yaml, tune_study_from_resolved, with_deployed
from mlaprof.tuning.summary import summarize_tuning

LibraryOption = Annotated[
    Path | None, typer.Option("--library", help="Folder of the library; by default `tuned` in the folder of results.")
]


@dataclass(frozen=True)
class _Opening:
    study: TuneStudy
    searches: Sequence[Search]
    path: Path
    manifest: Manifest
    known: Sequence[KernelMeasurement]


@app.command("tune")
def tune_(
    config: Annotated[
        Path | None, typer.Argument(help="A kernel study or a layer's, a YAML file; not needed with --resume.")
    ] = None,
    kernel: Annotated[str, typer.Option("--kernel", help="Kernels to tune, e.g. topk,sparse_attn.")] = "",
    tokens: Annotated[str, typer.Option("--tokens", help="Step sizes to tune for, e.g. 1,64,4096.")] = "",
    mode: Annotated[
        str | None, typer.Option("--mode", help="How it will be served: eager, graph, or a capture mode of the layer.")
    ] = None,
    budget: Annotated[str, typer.Option("--budget", help="Wall time a kernel and shape, e.g. 60s, 5m.")] = "60s",
    max_evals: Annotated[
        int | None, typer.Option("--max-evals", min=1, help="Most configurations to launch a kernel and shape.")
    ] = None,
    exhaust: Annotated[
        bool, typer.Option("--exhaust", help="Every legal configuration, as far as the budget goes; minutes to hours.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of inputs, orders and searches.")] = 0,
    setting: SettingOption = None,
    device: DeviceOption = DeviceChoice.auto,
    folder: LibraryOption = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Run file; by default results/<run id>.mlaprof.")
    ] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with a tuning that was interrupted.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Finalists: few rounds.")] = False,
    rigorous: Annotated[bool, typer.Option("--rigorous", help="Finalists: at least 100 rounds.")] = False,
    shared_gpu: SharedGpuOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the targets and their spaces; search nothing.")
    ] = False,
    results: ResultsDir = RESULTS,
) -> None:
    """Search tiles for the kernels of CONFIG, prove the best in a fresh process, and keep it in a library."""
    into = folder or results / RESULTS_FOLDER
    preset = preset_of(quick, rigorous)
    if resume is not None:
        changed = (
            config or kernel or tokens or mode or max_evals or exhaust or setting or out_file or preset != "standard"
        )
        if changed or budget != "60s" or seed:
            hint = "leave out CONFIG and everything but --resume, --device, --library and --results"
            raise ConfigError("a resumed tuning keeps its study", where="--resume", hint=hint)
        opening = _resumed(resume, results, device)
    else:
        if config is None:
            hint = "name a YAML file, e.g. configs/kernels.yaml"
            raise ConfigError("no study given", where="CONFIG", hint=hint)
        study = load_tune_study(
            config,
            kernels=_listed(kernel),
            tokens=_numbers(tokens),
            mode=mode,
            budget=budget,
            max_evals=max_evals,
            exhaust=exhaust,
            seed=seed,
            settings=setting or (),
            preset=preset,
        )
        opening = _new(study, into, out_file, results, device)
    if dry_run:
        for search in opening.searches:
            legal = len(search.space.space.configurations)
            print_line(f"{search.label}: {legal} legal of {search.space.declared}", out)
        many = "1 search" if len(opening.searches) == 1 else f"{len(opening.searches)} searches"
        print_line(f"{many} of at most {opening.study.budget_s:g} s; nothing was run", out)
        return
    if not shared_gpu:
        require_gpu_alone(opening.manifest.device)
    listing.print_warnings(checks.warnings(opening.manifest.environment, opening.manifest.device), err)
    writer = store.open_for_resume(opening.path) if resume else store.create(opening.path, opening.manifest)
    raise typer.Exit(_run(opening, writer, into))


def _run(opening: _Opening, writer: store.RunWriter, into: Path) -> int:
    """Tune every target; its entry is in the library before the next begins."""
    study, manifest, failed = opening.study, opening.manifest, False
    try:
        with writer, tuning_progress(len(opening.searches), study.budget_s, err) as tell:
            events = tune(opening.searches, study, manifest.device, known=opening.known, keep=writer.append)
            for event in events:
                tell(event)
                if isinstance(event, Decided):
                    failed |= _default_failed(event)
                    if (entry := entry_of(event.decision, manifest, study)) is not None:
                        library.save(library.path_of(into, entry.conditions), [entry])
    except KeyboardInterrupt:
        print_line(f"interrupted; what was found is kept. Go on with: mlaprof tune --resume {opening.path}", err)
        return INTERRUPTED
    run = store.load(opening.path)
    summaries = summarize_tuning(run)
    print_tuning(summaries, run.manifest, out)
    for path in write_tuning_figures(summaries, run.manifest, opening.path.with_suffix("")):
        if path.suffix == ".png":
            out.print(f"plot  {path}", soft_wrap=True, highlight=False)
    out.print(f"run   {opening.path}", soft_wrap=True, highlight=False)
    if any(summary.decision.verdict != "not-measured" for summary in summaries):
        out.print(f"tuned {into}", soft_wrap=True, highlight=False)
    return SOME_FAILED if failed else 0


def _default_failed(event: Decided) -> bool:
    """Nothing was measured though something could be: compiling alone is all that a machine without a GPU does."""
    return event.decision.verdict == "not-measured" and not event.decision.reason.startswith("compiled only")


def _new(study: TuneStudy, into: Path, out_file: Path | None, results: Path, device: DeviceChoice) -> _Opening:
    chosen = device_of(device)
    manifest = manifest_of(study.name, chosen, "", (), command=("mlaprof", *sys.argv[1:]))
    study = with_deployed(study, manifest.environment, chosen, (into, library.shipped()))
    searches = _searches(study, manifest)
    planned = tuple(f"search {search.label}" for search in searches)
    manifest = manifest.model_copy(update={"study_yaml": resolved_tune_yaml(study), "planned": planned})
    return _Opening(study, searches, out_file or store.default_path(results, manifest.run_id), manifest, ())


def _resumed(run: str, results: Path, device: DeviceChoice) -> _Opening:
    path = store.resolve(run, results)
    manifest = store.resumable_manifest(path)
    found = store.load(path)
    if not found.is_of_tuning:
        raise RunFileError("not a run of tuning", where=str(path), hint="`mlaprof sweep --resume` goes on with a sweep")
    same_machine(manifest, device)
    study = tune_study_from_resolved(manifest.study_yaml)
    return _Opening(study, _searches(study, manifest), path, manifest, found.kernels)


def _searches(study: TuneStudy, manifest: Manifest) -> tuple[Search, ...]:
    hopper = has_hopper_forms(manifest.environment, manifest.device)
    return tuple(plan_search(target, hopper=hopper) for target in study.targets)


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(each) for each in _listed(text)]
    except ValueError:
        hint = "write whole numbers, e.g. --tokens 1,64,4096"
        raise ConfigError(f"{text!r} are no sizes", where="--tokens", hint=hint) from None
