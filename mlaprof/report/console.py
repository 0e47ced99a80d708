"""The tables of a summary in the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from mlaprof.analysis.cells import BASELINE, Cell, Group, ModeMean, Summary, groups
from mlaprof.analysis.stats import Estimate
from mlaprof.records import KernelResources
from mlaprof.report import sentences
from mlaprof.report.columns import Column, print_columns
from mlaprof.report.lines import keys_by_reason, print_wrapped, styled
from mlaprof.report.style import STATUS
from mlaprof.report.units import faster, plus_minus, significant, size, size_unit, time_unit


def print_summary(summary: Summary, console: Console) -> None:
    """A table for each (preset, phase, context length), then compile facts, what went wrong, and warnings."""
    for group in groups(summary):
        _print_group(summary, group, console)
    _print_resources(summary, console)
    _print_trouble(summary, console)
    for found in summary.findings:
        print_wrapped(f"warning: {sentences.finding(found, summary)}", console, "yellow")


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
        dropped = print_columns(
            _columns(rows, group.means, console), console, last_rows=len(group.means), instead=", or use --format csv"
        )
        if any(cell.speedup and _unclear(cell.speedup) for cell in rows):
            print_wrapped("~ the interval of the speed-up includes 1.0", console, "bright_black")
        if any(column.title.startswith("pool") for column in dropped):
            _print_memory(rows, console)
    console.print()


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


def _columns(rows: list[Cell], means: Sequence[ModeMean], console: Console) -> list[Column]:
    times = time_unit(each.median for cell in rows for each in (cell.device_s, cell.submit_s) if each)
    sizes = size_unit(
        value
        for cell in rows
        if cell.memory
        for value in (cell.memory.allocator_peak_bytes, cell.memory.graph_pool_bytes)
        if value
    )
    sign = "+-" if console.options.ascii_only else "±"
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
        Column("mode", 0, [*(cell.way for cell in rows), *(mean.way for mean in means)], right=False),
        Column(kernel or "tiles", 0, labels, right=False) if kernel is not None else Column("tiles", 9, labels),
        Column("status", 0, [*(styled(STATUS[cell.outcome], console) for cell in rows), *blank], right=False),
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
    troubled = [cell for cell in summary.cells if cell.outcome not in ("ok", "compiled")]
    for outcome in ("incorrect", "failed", "missing", "skipped"):
        cells = [cell for cell in troubled if cell.outcome == outcome]
        for reason, keys in keys_by_reason((_reason(cell), cell.key) for cell in cells).items():
            line = styled(STATUS[outcome], console)
            line.append(f" {reason or 'no reason given'} ({keys})", style="default")
            console.print(line)
    for note, keys in keys_by_reason((note, cell.key) for cell in summary.cells for note in cell.notes).items():
        print_wrapped(f"note: {note} ({keys})", console)


def _reason(cell: Cell) -> str:
    parts = [f"at {cell.stage}:" if cell.stage else "", cell.reason]
    if cell.outcome == "incorrect":
        parts += [f"[{c.name} {c.value:.3g} > {c.limit:.3g}]" for c in cell.checks if not c.passed]
    return " ".join(part for part in parts if part)
