"""Progress of a sweep: a bar with the time left on a terminal, one line a measurement elsewhere.

Where the sweep's running figures are handed in, a terminal shows the cells told of last with them, and a line ends
with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from statistics import median
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column as TableColumn
from rich.table import Table
from rich.text import Text

from mlaprof.analysis.running import RunningCell
from mlaprof.facts import KernelResources
from mlaprof.records import AnyMeasurement, Event, KernelMeasurement, Started, work
from mlaprof.report.style import STATUS, VERDICT
from mlaprof.report.units import faster, plus_minus, seconds, size

BAR_CELLS = 10
BOARD_ROWS = 8
GAP, LEAST_KEY = 2, 16  # columns of a terminal, between those of the board and for a key


class Show(Protocol):
    """Told of each event of a sweep as it happens, and of what is known of its key then."""

    def __call__(self, event: Event, cell: RunningCell | None = None) -> None: ...


@contextmanager
def progress(total: int, console: Console) -> Iterator[Show]:
    """Shows `total` measurements being made; `console` is usually the one of stderr."""
    if not console.is_terminal:
        lines = _Lines(total, console)
        yield lines.show
        lines.finish()
        return
    columns = (
        BarColumn(BAR_CELLS),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}", markup=False, table_column=TableColumn(no_wrap=True)),
    )
    with _Board(*columns, console=console, transient=True) as bar:
        yield _bar(bar, bar.add_task("sweep", total=total, now=""))


class _Lines:
    """A line a measurement; of many cells with one tile configuration, the compile facts are told once."""

    def __init__(self, total: int, console: Console) -> None:
        self._total = total
        self._console = console
        self._shown: set[str] = set()  # after a lost host one may be told of again
        self._told: set[tuple[KernelResources, ...]] = set()
        self._silent = 0

    def show(self, event: Event, cell: RunningCell | None = None) -> None:
        if isinstance(event, Started):
            return
        self._shown.add(_work(event))
        if not isinstance(event, KernelMeasurement) and event.outcome.status == "compiled":
            if event.resources in self._told:
                self._silent += 1
                return
            self._told.add(event.resources)
        plain = self._console.options.ascii_only
        line = finished_line(event, ascii_only=plain)
        if cell is not None and (text := standing(cell, ascii_only=plain)):
            line.append(f" | {text}", style="default")
        self._print(line)

    def finish(self) -> None:
        if self._silent:
            cells = "1 more cell" if self._silent == 1 else f"{self._silent} more cells"
            self._print(Text(f"{cells} compiled with the same tiles and facts"))

    def _print(self, text: Text) -> None:
        line = Text(f"[{len(self._shown):>{len(str(self._total))}}/{self._total}] ")
        self._console.print(line.append_text(text), soft_wrap=True)


class _Board(Progress):
    """The bar, and below it the cells that were told of last."""

    def __init__(self, *columns: ProgressColumn, console: Console, transient: bool) -> None:
        self._cells: dict[str, RunningCell] = {}
        super().__init__(*columns, console=console, transient=transient)

    def told(self, cell: RunningCell) -> None:
        """A cell as it stands, in the place of what was told of it before."""
        self._cells.pop(cell.key, None)
        self._cells[cell.key] = cell

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if not self._cells:
            return
        room = min(BOARD_ROWS, self.console.height - 4)
        if shown := list(self._cells.values())[-room:] if room > 0 else []:
            yield _table(shown, self.console.width, ascii_only=self.console.options.ascii_only)


def _table(cells: Sequence[RunningCell], width: int, *, ascii_only: bool) -> Table:
    """A row a cell. Where there is no room for all of a key, its end stays, which tells the cells apart."""
    columns = ("proc.", "device", "over baseline", "verdict", "done in")
    rows = [_parts(cell, ascii_only=ascii_only) for cell in cells]
    others = sum(max(map(len, texts)) + GAP for texts in zip(columns, *rows, strict=True))
    room = max(LEAST_KEY, width - others - GAP)
    stamp = "EMULATED so far" if any(cell.emulated for cell in cells) else "so far"
    table = Table(box=None, padding=(0, GAP, 0, 0), show_edge=False)
    table.add_column(stamp, no_wrap=True)
    for name in columns:
        table.add_column(name, no_wrap=True, justify="left" if name == "verdict" else "right")
    for cell, row in zip(cells, rows, strict=True):
        table.add_row(
            cell.key if len(cell.key) <= room else f"{'~' if ascii_only else '…'}{cell.key[1 - room :]}", *row
        )
    return table


def _parts(cell: RunningCell, *, ascii_only: bool) -> tuple[str, str, str, str, str]:
    """Processes, median and interval, speed-up, verdict, time left of a cell; empty what is not known."""
    sign = "+-" if ascii_only else "±"
    return (
        f"{cell.processes}/{cell.planned}",
        f"{seconds(cell.device_s.median)} {plus_minus(cell.device_s, sign)}" if cell.device_s else "",
        f"{faster(cell.speedup.median)} {plus_minus(cell.speedup, sign)}" if cell.speedup else "",
        VERDICT[cell.verdict].text(ascii_only) if cell.verdict else "",
        "" if cell.left_s is None or not cell.left_s else _clock(cell.left_s),
    )


def standing(cell: RunningCell, *, ascii_only: bool = False) -> str:
    """`so far 123.4 us ±0.4% (2/3 processes), 1.12x faster ±0.6% FASTER, done in 0:00:40`; empty without a time."""
    processes, device, speedup, _, left = _parts(cell, ascii_only=ascii_only)
    if not device:
        return ""
    told = [f"so far {device} ({processes} processes)"]
    if speedup:
        told.append(f"{speedup} {cell.verdict}" if cell.verdict else speedup)
    return ", ".join([*told, f"done in {left}"] if left else told)


def _clock(left_s: float) -> str:
    """`0:01:40`"""
    return str(timedelta(seconds=round(left_s)))


def _bar(bar: _Board, task: TaskID) -> Show:
    plain = bar.console.options.ascii_only
    # Rich would rather shorten the time left than the text behind it.
    room = bar.console.width - BAR_CELLS - len(" 000/000 left 00:00:00 ")

    told: set[str] = set()

    def now(text: Text) -> str:
        text.truncate(max(room, 1), overflow="crop" if plain else "ellipsis")
        return text.plain

    def show(event: Event, cell: RunningCell | None = None) -> None:
        if cell is not None and cell.device_s is not None:
            bar.told(cell)
        if isinstance(event, Started):
            bar.update(task, now=now(Text(f"{event.kind} {event.key} ({event.stage})")))
            return
        line = finished_line(event, ascii_only=plain)
        told.add(_work(event))
        bar.update(task, completed=len(told), now=now(line.copy()))
        if event.outcome.status in ("failed", "incorrect"):  # must not scroll away with the next cell
            bar.console.print(line, soft_wrap=True)

    return show


def finished_line(measurement: AnyMeasurement, *, ascii_only: bool = False) -> Text:
    """`✓ ok timing v3.2/prefill/t64/ctx0/full 123.4 us`; of the second process that does the same `timing#2`."""
    look = STATUS[measurement.outcome.status]
    line = Text(look.text(ascii_only), style=look.colour)
    line.append(f" {_work(measurement)} ", style="default")
    return line.append(_result(measurement), style="default")


def _work(measurement: AnyMeasurement) -> str:
    return work(measurement.kind, measurement.point.key, measurement.process)


def _result(measurement: AnyMeasurement) -> str:
    if measurement.outcome.status not in ("ok", "compiled"):
        return " ".join(f"{measurement.outcome.stage}: {measurement.outcome.cause}".split())
    timed = measurement.timing or (None if isinstance(measurement, KernelMeasurement) else measurement.noise)
    if timed and timed.device_s:
        stamp = " emulated" if measurement.emulated else ""
        return f"{seconds(median(timed.device_s))}{stamp}"
    if isinstance(measurement, KernelMeasurement):
        return ""
    if measurement.memory:
        return f"graph pool {size(measurement.memory.graph_pool_bytes)}"
    if measurement.counts:
        counts = measurement.counts
        return (
            f"{counts.kernel_launches} kernel + {counts.graph_launches} graph launches, {counts.syncs} syncs"
            f"{'' if counts.complete else ', incomplete'}"
        )
    if measurement.dispatch:
        tax = measurement.dispatch
        return f"{seconds(tax.define_s - tax.bare_s)} an operator above its function"
    return ", ".join(
        f"{each.kernel} {each.registers} registers {size(each.shared_bytes)} shared" for each in measurement.resources
    )
