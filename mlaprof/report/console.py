"""The tables of a summary in the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from mlaprof.analysis.cells import Cell, Floor, Summary
from mlaprof.analysis.groups import Group, groups
from mlaprof.facts import KernelResources
from mlaprof.report import sentences
from mlaprof.report.capture_tables import (
    BOUNDARY_TITLE,
    BREAKABLE_TITLE,
    LEDGER_TITLE,
    boundary_columns,
    breakable_columns,
    ledger_columns,
)
from mlaprof.report.cells_table import DRIVER_TITLE, cell_columns, driver_columns, legend
from mlaprof.report.clocks_table import SHOWN_SIZES, clocks_columns, clocks_remarks, clocks_title, in_service, spread
from mlaprof.report.columns import Column, print_columns
from mlaprof.report.lines import print_wrapped, styled
from mlaprof.report.style import STATUS
from mlaprof.report.units import size


def print_summary(summary: Summary, console: Console) -> None:
    """A table for each (preset, phase, context length), then compile facts, what went wrong, and warnings."""
    for group in groups(summary):
        _print_group(summary, group, console)
    _print_resources(summary, console)
    _print_trouble(summary, console)
    for found in summary.findings:
        heading = sentences.heading(found)
        colour = "yellow" if heading == "warning" else "bright_black"
        print_wrapped(f"{heading}: {sentences.finding(found, summary)}", console, colour)


def _print_group(summary: Summary, group: Group, console: Console) -> None:
    rows = [cell for cell in group.cells if cell.outcome != "compiled"]
    compiled = len(group.cells) - len(rows)
    stamp = "EMULATED " if any(cell.emulated and cell.timed for cell in rows) else ""
    title = f"{stamp}{group.preset} {sentences.placed(group.phase, group.context_len)}"
    print_wrapped(f"\n{title} | {summary.processor} | {sentences.conditions(summary, rows)}", console, "bold")
    if compiled:
        cells = "1 cell was" if compiled == 1 else f"{compiled} cells were"
        print_wrapped(f"{cells} compiled, not timed: compile facts below", console, "bright_black")
    if rows:
        columns = cell_columns(rows, group.means, floor=summary.floor, ascii_only=console.options.ascii_only)
        dropped = print_columns(columns, console, last_rows=len(group.means), instead=", or use --format csv")
        if remark := legend(group, summary.floor):
            print_wrapped(remark, console, "bright_black")
        if any(column.title == "eager kernels" for column in dropped):
            _print_titled(DRIVER_TITLE, driver_columns(rows, ascii_only=console.options.ascii_only), console)
        _print_clocks(rows, console)
        if not group.ledgers and any(column.title.startswith("pool") for column in dropped):
            _print_memory(rows, console)
        _print_capture(group, summary.floor, console)
    console.print()


def _print_clocks(rows: Sequence[Cell], console: Console) -> None:
    """Of many sizes a few: the table is for the shape of it, `--format md` for each number."""
    served = in_service(rows)
    sizes = spread(served, SHOWN_SIZES)
    shown = [cell for cell in served if cell.num_tokens in sizes]
    if not shown:
        return
    _print_titled(clocks_title(shown), clocks_columns(shown), console)
    for remark in clocks_remarks(shown):
        print_wrapped(remark, console, "bright_black")
    if len(shown) < len(served):
        print_wrapped("the sizes between these: --format md", console, "bright_black")


def _print_capture(group: Group, floor: Floor | None, console: Console) -> None:
    """What capturing buys and costs in this group, as far as it was measured."""
    ascii_only = console.options.ascii_only
    _print_titled(BREAKABLE_TITLE, breakable_columns(group, floor=floor, ascii_only=ascii_only), console)
    _print_titled(BOUNDARY_TITLE, boundary_columns(group.boundary_prices, floor=floor, ascii_only=ascii_only), console)
    for sentence in sentences.unpriced(group.boundary_prices):
        print_wrapped(sentence, console, "bright_black")
    _print_titled(LEDGER_TITLE, ledger_columns(group.ledgers), console)
    for sentence in sentences.residuals(group.ledgers):
        print_wrapped(sentence, console, "yellow")


def _print_titled(title: str, columns: Sequence[Column], console: Console) -> None:
    if columns:
        print_wrapped(f"\n{title}", console, "bold")
        print_columns(columns, console, instead=", or use --format md")


def _print_memory(rows: list[Cell], console: Console) -> None:
    """A row a mode at its largest size: what remains of the memory columns on a narrow terminal."""
    modes = dict.fromkeys(cell.way for cell in rows if cell.memory)
    largest = [max((c for c in rows if c.way == mode and c.memory), key=lambda c: c.num_tokens) for mode in modes]
    uses = [cell.memory for cell in largest if cell.memory]
    pools = [max(c.memory.graph_pool_bytes for c in rows if c.way == mode and c.memory) for mode in modes]
    print_wrapped("\nMemory at the largest size; the graph pool is that of all sizes", console, "bold")
    print_columns(
        [
            Column("mode", 0, list(modes), right=False),
            Column("tokens", 3, [str(cell.num_tokens) for cell in largest]),
            Column("weights", 1, [size(use.weights_bytes) for use in uses]),
            Column("caches", 1, [size(use.caches_bytes) for use in uses]),
            Column("buffers", 2, [size(use.buffers_bytes) for use in uses]),
            Column("graph pool", 0, [size(pool) for pool in pools]),
            Column("peak", 1, [size(use.allocator_peak_bytes) if use.allocator_peak_bytes else "" for use in uses]),
        ],
        console,
    )


def _print_resources(summary: Summary, console: Console) -> None:
    counts: Counter[KernelResources] = Counter(each for cell in summary.cells for each in cell.resources)
    if not counts:
        return
    rows = list(counts)
    targets = ", ".join(sorted({each.target for each in rows}))
    print_wrapped(f"Compiled for {targets}: what each block costs, no time", console, "bold")
    print_columns(
        [
            Column("kernel", 0, [each.kernel for each in rows], right=False),
            Column("tiles", 0, [each.tiles or "default" for each in rows], right=False),
            Column("registers", 0, [str(each.registers) for each in rows]),
            Column("shared", 0, [size(each.shared_bytes) for each in rows]),
            Column("stack B", 1, [str(each.stack_bytes) for each in rows]),
            Column("target", 2, [each.target for each in rows] if "," in targets else [""] * len(rows)),
            Column("cells", 3, [str(counts[each]) for each in rows]),
        ],
        console,
    )
    console.print()


def _print_trouble(summary: Summary, console: Console) -> None:
    for outcome, sentence in sentences.troubles(summary):
        if outcome is None:
            print_wrapped(sentence, console)
            continue
        line = styled(STATUS[outcome], console)
        line.append(f" {sentence}", style="default")
        console.print(line)
