"""A study file and the command line's changes to it -> Study. Every complaint names file:line, key and remedy.

    name: quickstart
    preset: tiny                  # exactly one of preset and shape
    shape: {hf_config: config.json, tp_size: 8}        # a Hugging Face file, divided over 8 ranks; or
    shape: {hidden_size: 7168, ..., rope: {...}}       # every field of LayerShape, as one rank holds it
                                  # either may add name: what this shape is called in results; else the study's name
    num_layers: 2
    mlp: none                     # or dense
    weights: {seed: 0}            # or {safetensors: PATH, layer: N}
    layer: {short_seq_mha_threshold: 0, ...}           # LayerOptions
    sweep:                        # the matrix: a list or a generator (axes.py) is an axis, a scalar one value
      phase: prefill
      num_tokens: {pow2: [1, 8192]}
      context_len: 0
      mode: [monolithic_eager, split_piecewise, full]
      exclude: [{mode: full, num_tokens: 8192}]        # drops what agrees with every field given
      include: [{phase: decode, num_tokens: 4}]        # adds; a missing field means every value of that axis
    tiles: {sparse_attn: [{block_n: 64, num_warps: 4}]}  # alternatives to the default; missing fields are the default's
    batch: {num_generations: 4, ...}                   # BatchSpec
    measure: {cache: cold, ...}                        # MeasureSpec

A relative path means relative to the file, or to the working directory when an option gave it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mlaprof.config import hf
from mlaprof.config.axes import ALIASES, AXES, from_text, values
from mlaprof.config.draft import Draft, describe, did_you_mean
from mlaprof.config.legality import check_legality
from mlaprof.config.yamltext import KeyPath, dump, parse, read
from mlaprof.errors import ConfigError
from mlaprof.shapes import PRESETS, LayerShape, RopeShape
from mlaprof.study import (
    Axes,
    BatchSpec,
    LayerOptions,
    LayerSpec,
    MeasureSpec,
    Part,
    PositiveInt,
    Selector,
    Study,
    TileChoice,
    WeightsSpec,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class _Sweep(Axes):
    exclude: tuple[Selector, ...] = ()
    include: tuple[Selector, ...] = ()


class _StudyFile(Part):
    """The file without preset and shape, which are looked up apart."""

    name: str
    num_layers: PositiveInt = 1
    mlp: Literal["none", "dense"] = "none"
    weights: WeightsSpec = WeightsSpec()
    layer: LayerOptions = LayerOptions()
    sweep: _Sweep
    tiles: dict[str, tuple[dict[str, int], ...]] = Field(default={})
    batch: BatchSpec = BatchSpec()
    measure: MeasureSpec = MeasureSpec()


class _InlineShape(Part):
    shape: LayerShape


_KEYS: dict[str, Sequence[str]] = {
    "": ("preset", "shape", *_StudyFile.model_fields),
    "weights": tuple(WeightsSpec.model_fields),
    "layer": tuple(LayerOptions.model_fields),
    "sweep": tuple(_Sweep.model_fields),
    "sweep.exclude": AXES,
    "sweep.include": AXES,
    "batch": tuple(BatchSpec.model_fields),
    "measure": tuple(MeasureSpec.model_fields),
}
_SHAPE_KEYS: dict[str, Sequence[str]] = {
    "": tuple(each.name for each in fields(LayerShape)),
    "rope": tuple(each.name for each in fields(RopeShape)),
}
# Setting one of these on the command line takes the place of what the file says instead of it.
_REPLACES: dict[KeyPath, tuple[KeyPath, ...]] = {
    ("preset",): (("shape",),),
    ("shape",): (("preset",),),
    ("weights", "safetensors"): (("weights", "seed"),),
    ("weights", "seed"): (("weights", "safetensors"), ("weights", "layer")),
}


def load_study(path: Path, *, axes: Mapping[str, str] | None = None, settings: Sequence[str] = ()) -> Study:
    """The Study of a YAML file, with `-a axis=values` and `--set dotted.key=value` applied to it.

    axes      axis or its alias -> values as text, e.g. {"tokens": "1:4096:*2"}; each replaces the file's axis
    settings  `dotted.key=YAML value`, e.g. measure.min_samples=30

    Raises ConfigError: the first complaint in the order of the file, the others as its notes.
    """
    draft = Draft(read(path))
    _require_mapping(draft)
    for setting in settings:
        _apply_setting(draft, setting)
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
            "weights": source if weights.safetensors is None else weights.model_dump(exclude={"seed"}),
            "layer": study.layer.options.model_dump(),
            "sweep": sweep | rules,
            "tiles": {kernel: [choice.values for choice in choices] for kernel, choices in study.tiles.items()},
            "batch": study.batch.model_dump(),
            "measure": study.measure.model_dump(),
        }
    )


def study_from_resolved(text: str) -> Study:
    """The Study that `resolved_yaml` wrote, maybe elsewhere and long ago: neither files nor tile legality are checked.

    Raises ConfigError on any other text.
    """
    draft = Draft(parse(text, "stored study"))
    _require_mapping(draft)
    return _study(draft, Path())


def _require_mapping(draft: Draft) -> None:
    if not isinstance(draft.value, dict):
        got = "is empty" if draft.value is None else f"holds {describe(draft.value)}, not a study"
        raise ConfigError(got, where=f"{draft.document.where}:1", hint="start from a copy of configs/quickstart.yaml")


def _apply_setting(draft: Draft, setting: str) -> None:
    option = f"--set {setting}"
    key, separator, text = setting.partition("=")
    path: KeyPath = tuple(key.strip().split("."))
    if not separator or not all(path):
        raise ConfigError("expected dotted.key=value", where=option, hint="write e.g. --set measure.min_samples=30")
    try:
        value = parse(text, option).value
    except ConfigError as error:
        raise ConfigError(error.message, where=option, hint=error.hint) from error
    for replaced in _REPLACES.get(path[:1] if path == ("shape", "hf_config") else path, ()):
        draft.remove(replaced)
    draft.replace(path, value, option)


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
    named_shape = _shape(draft, folder, written.pop("preset", None), written.pop("shape", None))
    if isinstance(written.get("sweep"), dict):
        written["sweep"] = _expanded(draft, written["sweep"])
    _check_name(draft, ("name",), written.get("name"))
    file = draft.validate(_StudyFile, written, (), _KEYS)
    draft.check()
    if file is None or named_shape is None:
        raise ValueError("expected a complaint about the study, got none")
    shape_name, shape = named_shape
    weights = file.weights
    if weights.safetensors is not None:
        source = _located(draft, ("weights", "safetensors"), weights.safetensors, folder)
        weights = WeightsSpec(seed=weights.seed, safetensors=str(source), layer=weights.layer)
    return Study(
        name=file.name,
        layer=LayerSpec(
            preset=shape_name or file.name,
            shape=shape,
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
        measure=file.measure,
    )


def _shape(draft: Draft, folder: Path, preset: Any, shape: Any) -> tuple[str, LayerShape] | None:
    """The shape and its name ("" for the study's own), or None after complaining."""
    presets = f"the presets are {', '.join(PRESETS)}"
    if preset is None and shape is None:
        draft.complain_missing((), "preset", f"give preset or shape; {presets}")
    elif preset is not None and shape is not None:
        draft.complain(("shape",), "stands beside preset", "keep one of preset and shape")
    elif preset is not None:
        if isinstance(preset, str) and preset in PRESETS:
            return preset, PRESETS[preset]
        draft.complain(("preset",), f"{describe(preset)} is not a preset", did_you_mean(str(preset), PRESETS, presets))
    elif not isinstance(shape, dict):
        draft.complain(
            ("shape",), f"expected a mapping, got {describe(shape)}", "give {hf_config: PATH} or every field"
        )
    else:
        rest = dict(shape)
        name = rest.pop("name", "")
        if "name" in shape:
            _check_name(draft, ("shape", "name"), name)
        found = _hf_shape(draft, folder, rest) if "hf_config" in rest else _inline_shape(draft, rest)
        return None if found is None else (str(name), found)
    return None


def _hf_shape(draft: Draft, folder: Path, shape: Mapping[str, Any]) -> LayerShape | None:
    path, tp_size = shape["hf_config"], shape.get("tp_size", 1)
    unknown = [key for key in shape if key not in ("hf_config", "tp_size")]
    for key in unknown:
        if key in _SHAPE_KEYS[""]:
            draft.complain(("shape", key), "stands beside hf_config", "keep one of hf_config and the single fields")
        else:
            draft.complain_unknown(("shape", key), ("hf_config", "tp_size", "name"))
    if not isinstance(path, str):
        draft.complain(("shape", "hf_config"), f"expected text, got {describe(path)}", "give the path of a config.json")
    elif type(tp_size) is not int or tp_size < 1:
        draft.complain(("shape", "tp_size"), f"{describe(tp_size)} is not a number of ranks", "use 1 or more")
    elif not unknown:
        try:
            return hf.layer_shape(_located(draft, ("shape", "hf_config"), path, folder), tp_size)
        except ConfigError as error:
            draft.complain(("shape", "hf_config"), f"{error.where}: {error.message}", error.hint)
    return None


def _inline_shape(draft: Draft, shape: dict[str, Any]) -> LayerShape | None:
    if "q_lora_rank" in shape and shape["q_lora_rank"] is None:
        draft.complain(("shape", "q_lora_rank"), hf.MLA_LITE, "give the rank of the query's low-rank projection")
        shape["q_lora_rank"] = 1  # so that the other fields are checked, too
    known = {f"shape.{block}" if block else "shape": keys for block, keys in _SHAPE_KEYS.items()}
    found = draft.validate(_InlineShape, {"shape": shape}, (), known)
    return None if found is None else found.shape


def _located(draft: Draft, path: KeyPath, text: str, folder: Path) -> Path:
    """An absolute path: the worker may run elsewhere."""
    start = Path() if draft.option(path) is not None else folder
    return (start / text).absolute()


def _expanded(draft: Draft, sweep: Mapping[str, Any]) -> dict[str, Any]:
    """The sweep block with every axis as a list."""
    expanded = dict(sweep)
    for axis in AXES:
        if axis in sweep:
            try:
                expanded[axis] = values(sweep[axis])
            except ValueError as error:
                wrong, _, hint = str(error).partition("; ")
                draft.complain(("sweep", axis), wrong, hint)
                expanded[axis] = []
    return expanded


def _check_name(draft: Draft, path: KeyPath, name: Any) -> None:
    """Names end up in file names and in keys whose parts are joined by slashes."""
    if isinstance(name, str) and not _NAME.fullmatch(name):
        hint = "use up to 64 letters, digits, dots, dashes and underscores"
        draft.complain(path, f"{describe(name)} cannot be a name", hint)
    elif name is not None and not isinstance(name, str) and path != ("name",):
        draft.complain(path, f"expected text, got {describe(name)}", "give text")
