"""The fake runs of tests/analysis, and consoles that keep what they print."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.clocks import StepBudget
from mlaprof.analysis.stats import Estimate
from mlaprof.analysis.summary import summarize


@pytest.fixture
def printed() -> Callable[..., tuple[Console, Callable[[], str]]]:
    """Make a console of a width and encoding, and a function that returns what it printed."""

    def make(width: int = 100, *, encoding: str = "utf-8", terminal: bool = False) -> tuple[Console, Callable[[], str]]:
        raw = io.BytesIO()
        out = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
        console = Console(file=out, width=width, force_terminal=terminal, legacy_windows=False)
        return console, lambda: raw.getvalue().decode(encoding)

    return make


@pytest.fixture(scope="session")
def served(fake_runs: ModuleType) -> Callable[..., Summary]:
    """Make a summary of three arms with all four clocks, planted: the host, neither or the device sets the pace.

    Microseconds a step of one token; a step of more takes that many times as long on the device and in service, and
    the host as long as before. `cells` are further changes of the cells of a mode.
    """

    def make(sizes: tuple[int, ...] = (1,), **cells: dict[str, Any]) -> Summary:
        planted = {  # device, submit, latency, sustained, warm device, sync waits, host stalls
            "monolithic_eager": (110.0, 600.0, 700.0, 630.0, 100.0, 63.0, 0.0),
            "split_eager": (110.0, 90.0, 180.0, 106.0, 100.0, 0.0, 1.0),
            "full": (75.0, 21.0, 95.0, 70.35, 70.0, 0.0, 0.0),
        }
        rows = [
            fake_runs.timing(fake_runs.point(mode, tokens), tokens * us[0] * 1e-6, us[1] * 1e-6)
            for tokens in sizes
            for mode, us in planted.items()
        ]
        summary = summarize(fake_runs.make_run(rows))

        def clocked(cell: Cell) -> Cell:
            _, _, latency, sustained, warm, waits, stalls = (cell.num_tokens * us * 1e-6 for us in planted[cell.mode])
            fields: dict[str, Any] = {
                "latency_s": _exactly(latency),
                "sustained_s": _exactly(sustained),
                "warm_device_s": _exactly(warm),
                "budget": StepBudget(warm, waits, stalls, sustained - warm - waits - stalls),
                "processes": 3,
            }
            return replace(cell, **{**fields, **cells.get(cell.mode, {})})

        return replace(summary, cells=tuple(map(clocked, summary.cells)))

    return make


def _exactly(seconds: float) -> Estimate:
    return Estimate(seconds, seconds, seconds, 60)
