"""Tables that fit the terminal: whole columns go, the least needed first, and are named. And as Markdown, whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import ASCII, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlaprof.report.lines import print_wrapped


@dataclass(frozen=True)
class Column:
    """One column of a table. rank 0 always stays; the highest rank goes first when the terminal is narrow."""

    title: str
    rank: int
    cells: Sequence[Text | str]
    right: bool = True

    @property
    def width(self) -> int:
        return max(Text(self.title).cell_len, *(_text(cell).cell_len for cell in self.cells))

    @property
    def empty(self) -> bool:
        return not any(str(cell).strip() for cell in self.cells)


def print_columns(
    columns: Sequence[Column], console: Console, *, last_rows: int = 0, instead: str = ""
) -> list[Column]:
    """A table of the columns that are not empty and fit; says and returns which did not.

    The last_rows stand below a rule; `instead` names another way to the columns that did not fit.
    """
    kept = [column for column in columns if column.rank == 0 or not column.empty]
    dropped: list[Column] = []
    gap = 2
    while sum(column.width + gap for column in kept) - gap > console.width and any(column.rank for column in kept):
        least = max(kept, key=lambda column: column.rank)
        kept.remove(least)
        dropped.append(least)
    table = Table(
        box=ASCII if console.options.ascii_only else SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    for column in kept:
        table.add_column(_text(column.title), justify="right" if column.right else "left", overflow="fold")
    rows = list(zip(*(column.cells for column in kept), strict=True))
    optional = [place for place, column in enumerate(kept) if column.rank]
    for number, row in enumerate(rows):
        if number >= len(rows) - last_rows and not any(str(row[place]) for place in optional):
            continue  # what it had to say went with a column
        table.add_row(*(_text(cell) for cell in row), end_section=number == len(rows) - 1 - last_rows)
    console.print(table)
    if dropped:
        names = ", ".join(column.title for column in reversed(dropped))
        print_wrapped(f"too narrow for: {names} (widen the terminal{instead})", console, "bright_black")
    return dropped


def markdown(columns: Sequence[Column]) -> str:
    """A Markdown table of the columns that are not empty; a bar or a line break in a cell splits no row."""
    kept = [column for column in columns if column.rank == 0 or not column.empty]
    rows = [[column.title for column in kept], *zip(*(column.cells for column in kept), strict=True)]
    lines = [f"| {' | '.join(_escaped(str(cell)) for cell in row)} |" for row in rows]
    rule = "|".join("---:" if column.right else "---" for column in kept)
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def _text(cell: Text | str) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)
