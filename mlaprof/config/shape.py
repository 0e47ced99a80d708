"""The layer's shape in a study file: a preset, a Hugging Face file or every field; and names and paths beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mlaprof.config import hf
from mlaprof.config.draft import Draft, describe, did_you_mean
from mlaprof.config.yamltext import KeyPath
from mlaprof.errors import ConfigError
from mlaprof.shapes import PRESETS, LayerShape, RopeShape
from mlaprof.study import Part

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHAPE_KEYS: dict[str, Sequence[str]] = {
    "": tuple(each.name for each in fields(LayerShape)),
    "rope": tuple(each.name for each in fields(RopeShape)),
}


class _InlineShape(Part):
    shape: LayerShape


def read_shape(draft: Draft, folder: Path, preset: Any, shape: Any) -> tuple[str, LayerShape] | None:
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
            check_name(draft, ("shape", "name"), name)
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
            return hf.layer_shape(located(draft, ("shape", "hf_config"), path, folder), tp_size)
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


def located(draft: Draft, path: KeyPath, text: str, folder: Path) -> Path:
    """An absolute path: the worker may run elsewhere."""
    start = Path() if draft.option(path) is not None else folder
    return (start / text).absolute()


def check_name(draft: Draft, path: KeyPath, name: Any) -> None:
    """Names end up in file names and in keys whose parts are joined by slashes."""
    if isinstance(name, str) and not _NAME.fullmatch(name):
        hint = "use up to 64 letters, digits, dots, dashes and underscores"
        draft.complain(path, f"{describe(name)} cannot be a name", hint)
    elif name is not None and not isinstance(name, str) and path != ("name",):
        draft.complain(path, f"expected text, got {describe(name)}", "give text")
