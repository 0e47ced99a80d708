"""What a study file and the command line beside it share, whatever is studied: the first look, and `--set`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlaprof.config.draft import Draft, describe
from mlaprof.config.yamltext import KeyPath, parse, read
from mlaprof.errors import ConfigError
from mlaprof.study import PRESETS, Preset

# Setting one of these on the command line takes the place of what the file says instead of it.
_REPLACES: dict[KeyPath, tuple[KeyPath, ...]] = {
    ("preset",): (("shape",),),
    ("shape",): (("preset",),),
    ("weights", "safetensors"): (("weights", "seed"),),
    ("weights", "seed"): (("weights", "safetensors"), ("weights", "layer")),
}


def require_mapping(draft: Draft, example: str) -> None:
    """Raise ConfigError where the file holds no mapping; example is a study to start from."""
    if not isinstance(draft.value, dict):
        got = "is empty" if draft.value is None else f"holds {describe(draft.value)}, not a study"
        raise ConfigError(got, where=f"{draft.document.where}:1", hint=f"start from a copy of {example}")


def drafted(path: Path, preset: Preset, settings: Sequence[str], *, example: str) -> Draft:
    """The file's mapping, then what preset has of measure, then the settings. Raises ConfigError; example is a study to
    start from."""
    draft = Draft(read(path))
    require_mapping(draft, example)
    for key, value in PRESETS[preset].items():
        draft.replace(("measure", key), value, f"--{preset}")
    for setting in settings:
        apply_setting(draft, setting)
    return draft


def apply_setting(draft: Draft, setting: str) -> None:
    """Put `dotted.key=YAML value` into draft. Raises ConfigError on anything else."""
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
