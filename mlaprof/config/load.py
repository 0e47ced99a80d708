"""A study file and the command line's changes to it -> Study. Every complaint names file:line, key and remedy.

    name: quickstart
    preset: tiny                  # exactly one of preset and shape
    shape: {hf_config: config.json, tp_size: 8}        # a Hugging Face file, divided over 8 ranks; or
    shape: {hidden_size: 7168, ..., rope: {...}}       # every field of LayerShape, as one rank holds it
                                  # either may add name: what this shape is called in results; else the study's name
    num_layers: 2
    mlp: none                     # or dense
    tp: {world: 2}                # ranks that run the layer together; preset or shape is the whole layer, or a share
    weights: {seed: 0}            # or {safetensors: PATH, layer: N}
    layer: {short_seq_mha_threshold: 0, ...}           # LayerOptions
    sweep:                        # the matrix: a list or a generator (axes.py) is an axis, a scalar one value
      phase: prefill
      num_tokens: {pow2: [1, 8192]}
      context_len: 0
      mode: [monolithic_eager, split_piecewise, full]
      boundary: index_quant       # of split_piecewise and breakable; the other modes have none
      exclude: [{mode: full, num_tokens: 8192}]        # drops what agrees with every field given
      include: [{phase: decode, num_tokens: 4}]        # adds; a missing field means every value of that axis
    tiles: {sparse_attn: [{block_n: 64, num_warps: 4}]}  # alternatives to the default; missing fields are the default's
    batch: {num_generations: 4, ...}                   # BatchSpec
    capture: {sizes: {pow2: [1, 8192]}, hold: weak, ...}  # CaptureSpec; sizes as an axis, or null for the sweep's
    budget: {syncs: 0, ...}                            # BudgetSpec
    tuned: auto                   # library of tuned tiles: auto (yours, then the shipped one), off, or a folder
    measure: {cache: cold, ...}                        # MeasureSpec

A relative path means relative to the file, or to the working directory when an option gave it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mlaprof.config.axes import ALIASES, AXES, from_text, values
from mlaprof.config.draft import Draft, did_you_mean
from mlaprof.config.legality import check_legality
from mlaprof.config.ranks import rank_share
from mlaprof.config.settings import drafted, require_mapping
from mlaprof.config.shape import check_name, located, read_shape
from mlaprof.config.yamltext import dump, parse
from mlaprof.errors import ConfigError
from mlaprof.study import (
    DRILL_VARIABLE,
    Axes,
    BatchSpec,
    BudgetSpec,
    CaptureSpec,
    FaultSpec,
    LayerOptions,
    LayerSpec,
    MeasureSpec,
    Part,
    PositiveInt,
    Preset,
    Selector,
    StageLimits,
    Study,
    TileChoice,
    TpSpec,
    WeightsSpec,
)


class _Sweep(Axes):
    exclude: tuple[Selector, ...] = ()
    include: tuple[Selector, ...] = ()


class _StudyFile(Part):
    """The file without preset and shape, which are looked up apart."""

    name: str
    num_layers: PositiveInt = 1
    mlp: Literal["none", "dense"] = "none"
    tp: TpSpec = TpSpec()
    weights: WeightsSpec = WeightsSpec()
    layer: LayerOptions = LayerOptions()
    sweep: _Sweep
    tiles: dict[str, tuple[dict[str, int], ...]] = Field(default={})
    batch: BatchSpec = BatchSpec()
    capture: CaptureSpec = CaptureSpec()
    budget: BudgetSpec = BudgetSpec()
    tuned: str | bool = "auto"
    measure: MeasureSpec = MeasureSpec()
    faults: tuple[FaultSpec, ...] = ()


_KEYS: dict[str, Sequence[str]] = {
    "": ("preset", "shape", *(name for name in _StudyFile.model_fields if name != "faults")),
    "tp": tuple(TpSpec.model_fields),
    "weights": tuple(WeightsSpec.model_fields),
    "layer": tuple(LayerOptions.model_fields),
    "sweep": tuple(_Sweep.model_fields),
    "sweep.exclude": AXES,
    "sweep.include": AXES,
    "batch": tuple(BatchSpec.model_fields),
    "capture": tuple(CaptureSpec.model_fields),
    "budget": tuple(BudgetSpec.model_fields),
    "measure": tuple(MeasureSpec.model_fields),
    "faults": tuple(FaultSpec.model_fields),
    "measure.limits_s": tuple(StageLimits.model_fields),
}


def load_study(
    path: Path,
    *,
    axes: Mapping[str, str] | None = None,
    settings: Sequence[str] = (),
    preset: Preset = "standard",
) -> Study:
    """The Study of a YAML file, with `--quick` or `--rigorous`, `--set dotted.key=value` and `-a axis=values` applied.

    preset    how thoroughly to measure: what PRESETS has of it takes the place of what the file says; a setting wins
    axes      axis or its alias -> values as text, e.g. {"tokens": "1:4096:*2"}; each replaces the file's axis
    settings  `dotted.key=YAML value`, e.g. measure.min_samples=30

    Raises ConfigError: the first complaint in the order of the file, the others as its notes.
    """
    draft = drafted(path, preset, settings, example="configs/quickstart.yaml")
    _apply_axes(draft, axes or {})
    study = _study(draft, path.parent)
    check_legality(draft, study)
    return study


def resolved_yaml(study: Study) -> str:
    """The Study as a study file of its own: nothing looked up elsewhere, nothing left to a default."""
    weights = study.layer.weights
    source = {"seed": weights.seed}
    sweep = {axis: list(getattr(study.axes, axis)) for axis in AXES}
    rules = {
        name: [rule.model_dump(exclude_none=True) for rule in getattr(study, name)] for name in ("exclude", "include")
    }
    return dump(
        {
            "name": study.name,
            "shape": {"name": study.layer.preset, **asdict(study.layer.shape)},
            "num_layers": study.layer.num_layers,
            "mlp": study.layer.mlp,
            "tp": study.layer.tp.model_dump(),
            "weights": source if weights.safetensors is None else weights.model_dump(exclude={"seed"}),
            "layer": study.layer.options.model_dump(),
            "sweep": sweep | rules,
            "tiles": {kernel: [choice.values for choice in choices] for kernel, choices in study.tiles.items()},
            "batch": study.batch.model_dump(),
            "capture": study.capture.model_dump(mode="json"),
            "budget": study.budget.model_dump(),
            "tuned": study.tuned,
            "measure": study.measure.model_dump(),
            **({"faults": [each.model_dump() for each in study.faults]} if study.faults else {}),
        }
    )


def study_from_resolved(text: str) -> Study:
    """The Study that `resolved_yaml` wrote, maybe elsewhere and long ago: neither files nor tile legality are checked.

    Raises ConfigError on any other text.
    """
    draft = Draft(parse(text, "stored study"))
    require_mapping(draft, "configs/quickstart.yaml")
    return _study(draft, Path())


def _apply_axes(draft: Draft, axes: Mapping[str, str]) -> None:
    given: dict[str, str] = {}
    for name, text in axes.items():
        option = f"-a {name}={text}"
        axis = ALIASES.get(name, name)
        if "." in name:
            hint = "list alternatives under tiles: in the study file, or --set 'tiles.sparse_attn=[{block_n: 32}]'"
            raise ConfigError("tile fields are not axes of the command line", where=option, hint=hint)
        if axis not in AXES:
            names = (*AXES, *ALIASES)
            hint = did_you_mean(name, names, f"the axes are {', '.join(AXES)}; for other keys use --set key=value")
            raise ConfigError(f"{name!r} is not an axis", where=option, hint=hint)
        if axis in given:
            raise ConfigError(f"{axis} is already given by -a {given[axis]}", where=option, hint="keep one of them")
        given[axis] = name
        try:
            found = from_text(axis, text)
        except ValueError as error:
            wrong, _, hint = str(error).partition("; ")
            raise ConfigError(wrong, where=option, hint=hint) from error
        draft.replace(("sweep", axis), found, option)


def _study(draft: Draft, folder: Path) -> Study:
    """The structure: keys, types and bounds, presets looked up, generators expanded. Raises all complaints together."""
    written = dict(draft.value)
    named_shape = read_shape(draft, folder, written.pop("preset", None), written.pop("shape", None))
    if isinstance(sweep := written.get("sweep"), dict):
        written["sweep"] = _expanded(draft, "sweep", sweep, AXES)
    if isinstance(capture := written.get("capture"), dict) and capture.get("sizes") is not None:
        written["capture"] = _expanded(draft, "capture", capture, ("sizes",))
    check_name(draft, ("name",), written.get("name"))
    if "faults" in written and not _drills_allowed():
        hint = "remove it"
        draft.complain(("faults",), "only the drills of mlaprof's own tests inject faults", hint)
    file = draft.validate(_StudyFile, written, (), _KEYS)
    draft.check()
    if file is None or named_shape is None:
        raise ValueError("expected a complaint about the study, got none")
    shape_name, shape = named_shape
    shape = rank_share(draft, shape, file.tp.world)
    weights = file.weights
    if weights.safetensors is not None:
        source = located(draft, ("weights", "safetensors"), weights.safetensors, folder)
        weights = WeightsSpec(seed=weights.seed, safetensors=str(source), layer=weights.layer)
    return Study(
        name=file.name,
        layer=LayerSpec(
            preset=shape_name or file.name,
            shape=shape,
            tp=file.tp,
            num_layers=file.num_layers,
            mlp=file.mlp,
            weights=weights,
            options=file.layer,
        ),
        axes=Axes(**{axis: getattr(file.sweep, axis) for axis in AXES}),
        exclude=file.sweep.exclude,
        include=file.sweep.include,
        tiles={
            kernel: tuple(TileChoice(kernel=kernel, values=each) for each in alternatives)
            for kernel, alternatives in file.tiles.items()
        },
        batch=file.batch,
        capture=file.capture,
        budget=file.budget,
        tuned=_library(draft, file.tuned, folder),
        measure=file.measure,
        faults=file.faults,
    )


def _library(draft: Draft, written: str | bool, folder: Path) -> str:
    """`auto`, `off` (which YAML 1.1 reads as false) or the path of a folder, relative to the file."""
    if isinstance(written, bool):
        return "auto" if written else "off"
    return written if written in ("auto", "off") else str(located(draft, ("tuned",), written, folder))


def _drills_allowed() -> bool:
    """In a checkout, by whoever asks for it; a wheel has no mlaprof.drill to do it with."""
    return os.environ.get(DRILL_VARIABLE) == "1" and find_spec("mlaprof.drill") is not None


def _expanded(draft: Draft, block: str, written: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """A block with the values of these keys as lists."""
    expanded = dict(written)
    for key in keys:
        if key in written:
            try:
                expanded[key] = values(written[key])
            except ValueError as error:
                wrong, _, hint = str(error).partition("; ")
                draft.complain((block, key), wrong, hint)
                expanded[key] = []
    return expanded
