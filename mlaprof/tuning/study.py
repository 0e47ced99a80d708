"""What `mlaprof tune` is asked for: a study of single kernels or of the layer, narrowed by options, as targets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from mlaprof import kernel_shapes
from mlaprof.config.draft import did_you_mean
from mlaprof.config.kernels import load_kernel_study
from mlaprof.config.load import load_study
from mlaprof.config.yamltext import dump, parse, read
from mlaprof.errors import ConfigError
from mlaprof.kernels import tiles
from mlaprof.records import Device, Environment
from mlaprof.study import MODES, Launch, Mode, Preset, TileChoice, TuneStudy, TuneTarget
from mlaprof.tuning import library
from mlaprof.tuning.conditions import conditions_of
from mlaprof.tuning.targets import targets_of

TILED = tuple(dict.fromkeys(tiles.kernel_of(name) for name in tiles.KERNELS))
LAUNCHES: tuple[Launch, ...] = get_args(Launch)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def load_tune_study(
    path: Path,
    *,
    kernels: Sequence[str] = (),
    tokens: Sequence[int] = (),
    mode: str | None = None,
    budget: str = "60s",
    max_evals: int | None = None,
    exhaust: bool = False,
    seed: int = 0,
    settings: Sequence[str] = (),
    preset: Preset = "standard",
) -> TuneStudy:
    """The TuneStudy of a kernel study (it has `kernels:`) or of a layer's.

    kernels   those to tune, by default all that take tiles
    tokens    step sizes to tune for: num_tokens, queries, requests or rows, whatever the kernel counts first
    mode      eager, graph, or a capture mode of the layer, by which each kernel is launched or replayed
    budget    wall time a target, `60s`, `5m`
    exhaust   every legal configuration; the budget is then the search's alone

    Raises ConfigError: on what the file says wrong, and where nothing is left to tune.
    """
    if unknown := [name for name in kernels if name not in TILED]:
        known = kernel_shapes.KERNELS
        if unknown[0] in known:
            message, hint = f"{unknown[0]} takes no tiles", f"those that do: {', '.join(TILED)}"
        else:
            message = f"{unknown[0]} is not a kernel"
            hint = did_you_mean(unknown[0], TILED, f"those with tiles are {', '.join(TILED)}")
        raise ConfigError(message, where="--kernel", hint=hint)
    if mode is not None and mode not in (*LAUNCHES, *MODES):
        hint = did_you_mean(mode, (*LAUNCHES, *MODES), f"use one of {', '.join((*LAUNCHES, *MODES))}")
        raise ConfigError(f"{mode} is not a mode", where="--mode", hint=hint)
    budget_s = seconds_of(budget)
    document = read(path).value
    if isinstance(document, dict) and "kernels" in document:
        study = load_kernel_study(path, settings=settings, preset=preset)
        targets = [
            TuneTarget(kernel=name, shape=shape, launch=launch)
            for name, sweep in study.kernels.items()
            if name in TILED
            for shape in sweep.shapes
            for launch in _launches(study.launch, mode)
        ]
        name, measure = study.name, study.measure
    else:
        layer = load_study(path, settings=settings, preset=preset)
        launch: Launch | None = next((each for each in LAUNCHES if each == mode), None)
        modes: tuple[Mode, ...] | None = tuple(each for each in MODES if each == mode) or None
        if modes is not None and modes[0] not in layer.axes.mode:
            layer = layer.model_copy(update={"axes": layer.axes.model_copy(update={"mode": modes})})
        targets = targets_of(layer, modes=modes, launch=launch)
        name, measure = layer.name, layer.measure
    targets = [each for each in targets if not kernels or each.kernel in kernels]
    if kernels and not targets:
        raise ConfigError(f"has no {', '.join(kernels)} to tune", where=str(path), hint="choose another --kernel")
    if not targets:
        raise ConfigError("has no kernel that takes tiles", where=str(path), hint=f"those that do: {', '.join(TILED)}")
    if tokens:
        sizes = sorted({step_size(each) for each in targets})
        targets = [each for each in targets if step_size(each) in tokens]
        if not targets:
            listed = ", ".join(map(str, sizes))
            raise ConfigError("no target has such a size", where="--tokens", hint=f"{path} has {listed}")
    return TuneStudy(
        name=name,
        seed=seed,
        targets=tuple(targets),
        budget_s=budget_s,
        max_evals=max_evals,
        exhaust=exhaust,
        measure=measure,
    )


def step_size(target: TuneTarget) -> int:
    """What of a shape grows with the step: its first axis."""
    return target.shape[kernel_shapes.KERNELS[target.kernel].names[0]]


def with_deployed(study: TuneStudy, environment: Environment, device: Device, folders: Iterable[Path]) -> TuneStudy:
    """Each target with what these libraries serve for it now. Raises ConfigError as library.load does."""
    found = []
    for target in study.targets:
        conditions = conditions_of(environment, device, target.kernel, target.shape, target.launch, study.measure.cache)
        entry = library.lookup(library.entries_for(folders, conditions), conditions, target.shape).entry
        deployed = None
        if entry is not None and entry.values is not None and entry.form:
            deployed = TileChoice(kernel=entry.form, values=entry.values)
        found.append(target.model_copy(update={"deployed": deployed}))
    return study.model_copy(update={"targets": tuple(found)})


def resolved_tune_yaml(study: TuneStudy) -> str:
    """The study as it is stored with its run."""
    return dump(study.model_dump(mode="json"))


def tune_study_from_resolved(text: str) -> TuneStudy:
    """What resolved_tune_yaml wrote. Raises ConfigError on any other text."""
    try:
        return TuneStudy.model_validate(parse(text, "stored study").value, strict=False)
    except ValueError as error:
        raise ConfigError(
            "the stored study is none of a tuning", where="--resume", hint="give a run that `mlaprof tune` wrote"
        ) from error


def seconds_of(text: str) -> float:
    """`60s`, `5m`, `0.5h` or plain seconds. Raises ConfigError on anything else, and below a second."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if seconds < 1.0:
        raise ConfigError(f"{text!r} is not a budget", where="--budget", hint="write e.g. 60s or 5m, a second at least")
    return seconds


def _launches(written: Sequence[Launch], mode: str | None) -> tuple[Launch, ...]:
    """As the study has it; a mode of the layer replays single kernels where it replays the whole step alone."""
    if mode is None:
        return tuple(written)
    return ("graph",) if mode in ("graph", "full") else ("eager",)
