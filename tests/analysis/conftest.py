"""The fake runs as a fixture."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def fake_runs() -> ModuleType:
    """The module fake_runs.py beside this file: make_run, timing, memory, compiled, sweep and machines."""
    spec = importlib.util.spec_from_file_location("fake_runs", Path(__file__).with_name("fake_runs.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_runs"] = module
    spec.loader.exec_module(module)
    return module
