"""The ways of running a step in one figure: their order, their cells and their look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlaprof.analysis.cells import Cell
from mlaprof.analysis.groups import Group
from mlaprof.report.style import BOUNDARY, MODE
from mlaprof.study import BOUNDARIES, MODES, Boundary, Mode


@dataclass(frozen=True)
class Way:
    """A mode with its boundary; `name` is the way's in a Point key."""

    name: str
    mode: Mode
    boundary: Boundary

    @property
    def colour(self) -> str:
        return MODE[self.mode].colour

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of a matplotlib line: colour and marker of the mode, style and fill of the boundary."""
        look = BOUNDARY[self.boundary]
        hollow = look.fill == "none"
        return {
            "color": self.colour,
            "marker": MODE[self.mode].marker,
            "linestyle": look.line,
            "fillstyle": "full" if hollow else look.fill,  # hollow in white, or the line would show through
            "markerfacecolor": "white" if hollow else self.colour,
            "markerfacecoloralt": "white",
        }

    @property
    def stacked_name(self) -> str:
        """The name in several short lines, for a narrow place."""
        return self.name.replace("_", "\n").replace("@", "\n@")


def by_way(group: Group) -> dict[Way, tuple[Cell, ...]]:
    """The cells with default tiles of each way, by num_tokens; ways in the order of MODES, then BOUNDARIES."""
    found: dict[Way, list[Cell]] = {}
    for cell in group.cells:
        if not cell.tiles:
            found.setdefault(Way(cell.way, cell.mode, cell.boundary), []).append(cell)
    order = sorted(found, key=lambda way: (MODES.index(way.mode), BOUNDARIES.index(way.boundary)))
    return {way: tuple(sorted(found[way], key=lambda cell: cell.num_tokens)) for way in order}
