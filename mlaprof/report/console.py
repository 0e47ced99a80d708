"""The tables of a summary and of a comparison, and errors, in the terminal (Rich)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import ASCII, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlaprof.analysis.compare import VERDICTS, Comparison, Delta, Difference
from mlaprof.analysis.stats import Estimate
from mlaprof.analysis.summary import BASELINE, Cell, Group, ModeMean, Summary, groups
from mlaprof.errors import MlaprofError
from mlaprof.records import KernelResources
from mlaprof.report import sentences
from mlaprof.report.style import STATUS, VERDICT, Look
from mlaprof.report.units import change, faster, plus_minus, significant, size, size_unit, time_unit

SHOWN_KEYS = 3  # of many cells with one reason
SHOWN_NOTES = 10  # of many complaints about one study


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


def print_summary(summary: Summary, console: Console) -> None:
    """A table for each (preset, phase, context length), then compile facts, what went wrong, and warnings."""
    for group in groups(summary):
        _print_group(summary, group, console)
    _print_resources(summary, console)
    _print_trouble(summary, console)
    for found in summary.findings:
        _print(console, f"warning: {sentences.finding(found, summary)}", "yellow")


def print_comparison(comparison: Comparison, console: Console) -> None:
    """What differs around the runs, a verdict a cell with the gravest first, and a geometric mean a mode."""
    base, new = comparison.base, comparison.new
    _print(console, f"base {base.run_id}: {sentences.processor(base)}", "bold")
    _print(console, f"new  {new.run_id}: {sentences.processor(new)}", "bold")
    for difference in comparison.mismatches:
        _print(console, f"MISMATCH {_differs(difference)}: ratios across it mean nothing", "bold red")
    for difference in comparison.notes:
        _print(console, f"note: {_differs(difference)}", "bright_black")

    deltas = sorted(comparison.deltas, key=lambda delta: VERDICTS.index(delta.verdict))
    if deltas:
        _print_deltas(comparison, deltas, console)
    else:
        _print(console, "no cell was timed in either run", "yellow")
    for text, keys in _by_reason((f"{d.verdict}: {d.reason}", d.key) for d in deltas if d.reason).items():
        _print(console, f"{text} ({_listed(keys)})")
    counts = Counter(delta.verdict for delta in deltas)
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    _print(console, f"{tally or 'nothing compared'} at a threshold of {comparison.threshold:.1%}", "bold")
    if comparison.mismatches:
        _print(console, "warning: the runs are of different kinds. Measure both on one machine, one way.", "yellow")
    if counts["AMBIGUOUS"]:
        _print(
            console,
            "warning: an ambiguous interval reaches over the threshold. Raise measure.max_samples and "
            "measure.min_time_s in both runs, or compare with a larger threshold.",
            "yellow",
        )


def print_error(error: MlaprofError, console: Console) -> None:
    """One red line: where, what, remedy. Plain lines below it name what else is wrong, as the error's notes have it."""
    print_line(f"error: {error}", console, "bold red")
    notes: list[str] = getattr(error, "__notes__", [])
    if notes:
        print_line(f"and {len(notes)} more:", console)
    for note in notes[:SHOWN_NOTES]:
        print_line(f"  {note}", console)
    if len(notes) > SHOWN_NOTES:
        print_line("  ...", console)


def print_line(text: str, console: Console, style: str = "") -> None:
    """One line, however long and whatever is in it."""
    indent = " " * (len(text) - len(text.lstrip()))
    console.print(Text(indent + " ".join(text.split()), style=style), soft_wrap=True)


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
        _print(console, f"too narrow for: {names} (widen the terminal{instead})", "bright_black")
    return dropped


def _print_group(summary: Summary, group: Group, console: Console) -> None:
    rows = [cell for cell in group.cells if cell.outcome != "compiled"]
    compiled = len(group.cells) - len(rows)
    stamp = "EMULATED " if any(cell.emulated and cell.timed for cell in rows) else ""
    title = f"{stamp}{group.preset} {sentences.placed(group.phase, group.context_len)}"
    _print(console, f"\n{title} | {summary.processor} | {sentences.conditions(summary, rows)}", "bold")
    if compiled:
        cells = "1 cell was" if compiled == 1 else f"{compiled} cells were"
        _print(console, f"{cells} compiled, not timed: compile facts below", "bright_black")
    if rows:
        dropped = print_columns(
            _columns(rows, group.means, console), console, last_rows=len(group.means), instead=", or use --format csv"
        )
        if any(cell.speedup and _unclear(cell.speedup) for cell in rows):
            _print(console, "~ the interval of the speed-up includes 1.0", "bright_black")
        if any(column.title.startswith("pool") for column in dropped):
            _print_memory(rows, console)
    console.print()


def _print_memory(rows: list[Cell], console: Console) -> None:
    """A row a mode at its largest size: what remains of the memory columns on a narrow terminal."""
    modes = dict.fromkeys(cell.mode for cell in rows if cell.memory)
    largest = [max((c for c in rows if c.mode == mode and c.memory), key=lambda c: c.num_tokens) for mode in modes]
    uses = [cell.memory for cell in largest if cell.memory]
    pools = [max(c.memory.graph_pool_bytes for c in rows if c.mode == mode and c.memory) for mode in modes]
    _print(console, "\nMemory at the largest size; the graph pool is that of all sizes", "bold")
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


def _columns(rows: list[Cell], means: Sequence[ModeMean], console: Console) -> list[Column]:
    times = time_unit(each.median for cell in rows for each in (cell.device_s, cell.submit_s) if each)
    sizes = size_unit(
        value
        for cell in rows
        if cell.memory
        for value in (cell.memory.allocator_peak_bytes, cell.memory.graph_pool_bytes)
        if value
    )
    plain = console.options.ascii_only
    sign = "+-" if plain else "±"
    blank = [""] * len(means)

    def medians(estimates: Iterable[Estimate | None]) -> list[str]:
        return [times.text(each.median) if each else "" for each in estimates]

    tokens = [
        str(cell.num_tokens) if not number or rows[number - 1].num_tokens != cell.num_tokens else ""
        for number, cell in enumerate(rows)
    ]
    kernel, labels = _tile_labels([*(cell.tiles for cell in rows), *(mean.tiles for mean in means)])
    return [
        Column("tokens", 0, [*tokens, *("geomean" for _ in means)]),
        Column("mode", 0, [*(cell.mode for cell in rows), *(mean.mode for mean in means)], right=False),
        Column(kernel or "tiles", 0, labels, right=False) if kernel is not None else Column("tiles", 9, labels),
        Column("status", 0, [*(_look(STATUS[cell.outcome], plain) for cell in rows), *blank], right=False),
        Column(f"device {times.name}", 0, [*medians(cell.device_s for cell in rows), *blank]),
        Column(f"{sign}CI", 3, [*(plus_minus(c.device_s, sign) if c.device_s else "" for c in rows), *blank]),
        Column("speed-up", 1, [*(_speedup(cell) for cell in rows), *(_ratio_text(mean.speedup) for mean in means)]),
        Column(f"submit {times.name}", 4, [*medians(cell.submit_s for cell in rows), *blank]),
        Column("bound", 2, [*(_bound(cell) for cell in rows), *blank], right=False),
        Column(f"pool {sizes.name}", 5, [*(_memory(c, "graph_pool_bytes", sizes.scale) for c in rows), *blank]),
        Column(f"peak {sizes.name}", 6, [*(_memory(c, "allocator_peak_bytes", sizes.scale) for c in rows), *blank]),
        Column("SM MHz", 7, [*(f"{c.sm_clock_hz / 1e6:.0f}" if c.sm_clock_hz else "" for c in rows), *blank]),
        Column("launches", 8, [*(str(c.graph.graph_launches) if c.graph else "" for c in rows), *blank]),
    ]


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


def _speedup(cell: Cell) -> Text | str:
    if cell.mode == BASELINE and not cell.tiles and cell.speedup:
        return Text("baseline", style="bright_black")
    return _ratio_text(cell.speedup) if cell.speedup else ""


def _bound(cell: Cell) -> Text:
    return Text(sentences.bound(cell), style="yellow" if cell.bound == "host" else "")


def _ratio_text(speedup: Estimate) -> Text:
    if _unclear(speedup):
        return Text(f"~{speedup.median:.2f}x")
    return Text(faster(speedup.median), style="green" if speedup.median > 1 else "red")


def _unclear(speedup: Estimate) -> bool:
    return speedup.ci_low <= 1 <= speedup.ci_high and speedup.ci_low != speedup.ci_high


def _print_resources(summary: Summary, console: Console) -> None:
    counts: Counter[KernelResources] = Counter(each for cell in summary.cells for each in cell.resources)
    if not counts:
        return
    rows = list(counts)
    targets = ", ".join(sorted({each.target for each in rows}))
    _print(console, f"Compiled for {targets}: what each block costs, no time", "bold")
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
    troubled = [cell for cell in summary.cells if cell.outcome not in ("ok", "compiled")]
    plain = console.options.ascii_only
    for outcome in ("incorrect", "failed", "missing", "skipped"):
        cells = [cell for cell in troubled if cell.outcome == outcome]
        look = STATUS[outcome]
        for reason, keys in _by_reason((_reason(cell), cell.key) for cell in cells).items():
            line = _look(look, plain)
            line.append(f" {reason or 'no reason given'} ({_listed(keys)})", style="default")
            console.print(line)
    for note, keys in _by_reason((note, cell.key) for cell in summary.cells for note in cell.notes).items():
        _print(console, f"note: {note} ({_listed(keys)})")


def _reason(cell: Cell) -> str:
    parts = [f"at {cell.stage}:" if cell.stage else "", cell.reason]
    if cell.outcome == "incorrect":
        parts += [f"[{c.name} {c.value:.3g} > {c.limit:.3g}]" for c in cell.checks if not c.passed]
    return " ".join(part for part in parts if part)


def _by_reason(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for reason, key in pairs:
        found.setdefault(reason, []).append(key)
    return found


def _listed(keys: list[str]) -> str:
    more = len(keys) - SHOWN_KEYS
    return ", ".join(keys[:SHOWN_KEYS]) + (f" and {more} more" if more > 0 else "")


def _print_deltas(comparison: Comparison, deltas: list[Delta], console: Console) -> None:
    plain = console.options.ascii_only
    unit = time_unit(
        cell.device_s.median for delta in deltas for cell in (delta.base, delta.new) if cell and cell.device_s
    )
    means = comparison.means

    def median(cell: Cell | None) -> str:
        return unit.text(cell.device_s.median) if cell and cell.device_s else ""

    ratios = [*(delta.ratio for delta in deltas), *means.values()]
    blank = [""] * len(means)
    print_columns(
        [
            Column("verdict", 0, [*(_look(VERDICT[d.verdict], plain) for d in deltas), *blank], right=False),
            Column("cell", 0, [*(d.key for d in deltas), *(f"geomean {mode}" for mode in means)], right=False),
            Column("new / base", 0, [f"{each.median:.3f}" if each else "" for each in ratios]),
            Column("95% CI", 1, [f"{e.ci_low:.3f} {e.ci_high:.3f}" if e else "" for e in ratios]),
            Column("change", 2, [change(each.median) if each else "" for each in ratios], right=False),
            Column(f"new {unit.name}", 3, [*(median(d.new) for d in deltas), *blank]),
            Column(f"base {unit.name}", 4, [*(median(d.base) for d in deltas), *blank]),
        ],
        console,
        last_rows=len(means),
    )


def _differs(difference: Difference) -> str:
    return f"{difference.name}: {difference.base} -> {difference.new}"


def _look(look: Look, plain: bool) -> Text:
    return Text(look.text(plain), style=look.colour)


def _text(cell: Text | str) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def _print(console: Console, line: str, style: str = "") -> None:
    # Text, not markup: a reason such as `shape [3, 5]` keeps its brackets.
    console.print(Text(line.replace("±", "+-") if console.options.ascii_only else line, style=style))
