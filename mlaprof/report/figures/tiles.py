"""Tile configurations over tokens as a heat map: their speed-ups where timed, else what the compiler says of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.groups import Group
from mlaprof.facts import KernelResources
from mlaprof.kernels.tiles import SHARED_LIMIT_BYTES
from mlaprof.report.figures.canvas import canvas
from mlaprof.report.figures.ways import by_way
from mlaprof.report.style import STATUS
from mlaprof.report.units import Unit, significant, time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REGISTERS_LIMIT = 255  # a thread, sm_90


def tiles(summary: Summary, group: Group) -> Figure | None:
    """Heat map of tile configurations over tokens; compile facts where no tile configuration was timed."""
    timed = [
        way.name for way in by_way(group) if any(cell.tiles_speedup for cell in group.cells if cell.way == way.name)
    ]
    if timed:
        return _timed_tiles(summary, group, timed)
    resources = list(dict.fromkeys(each for cell in group.cells for each in cell.resources))
    return _compiled_tiles(summary, group, resources) if resources else None


def _timed_tiles(summary: Summary, group: Group, ways: Sequence[str]) -> Figure:
    labels = list(dict.fromkeys(cell.tiles for cell in group.cells if cell.tiles))
    tokens = sorted({cell.num_tokens for cell in group.cells if cell.tiles})
    height = 1.6 + len(ways) * (0.9 + 0.3 * (len(labels) + 1))
    figure, panels = canvas(summary, group, "Tiles against the default", rows=len(ways), height_in=height)
    by_place = {(cell.way, cell.num_tokens, cell.tiles): cell for cell in group.cells}
    logs = [abs(math.log2(cell.tiles_speedup.median)) for cell in group.cells if cell.tiles_speedup]
    limit = max([*logs, math.log2(1.1)])
    for axes, way in zip(panels, ways, strict=True):
        _tile_panel(axes, way, ["", *labels], tokens, by_place, limit)
    return figure


def _tile_panel(
    axes: Axes,
    way: str,
    labels: Sequence[str],
    tokens: Sequence[int],
    by_place: dict[tuple[str, int, str], Cell],
    limit: float,
) -> None:
    default_times = [
        cell.device_s.median for count in tokens if (cell := by_place.get((way, count, ""))) and cell.device_s
    ]
    unit = time_unit(default_times)
    colours: list[list[float]] = []
    for row, label in enumerate(labels):
        colours.append([])
        for column, count in enumerate(tokens):
            cell = by_place.get((way, count, label))
            text, log = _tile_text(cell, unit)
            colours[-1].append(log)
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=8,
                color="white" if abs(log) > 0.7 * limit else "#222222",
            )
    # Blue is faster, red slower: a pair that the common forms of colour blindness keep apart.
    axes.imshow(colours, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    _grid_axes(axes, [str(count) for count in tokens], [label or f"default ({unit.name})" for label in labels])
    axes.set_xlabel("tokens per step")
    axes.set_title(f"{way}: speed-up over the default tiles (blue is faster)", loc="left")


def _tile_text(cell: Cell | None, unit: Unit) -> tuple[str, float]:
    """What stands in one field and its colour as a log2 ratio; NaN leaves the field white."""
    if cell is None:
        return "", math.nan
    if not cell.device_s:
        return STATUS[cell.outcome].word, math.nan
    if not cell.tiles:
        return unit.text(cell.device_s.median), 0.0
    if not cell.tiles_speedup:
        return "no default", math.nan
    return f"{cell.tiles_speedup.median:.2f}", math.log2(cell.tiles_speedup.median)


def _compiled_tiles(summary: Summary, group: Group, resources: Sequence[KernelResources]) -> Figure:
    targets = ", ".join(sorted({each.target for each in resources}))
    figure, (axes,) = canvas(
        summary,
        group,
        f"Tiles compiled for {targets}, not timed",
        height_in=1.9 + 0.34 * len(resources),
        timed=False,
    )
    shares = []
    for row, each in enumerate(resources):
        texts = (str(each.registers), significant(each.shared_bytes / 1024), str(each.stack_bytes))
        # Any stack at all means spills or local arrays, so it has two colours only.
        share = (each.registers / REGISTERS_LIMIT, each.shared_bytes / SHARED_LIMIT_BYTES, float(each.stack_bytes > 0))
        shares.append(share)
        for column, (text, filled) in enumerate(zip(texts, share, strict=True)):
            colour = "white" if filled > 0.7 else "#222222"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    rows = [f"{each.kernel} {each.tiles or 'default'}" for each in resources]
    _grid_axes(axes, ["registers\na thread", "shared KiB\na block", "stack B\na thread"], rows)
    axes.set_title("darker is nearer to the hardware's limit; any stack means spills", loc="left")
    return figure


def _grid_axes(axes: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks([column - 0.5 for column in range(1, len(columns))], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, len(rows))], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
