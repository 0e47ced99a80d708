"""The columns of a table of cells: times, what a step asks of the driver, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from rich.text import Text

from mlaprof.analysis.cells import Cell, Floor
from mlaprof.analysis.groups import Group
from mlaprof.analysis.ratios import BoundaryPrice, ModeMean, PiecewiseVsBreakable
from mlaprof.analysis.stats import Estimate
from mlaprof.report.clocks_table import bound_text
from mlaprof.report.columns import Column
from mlaprof.report.style import STATUS
from mlaprof.report.units import faster, plus_minus, share, significant, size_unit, time_unit
from mlaprof.study import BASELINE

DRIVER_TITLE = "What a step asks of the driver, at the largest size"
_DRIVER = ("tokens", "mode", "eager kernels", "syncs", "d2h", "coverage", "graph nodes", "launches", "break-even")


def cell_columns(
    rows: Sequence[Cell],
    means: Sequence[ModeMean],
    *,
    floor: Floor | None = None,
    ascii_only: bool = False,
    every_row: bool = False,
) -> list[Column]:
    """A row a cell, then a row a mean.

    floor      the run's; speed-ups nearer to 1.0 are unclear
    every_row  token counts are not left blank where they repeat
    """
    times = time_unit(each.median for cell in rows for each in (cell.device_s, cell.submit_s) if each)
    memories = [cell.memory for cell in rows if cell.memory]
    sizes = size_unit(
        value for each in memories for value in (each.allocator_peak_bytes, each.graph_pool_bytes) if value
    )
    sign, least = ("+-", ">=") if ascii_only else ("±", "≥")
    blank = [""] * len(means)

    def of_cells(text: Callable[[Cell], Text | str]) -> list[Text | str]:
        return [*(text(cell) for cell in rows), *blank]

    def medians(estimates: Iterable[Estimate | None]) -> list[str]:
        return [*(times.text(each.median) if each else "" for each in estimates), *blank]

    def counted(value: Callable[[Cell], int | None]) -> list[Text | str]:
        """Of incomplete counts the bound that they are."""
        return of_cells(lambda cell: _bounded(value(cell), cell, least))

    tokens = [
        str(cell.num_tokens) if every_row or not row or rows[row - 1].num_tokens != cell.num_tokens else ""
        for row, cell in enumerate(rows)
    ]
    kernel, labels = _tile_labels([*(cell.tiles for cell in rows), *(mean.tiles for mean in means)])
    return [
        Column("tokens", 0, [*tokens, *("geomean" for _ in means)]),
        Column("mode", 0, [*(cell.way for cell in rows), *(mean.way for mean in means)], right=False),
        Column(kernel or "tiles", 0, labels, right=False) if kernel is not None else Column("tiles", 15, labels),
        Column("status", 0, of_cells(lambda cell: _status(cell, ascii_only)), right=False),
        Column(f"device {times.name}", 0, medians(cell.device_s for cell in rows)),
        Column(f"{sign}CI", 3, of_cells(lambda cell: plus_minus(cell.device_s, sign) if cell.device_s else "")),
        Column(f"spread {times.name}", 1, of_cells(lambda cell: times.text(cell.ranks.spread_s) if cell.ranks else "")),
        Column(
            "speed-up",
            1,
            [*(_speedup(cell, floor) for cell in rows), *(ratio_text(mean.speedup, floor) for mean in means)],
        ),
        Column(f"submit {times.name}", 4, medians(cell.submit_s for cell in rows)),
        Column("bound", 2, of_cells(bound_text), right=False),
        Column("eager kernels", 5, counted(lambda cell: cell.counts.kernel_launches if cell.counts else None)),
        Column("syncs", 6, counted(lambda cell: cell.counts.syncs if cell.counts else None)),
        Column("d2h", 9, counted(lambda cell: cell.counts.d2h_copies if cell.counts else None)),
        Column("coverage", 8, of_cells(lambda cell: share(cell.coverage))),
        Column("graph nodes", 11, of_cells(lambda cell: str(cell.graph.graph_nodes) if cell.graph else "")),
        Column("launches", 13, of_cells(lambda cell: str(cell.graph.graph_launches) if cell.graph else "")),
        Column("break-even", 10, of_cells(_break_even)),
        Column(f"pool {sizes.name}", 7, of_cells(lambda cell: _memory(cell, "graph_pool_bytes", sizes.scale))),
        Column(f"peak {sizes.name}", 12, of_cells(lambda cell: _memory(cell, "allocator_peak_bytes", sizes.scale))),
        Column("SM MHz", 14, of_cells(lambda cell: f"{cell.sm_clock_hz / 1e6:.0f}" if cell.sm_clock_hz else "")),
    ]


def driver_columns(rows: Sequence[Cell], *, ascii_only: bool = False) -> list[Column]:
    """A row a way with counts, at its largest size with default tiles: what remains of them on a narrow terminal."""
    counted = sorted((cell for cell in rows if cell.counts and not cell.tiles), key=lambda cell: cell.num_tokens)
    largest = {cell.way: cell for cell in counted}
    shown = [largest[way] for way in dict.fromkeys(cell.way for cell in rows) if way in largest]
    columns = cell_columns(shown, (), ascii_only=ascii_only, every_row=True)
    return [column for column in columns if column.title in _DRIVER] if shown else []


def ratio_text(speedup: Estimate, floor: Floor | None = None) -> Text:
    """`1.12x faster`; `~1.00x` where that is unclear."""
    if unclear(speedup, floor):
        return Text(f"~{speedup.median:.2f}x")
    return Text(faster(speedup.median), style="green" if speedup.median > 1 else "red")


def unclear(speedup: Estimate, floor: Floor | None = None) -> bool:
    """The interval includes 1.0, or the median is nearer to it than the floor; unless all of it is 1.0 exactly."""
    if speedup.ci_low == speedup.ci_high == 1:
        return False
    below_floor = floor is not None and abs(math.log(speedup.median)) < floor.ratio
    return below_floor or speedup.ci_low <= 1 <= speedup.ci_high


def legend(group: Group, floor: Floor | None) -> str:
    """What `~` means, where it stands in a table of the group; else nothing."""
    pairs: tuple[PiecewiseVsBreakable | BoundaryPrice, ...] = (*group.piecewise_vs_breakable, *group.boundary_prices)
    device = [
        *(cell.speedup for cell in group.cells),
        *(mean.speedup for mean in group.means),
        *(each.device for each in pairs),
    ]
    if not (
        any(speedup and unclear(speedup, floor) for speedup in device)
        or any(each.submit and unclear(each.submit) for each in pairs)
    ):
        return ""
    beyond = f", or device times differ by less than the A/A floor of {floor.ratio:.1%}" if floor else ""
    return f"~ the interval of the speed-up includes 1.0{beyond}"


def _bounded(value: int | None, cell: Cell, least: str) -> str:
    if value is None:
        return ""
    return str(value) if cell.counts and cell.counts.complete else f"{least}{value}"


def _status(cell: Cell, ascii_only: bool) -> Text:
    look = STATUS[cell.outcome]
    text = Text(f"{look.text(ascii_only)}{', fell back' if cell.fell_back else ''}", style=look.colour)
    return text.append(", throttled", style="yellow") if cell.throttled else text


def _break_even(cell: Cell) -> str:
    replays = cell.break_even.replays if cell.break_even else math.inf
    return str(math.ceil(replays)) if math.isfinite(replays) else ""


def _tile_labels(tiles: Sequence[str]) -> tuple[str | None, list[str]]:
    """The kernel that the labels share (empty for none, None without tiles), and the labels without it."""
    chosen = [label for label in tiles if label]
    if not chosen:
        return None, [""] * len(tiles)
    kernels = {label.partition("=")[0] for label in chosen}
    if len(kernels) > 1 or any("+" in label for label in chosen):
        return "", [label or "default" for label in tiles]
    return kernels.pop(), [label.partition("=")[2] or "default" for label in tiles]


def _memory(cell: Cell, name: str, scale: float) -> str:
    value = getattr(cell.memory, name) if cell.memory else None
    return "" if value is None else "0" if value == 0 else significant(value / scale)


def _speedup(cell: Cell, floor: Floor | None) -> Text | str:
    if cell.mode == BASELINE and not cell.tiles and cell.speedup:
        return Text("baseline", style="bright_black")
    return ratio_text(cell.speedup, floor) if cell.speedup else ""
