"""Every figure that a run has data for, as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlaprof.analysis.cells import Summary
from mlaprof.analysis.groups import Group, groups
from mlaprof.records import Run
from mlaprof.report.figures.budget import budget
from mlaprof.report.figures.canvas import RC, save
from mlaprof.report.figures.capture import capture_cost, counts
from mlaprof.report.figures.curves import latency, speedup
from mlaprof.report.figures.memory import memory
from mlaprof.report.figures.tiles import tiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: dict[str, Callable[[Summary, Group], Figure | None]] = {
    "latency": latency,
    "speedup": speedup,
    "budget": budget,
    "memory": memory,
    "counts": counts,
    "capture-cost": capture_cost,
    "tiles": tiles,
}


TITLES: dict[str, str] = {  # the name of a figure -> what it shows
    "latency": "Latency over tokens",
    "speedup": "Speed-up over tokens",
    "budget": "Where a step in service spends its time",
    "memory": "Memory by mode",
    "counts": "Kernels of a step, in graphs and launched one by one",
    "capture-cost": "Cost of capture by size",
    "tiles": "Tile configurations over tokens",
}


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure with its name in FIGURES and what it is about."""

    name: str
    group: Group
    figure: Figure

    @property
    def stem(self) -> str:
        """The name of its files."""
        return stem_of(self.name, self.group)


def stem_of(name: str, group: Group) -> str:
    """`<figure>-<phase>-ctx<context_len>`"""
    return f"{name}-{group.phase}-ctx{group.context_len}"


def drawn(summary: Summary) -> Iterator[Drawn]:
    """Every figure that the summary has data for, by group; to be saved inside matplotlib's rc_context(RC)."""
    for group in groups(summary):
        for name, draw in FIGURES.items():
            figure = draw(summary, group)
            if figure is not None:
                yield Drawn(name, group, figure)


def write_figures(run: Run, summary: Summary, folder: Path) -> list[Path]:
    """Write every figure that the run has data for into `folder`, PNG and SVG; returns the paths, PNG first.

    Names are `<figure>-<phase>-ctx<context_len>`. Raises OSError where the folder cannot be written.
    """
    import matplotlib

    if run.manifest.run_id != summary.run_id:
        raise ValueError(f"summary: expected the one of run {run.manifest.run_id}, got {summary.run_id}")
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(RC):
        return [path for each in drawn(summary) for path in save(each.figure, folder, each.stem)]
