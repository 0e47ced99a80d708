"""What the study that a run stores says, as far as reading a run needs it."""

from __future__ import annotations

from typing import Any

from mlaprof.config.yamltext import parse
from mlaprof.errors import ConfigError
from mlaprof.study import BudgetSpec


def stored_study(study_yaml: str) -> dict[str, Any] | None:
    """The parts of a stored study by name; None where the text holds none."""
    try:
        study = parse(study_yaml, "stored study").value  # bounded, as the file is from anybody
    except ConfigError:
        return None
    return study if isinstance(study, dict) else None


def stored_budget(study_yaml: str) -> BudgetSpec:
    """The budget of a stored study, without limits where it has none. Raises ValueError on one that is no budget."""
    study = stored_study(study_yaml)
    budget = study.get("budget") if study else None
    return BudgetSpec() if budget is None else BudgetSpec.model_validate(budget)


def stored_layers(study_yaml: str) -> int:
    """How many layers the stored study builds; 1, the default, where it does not say."""
    study = stored_study(study_yaml) or {}
    layer = study.get("layer")
    found = (layer if isinstance(layer, dict) else {}).get("num_layers", study.get("num_layers"))
    return found if isinstance(found, int) and found > 0 else 1
