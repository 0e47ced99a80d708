"""A summary with everything to draw, and what a figure says."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from matplotlib.figure import Figure

from mlaprof.analysis.cells import Summary
from mlaprof.analysis.groups import Group, groups
from mlaprof.analysis.summary import summarize


@pytest.fixture(scope="session")
def h100(fake_runs: ModuleType) -> tuple[Any, Summary, Group]:
    choices = (fake_runs.tile(block_n=128, num_warps=8), fake_runs.tile(block_n=64, num_warps=4))
    machine = fake_runs.h100(
        sizes=(1, 16, 256), tiles=choices, tile_factor=lambda choice, _: 0.5 if choice.values["block_n"] == 64 else 2.0
    )
    run = fake_runs.make_run(fake_runs.sweep(machine))
    summary = summarize(run)
    return run, summary, groups(summary)[0]


@pytest.fixture(scope="session")
def texts() -> Callable[[Figure | None], str]:
    """Make one string of all texts in a figure."""

    def read(figure: Figure | None) -> str:
        assert figure
        return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))

    return read
