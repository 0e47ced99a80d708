"""Progress of a sweep: a bar with the time left on a terminal, one line a measurement elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column as TableColumn
from rich.text import Text

from mlaprof.facts import KernelResources
from mlaprof.records import AnyMeasurement, Event, KernelMeasurement, Started, work
from mlaprof.report.style import STATUS
from mlaprof.report.units import seconds, size

BAR_CELLS = 10
Show = Callable[[Event], None]
"""Told of each event of a sweep as it happens."""


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
    with Progress(*columns, console=console, transient=True) as bar:
        yield _bar(bar, bar.add_task("sweep", total=total, now=""))


class _Lines:
    """A line a measurement; of many cells with one tile configuration, the compile facts are told once."""

    def __init__(self, total: int, console: Console) -> None:
        self._total = total
        self._console = console
        self._shown = 0
        self._told: set[tuple[KernelResources, ...]] = set()
        self._silent = 0

    def show(self, event: Event) -> None:
        if isinstance(event, Started):
            return
        self._shown += 1
        if not isinstance(event, KernelMeasurement) and event.outcome.status == "compiled":
            if event.resources in self._told:
                self._silent += 1
                return
            self._told.add(event.resources)
        self._print(finished_line(event, ascii_only=self._console.options.ascii_only))

    def finish(self) -> None:
        if self._silent:
            cells = "1 more cell" if self._silent == 1 else f"{self._silent} more cells"
            self._print(Text(f"{cells} compiled with the same tiles and facts"))

    def _print(self, text: Text) -> None:
        line = Text(f"[{self._shown:>{len(str(self._total))}}/{self._total}] ")
        self._console.print(line.append_text(text), soft_wrap=True)


def _bar(bar: Progress, task: TaskID) -> Show:
    plain = bar.console.options.ascii_only
    # Rich would rather shorten the time left than the text behind it.
    room = bar.console.width - BAR_CELLS - len(" 000/000 left 00:00:00 ")

    def now(text: Text) -> str:
        text.truncate(max(room, 1), overflow="crop" if plain else "ellipsis")
        return text.plain

    def show(event: Event) -> None:
        if isinstance(event, Started):
            bar.update(task, now=now(Text(f"{event.kind} {event.key} ({event.stage})")))
            return
        line = finished_line(event, ascii_only=plain)
        bar.update(task, advance=1, now=now(line.copy()))
        if event.outcome.status in ("failed", "incorrect"):  # must not scroll away with the next cell
            bar.console.print(line, soft_wrap=True)

    return show


def finished_line(measurement: AnyMeasurement, *, ascii_only: bool = False) -> Text:
    """`✓ ok timing v3.2/prefill/t64/ctx0/full 123.4 us`; of the second process that does the same `timing#2`."""
    look = STATUS[measurement.outcome.status]
    line = Text(look.text(ascii_only), style=look.colour)
    done = work(measurement.kind, measurement.point.key, measurement.process)
    line.append(f" {done} ", style="default")
    return line.append(_result(measurement), style="default")


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
