"""What every figure shares: its size, its style, its title and its caption."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlaprof.analysis.cells import Summary
from mlaprof.analysis.groups import Group
from mlaprof.report import sentences

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN, TWO_PANELS_IN, DPI = 8.0, 5.2, 7.4, 200

RC: dict[Any, Any] = {  # of matplotlib, while figures are drawn
    "svg.hashsalt": "mlaprof",  # with no date in the file, the same run draws the same bytes
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.facecolor": "white",
}


def canvas(
    summary: Summary,
    group: Group,
    title: str,
    *,
    rows: int = 1,
    columns: int = 1,
    height_in: float | None = None,
    timed: bool = True,
    note: str = "",
) -> tuple[Figure, list[Axes]]:
    """A figure with its title and place above, and below the caption that every figure carries; its axes row by row.

    timed: the caption tells how the times were taken; `note` is its last line.
    """
    from matplotlib.figure import Figure as NewFigure

    height_in = height_in or (HEIGHT_IN if rows == 1 else TWO_PANELS_IN)
    figure = NewFigure(figsize=(WIDTH_IN, height_in), layout="constrained")
    caption = f"{sentences.processor(summary)} | {group.preset} | run {summary.run_id}"
    if timed:
        caption = f"{caption}\n{sentences.conditions(summary, group.cells)}{sentences.left_out(group.cells)}"
    caption = f"{caption}\n{note}" if note else caption
    place = sentences.placed(group.phase, group.context_len)
    stamp = " (emulated on a CPU)" if timed and summary.emulated else ""
    figure.suptitle(f"{title}: {place}{stamp}", x=0.012, ha="left", fontsize=12.5, fontweight="bold")
    figure.supxlabel(caption, x=0.012, ha="left", fontsize=8.5, color="#444444")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def legend_above(axes: Axes, *, ncols: int) -> None:
    """The legend above the axes, from the figure's left edge: names on the axis may take half of its width."""
    from matplotlib.transforms import blended_transform_factory

    figure = axes.get_figure()
    axes.legend(
        ncols=ncols,
        loc="lower left",
        bbox_to_anchor=(0.01, 1.0),
        bbox_transform=blended_transform_factory(figure.transFigure, axes.transAxes) if figure else None,
        borderaxespad=0.2,
    )


def save(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write the figure as PNG and SVG, the same bytes for the same run; both paths, PNG first. Raises OSError."""
    paths = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    figure.savefig(paths[0], dpi=DPI)
    figure.savefig(paths[1], metadata={"Date": None})
    return paths
