"""Memory by mode: stacked bars of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlaprof.analysis.cells import Group, Summary
from mlaprof.report.figures.canvas import canvas
from mlaprof.report.style import MEMORY_PARTS, MEMORY_REST
from mlaprof.report.units import significant, size_unit
from mlaprof.study import MODES, Mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def memory(summary: Summary, group: Group) -> Figure | None:
    """Stacked bars a mode at its largest size, and a second panel without weights and caches, which dwarf the rest.

    The graph pool is the one of all sizes together; every other part belongs to the largest size.
    """
    stacks = _memory_stacks(group)
    if not stacks:
        return None
    largest = max(cell.num_tokens for cell in group.cells if cell.memory)
    figure, axes = canvas(
        summary,
        group,
        f"Memory by mode at {largest} tokens",
        rows=2,
        height_in=2.6 + 0.62 * len(stacks),
        timed=False,
        note="a bar is the sum of its parts, with the graph pool that all sizes need, not a measured peak",
    )
    parts = [(name, *look) for name, look in MEMORY_PARTS.items()] + [("rest", *MEMORY_REST)]
    _bars(axes[0], stacks, parts, "all")
    _bars(axes[1], stacks, parts[2:], "without weights and caches")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].legend(handles, labels, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
    return figure


def _memory_stacks(group: Group) -> dict[Mode, dict[str, int]]:
    """Bytes by part for each mode; `rest` is what the allocator's peak holds beyond the named parts."""
    stacks: dict[Mode, dict[str, int]] = {}
    for mode in MODES:
        cells = [cell for cell in group.cells if cell.mode == mode and not cell.tiles and cell.memory]
        uses = [cell.memory for cell in sorted(cells, key=lambda cell: cell.num_tokens) if cell.memory]
        if not uses:
            continue
        largest = uses[-1]
        parts = {name: int(getattr(largest, name)) for name in MEMORY_PARTS}
        if largest.allocator_peak_bytes is not None:
            parts["rest"] = max(0, largest.allocator_peak_bytes - sum(parts.values()))
        parts["graph_pool_bytes"] = max(use.graph_pool_bytes for use in uses)
        stacks[mode] = parts
    return stacks


def _bars(axes: Axes, stacks: dict[Mode, dict[str, int]], parts: Sequence[tuple[str, str, str]], title: str) -> None:
    totals = [sum(stack.get(name, 0) for name, _, _ in parts) for stack in stacks.values()]
    unit = size_unit(totals)
    left = [0.0] * len(stacks)
    for name, label, colour in parts:
        widths = [stack.get(name, 0) / unit.scale for stack in stacks.values()]
        if any(name in stack for stack in stacks.values()):
            axes.barh(list(stacks), widths, left=left, color=colour, label=label, height=0.62)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, total in enumerate(totals):
        axes.annotate(
            f"{significant(total / unit.scale)}",
            (total / unit.scale, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xlim(0, max(max(totals) / unit.scale * 1.1, 1e-9))
    axes.set_xlabel(f"{title} ({unit.name})")
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
