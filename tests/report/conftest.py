"""The fake runs of tests/analysis, and consoles that keep what they print."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console


@pytest.fixture(scope="session")
def fake_runs() -> ModuleType:
    """The module tests/analysis/fake_runs.py: make_run, timing, memory, compiled, sweep and machines."""
    path = Path(__file__).parents[1] / "analysis" / "fake_runs.py"
    spec = importlib.util.spec_from_file_location("fake_runs", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_runs"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def printed() -> Callable[..., tuple[Console, Callable[[], str]]]:
    """Make a console of a width and encoding, and a function that returns what it printed."""

    def make(width: int = 100, *, encoding: str = "utf-8", terminal: bool = False) -> tuple[Console, Callable[[], str]]:
        raw = io.BytesIO()
        out = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
        console = Console(file=out, width=width, force_terminal=terminal, legacy_windows=False)
        return console, lambda: raw.getvalue().decode(encoding)

    return make
