"""Where the time of a step in service goes: GPU busy, launch gaps, host stalls, sync waits, a bar a way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.groups import Group
from mlaprof.report.clocks_table import in_service, spread
from mlaprof.report.figures.canvas import canvas, legend_above
from mlaprof.report.figures.ways import by_way
from mlaprof.report.style import BUDGET_PARTS
from mlaprof.report.units import percent, time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 6


def budget(summary: Summary, group: Group) -> Figure | None:
    """A panel a size, the smallest and the largest among them, each with an axis of its own from zero.

    A bar is the sustained time of a way in its parts, stacked in the order of BUDGET_PARTS; the text beside it is their
    sum and the device's share of it.
    """
    cells = in_service(cell for cells in by_way(group).values() for cell in cells)
    if not cells:
        return None
    sizes = spread(cells, PANELS)
    ways = list(dict.fromkeys(cell.way for cell in cells))
    columns = 2 if len(sizes) > 1 else 1
    rows = -(-len(sizes) // columns)
    figure, panels = canvas(
        summary,
        group,
        "Where a step in service spends its time",
        rows=rows,
        columns=columns,
        height_in=1.9 + rows * (0.75 + (0.27 if len(ways) < 8 else 0.21) * len(ways)),
        timed=False,
        note="medians of bursts of steps without a pause, warm cache; beside a bar the wall time a step; while the GPU "
        "is idle the host\nsubmits (launch gaps), is on no CPU (host stalls) or waits for the GPU (sync waits)",
    )
    for place, (axes, tokens) in enumerate(zip(panels, sizes, strict=False)):
        _panel(axes, [cell for cell in cells if cell.num_tokens == tokens], ways)
        bottom, end = axes.get_xlim()
        axes.set_xlim(bottom, end * (1.45 if columns == 2 else 1.18))  # room for the text beside the longest bar
        axes.tick_params(axis="y", labelleft=place % columns == 0)
    for axes in panels[len(sizes) :]:
        axes.set_visible(False)
    legend_above(panels[0], ncols=2)  # wider than its panel it would push the panels apart
    return figure


def _panel(axes: Axes, cells: Sequence[Cell], ways: Sequence[str]) -> None:
    found = {cell.way: cell.budget for cell in cells if cell.budget}
    unit = time_unit([max(each.total_s for each in found.values())])
    rows = [ways.index(way) for way in found]
    left = [0.0] * len(found)
    for part, look in BUDGET_PARTS.items():
        widths = [getattr(each, part) / unit.scale for each in found.values()]
        axes.barh(
            rows,
            widths,
            left=left,
            color=look.colour,
            hatch=look.hatch,
            edgecolor="white",
            linewidth=0,
            height=0.66,
            label=look.label,
        )
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, each in zip(rows, found.values(), strict=True):
        axes.annotate(
            f"{unit.text(each.total_s)}, {percent(each.busy_s / each.total_s)} busy",
            (each.total_s / unit.scale, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(ways)), ways)
    axes.set_ylim(len(ways) - 0.5, -0.5)
    axes.set_xlim(0, max(left))
    tokens = cells[0].num_tokens
    axes.set_xlabel(f"{unit.name} a step of {tokens} token{'s' * (tokens != 1)}")
    axes.grid(axis="y", visible=False)
