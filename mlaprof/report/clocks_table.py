"""The four clocks of a cell side by side, and what the time of a step in service goes to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.text import Text

from mlaprof.analysis.cells import Cell
from mlaprof.analysis.stats import Estimate
from mlaprof.report import sentences
from mlaprof.report.columns import Column
from mlaprof.report.style import BUDGET_PARTS
from mlaprof.report.units import Unit, percent, signed, time_unit

LITTLE = 0.05  # of a step
SHOWN_SIZES = 3  # in a terminal; Markdown and the exports have all


def clocks_title(rows: Sequence[Cell]) -> str:
    """What the columns are, and the one unit of all times."""
    return f"Four clocks (medians, {_unit(in_service(rows)).name}), and where the time of a sustained step goes"


def clocks_columns(rows: Sequence[Cell], *, every_row: bool = False) -> list[Column]:
    """A row a cell whose sustained time was measured on a GPU, default tiles alone; empty without one.

    Times are medians; sustained is of bursts with a warm cache, as are the shares of it.
    every_row: token counts are not left blank where they repeat.
    """
    shown = in_service(rows)
    if not shown:
        return []
    times = _unit(shown)

    def medians(estimates: Iterable[Estimate | None]) -> list[str]:
        return [times.text(each.median) if each else "" for each in estimates]

    tokens = [
        str(cell.num_tokens) if every_row or not row or shown[row - 1].num_tokens != cell.num_tokens else ""
        for row, cell in enumerate(shown)
    ]
    margins = ["" if cell.margin_s is None else signed(cell.margin_s, times) for cell in shown]
    return [
        Column("tokens", 0, tokens),
        Column("mode", 0, [cell.way for cell in shown], right=False),
        Column("device", 6, medians(cell.device_s for cell in shown)),
        Column("latency", 5, medians(cell.latency_s for cell in shown)),
        Column("sustained", 0, medians(cell.sustained_s for cell in shown)),
        Column("submit", 8, medians(cell.submit_s for cell in shown)),  # it stands above, as device does
        Column("margin", 2, margins),
        Column("bound", 3, [bound_text(cell) for cell in shown], right=False),
        *(_part(shown, part) for part in BUDGET_PARTS),
    ]


def clocks_remarks(rows: Sequence[Cell]) -> Iterator[str]:
    """What the columns mean whose names are too short to say it; nothing without a row."""
    if in_service(rows):
        yield (
            "margin is device - submit: by so much the device may get faster before the host is the limit; busy, gaps "
            "(launch), stalls (host) and waits (sync) are shares of sustained"
        )


def in_service(cells: Iterable[Cell]) -> list[Cell]:
    """The cells with default tiles that have a step budget, in their order."""
    return [cell for cell in cells if cell.budget and cell.budget.total_s and not cell.tiles]


def spread(cells: Sequence[Cell], most: int) -> list[int]:
    """At most so many of the cells' token counts, evenly over their order, the smallest and the largest among them."""
    counts = sorted({cell.num_tokens for cell in cells})
    if len(counts) <= most:
        return counts
    return [counts[round(place * (len(counts) - 1) / (most - 1))] for place in range(most)]


def bound_text(cell: Cell) -> Text:
    """`host 7.3x` in a colour that is seen, or the plain word."""
    return Text(sentences.bound(cell), style="yellow" if cell.bound == "host" else "")


def _part(rows: Sequence[Cell], part: str) -> Column:
    """GPU busy and launch gaps stay longest; a part that is nowhere much of a step goes first."""
    values = [getattr(cell.budget, part) / cell.budget.total_s for cell in rows if cell.budget]
    rank = 1 if part in ("busy_s", "launch_gap_s") else 4 if max(values) >= LITTLE else 9
    return Column(BUDGET_PARTS[part].name, rank, [percent(value) for value in values])


def _unit(rows: Sequence[Cell]) -> Unit:
    clocks: tuple[Callable[[Cell], Estimate | None], ...] = (
        lambda cell: cell.device_s,
        lambda cell: cell.latency_s,
        lambda cell: cell.sustained_s,
        lambda cell: cell.submit_s,
    )
    return time_unit(time.median for cell in rows for clock in clocks if (time := clock(cell)))
