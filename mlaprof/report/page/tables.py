"""The tables that a page has and a terminal has not: what each way moved, means, full depth, what has no time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.text import Text

from mlaprof.analysis.cells import Cell, Floor, Summary
from mlaprof.analysis.depth import FullDepth
from mlaprof.analysis.groups import Group
from mlaprof.analysis.stats import Estimate
from mlaprof.report.cells_table import ratio_text
from mlaprof.report.columns import Column
from mlaprof.report.style import STATUS
from mlaprof.report.units import share, signed, time_unit


def mean_columns(group: Group, floor: Floor | None) -> list[Column]:
    """A row a way: speed-ups over the baseline in the geometric mean of the token counts; empty without one."""
    rows = [mean for mean in group.means if not mean.tiles]
    if not rows:
        return []
    return [
        Column("mode", 0, [each.way for each in rows], right=False),
        Column("in service", 0, [ratio_text(each.step, floor) if each.step else "" for each in rows]),
        Column("95% CI", 0, [_ends(each.step) for each in rows]),
        Column("device time", 0, [ratio_text(each.speedup, floor) for each in rows]),
        Column("95% CI of it", 0, [_ends(each.speedup) for each in rows]),
        Column("token counts", 0, [str(each.speedup.n) for each in rows]),
    ]


def moved_columns(cells: Sequence[Cell]) -> list[Column]:
    """A row a cell whose step was counted, default tiles: what it asks of the driver; empty without one."""
    rows = [cell for cell in cells if cell.counts and not cell.tiles]

    def counted(value: Callable[[Cell], int | None]) -> list[str]:
        return [_bounded(value(cell), cell) for cell in rows]

    if not rows:
        return []
    return [
        Column("tokens", 0, [str(cell.num_tokens) for cell in rows]),
        Column("mode", 0, [cell.way for cell in rows], right=False),
        Column("eager launches", 0, counted(lambda cell: cell.counts.kernel_launches if cell.counts else None)),
        Column("kernels in graphs", 0, counted(lambda cell: cell.counts.nodes.kernel if cell.counts else None)),
        Column("coverage", 0, [share(cell.coverage) for cell in rows]),
        Column("graph launches", 0, counted(lambda cell: cell.counts.graph_launches if cell.counts else None)),
        Column("captured segments", 0, [str(cell.graph.captured_segments) if cell.graph else "" for cell in rows]),
        Column("eager segments", 0, [str(cell.graph.eager_segments) if cell.graph else "" for cell in rows]),
        Column("syncs", 0, counted(lambda cell: cell.counts.syncs if cell.counts else None)),
        Column("D2H copies", 0, counted(lambda cell: cell.counts.d2h_copies if cell.counts else None)),
    ]


def pay_columns(cells: Sequence[Cell]) -> list[Column]:
    """A row a cell whose capture pays: replays until it has, and over which mode; empty without one."""
    rows = [(cell, cell.break_even) for cell in cells if cell.break_even]
    if not rows:
        return []
    return [
        Column("tokens", 0, [str(cell.num_tokens) for cell, _ in rows]),
        Column("mode", 0, [cell.way for cell, _ in rows], right=False),
        Column("replays to break even", 0, [str(math.ceil(paid.replays)) for _, paid in rows]),
        Column("over", 0, [paid.over for _, paid in rows], right=False),
    ]


def depth_columns(rows: Sequence[FullDepth]) -> list[Column]:
    """A row a cell at the model's depth; empty without one."""
    if not rows:
        return []
    unit = time_unit(each.step_s.median for each in rows)
    return [
        Column("tokens", 0, [str(each.cell.num_tokens) for each in rows]),
        Column("mode", 0, [each.cell.way for each in rows], right=False),
        Column(f"all layers, {unit.name}", 0, [unit.text(each.step_s.median) for each in rows]),
        Column("95% CI", 0, [f"{unit.text(e.step_s.ci_low)}, {unit.text(e.step_s.ci_high)}" for e in rows]),
        Column(f"saved, {unit.name}", 0, [signed(e.saved_s.median, unit) if e.saved_s else "" for e in rows]),
        Column(
            "95% CI of it",
            0,
            [f"{signed(e.saved_s.ci_low, unit)}, {signed(e.saved_s.ci_high, unit)}" if e.saved_s else "" for e in rows],
        ),
    ]


def trouble_columns(summary: Summary) -> list[Column]:
    """A row a cell without a time, each with its reason; empty where every cell has one."""
    rows = [cell for cell in summary.cells if cell.outcome not in ("ok", "compiled")]
    if not rows:
        return []
    looks = [STATUS[cell.outcome] for cell in rows]
    return [
        Column("cell", 0, [cell.key for cell in rows], right=False),
        Column("status", 0, [Text(look.text(), style=look.colour) for look in looks], right=False),
        Column("stage", 0, [cell.stage for cell in rows], right=False),
        Column("reason", 0, [cell.reason or "no reason given" for cell in rows], right=False),
    ]


def fact_columns(rows: Sequence[tuple[str, str]]) -> list[Column]:
    """Facts and their values."""
    return [
        Column("fact", 0, [fact for fact, _ in rows], right=False),
        Column("value", 0, [value for _, value in rows], right=False),
    ]


def _ends(ratio: Estimate | None) -> str:
    return f"{ratio.ci_low:.3f}x, {ratio.ci_high:.3f}x" if ratio else ""


def _bounded(value: int | None, cell: Cell) -> str:
    """Of incomplete counts the bound that they are."""
    return "" if value is None else str(value) if cell.counts and cell.counts.complete else f"≥{value}"
