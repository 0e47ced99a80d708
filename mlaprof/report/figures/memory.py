"""Memory by way: stacked bars of its parts, from the ledger where the run has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlaprof.analysis.cells import Summary
from mlaprof.analysis.groups import Group
from mlaprof.facts import Ledger, MemoryUse
from mlaprof.report.figures.canvas import canvas, legend_above
from mlaprof.report.figures.ways import by_way
from mlaprof.report.sentences import RESIDUAL_LIMIT_BYTES
from mlaprof.report.style import LEDGER_PARTS, MEMORY_PARTS, MEMORY_REST
from mlaprof.report.units import significant, size_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Parts = Sequence[tuple[str, str, str]]  # (part, label, colour)
MEASURED = "what the device reports"


@dataclass(frozen=True)
class _Stack:
    """The parts of one way in bytes, and what the device reports as used, which they should sum to."""

    parts: dict[str, int]
    device_bytes: int | None = None


def memory(summary: Summary, group: Group) -> Figure | None:
    """Stacked bars a way, and a second panel without what dwarfs the rest and is the same for all.

    From the ledgers of the processes, all sizes captured, with a mark where the device's own count ends; in runs
    without ledgers from the largest size, with the graph pool of all sizes together.
    """
    uses = {
        way.name: [cell.memory for cell in cells if cell.memory]
        for way, cells in by_way(group).items()
        if any(cell.memory for cell in cells)
    }
    if not uses:
        return None
    found = group.ledgers
    ledgers = {name: found[name] for name in uses if name in found}
    largest = max(cell.num_tokens for cell in group.cells if cell.memory)
    dwarfing: tuple[str, ...]
    if ledgers:
        parts = _parts(LEDGER_PARTS)
        stacks = {name: _of_ledger(ledger) for name, ledger in ledgers.items()}
        title, dwarfing = f"Memory by mode, up to {largest} tokens", ("weights", "caches", "context")
        holds = " and ".join(sorted({ledger.hold for ledger in ledgers.values()}))
        note = f"a process a bar, after all captures; tensors that cross a segment are held: {holds}"
    else:
        parts = _parts({**MEMORY_PARTS, "rest": MEMORY_REST})
        stacks = {name: _of_uses(each) for name, each in uses.items()}
        title, dwarfing = f"Memory by mode at {largest} tokens", ("weights", "caches")
        note = "a bar is the sum of its parts, with the graph pool that all sizes need, not a measured peak"
    height = 3.0 + (0.62 if len(stacks) < 8 else 0.5) * len(stacks)
    figure, (whole, rest) = canvas(summary, group, title, rows=2, height_in=height, timed=False, note=note)
    _bars(whole, stacks, parts, "all")
    without = ", ".join(dwarfing[:-1]) + f" and {dwarfing[-1]}"
    _bars(rest, stacks, parts[len(dwarfing) :], f"without {without}")
    legend_above(whole, ncols=3)
    return figure


def _parts(looks: Mapping[str, tuple[str, str]]) -> Parts:
    return [(name, label, colour) for name, (label, colour) in looks.items()]


def _of_ledger(ledger: Ledger) -> _Stack:
    parts = {
        "pool_bytes": sum(size.pool_bytes for size in ledger.sizes),
        "driver_bytes": sum(size.driver_bytes or 0 for size in ledger.sizes),
    }
    for name in LEDGER_PARTS.keys() - parts.keys():
        parts[name] = getattr(ledger, name) or 0
    return _Stack(parts, ledger.device_bytes)


def _of_uses(uses: Sequence[MemoryUse]) -> _Stack:
    """`rest` is what the allocator's peak at the largest size, the last, holds beyond the named parts."""
    largest = uses[-1]
    parts = {name: int(getattr(largest, name)) for name in MEMORY_PARTS}
    if largest.allocator_peak_bytes is not None:
        parts["rest"] = max(0, largest.allocator_peak_bytes - sum(parts.values()))
    parts["graph_pool_bytes"] = max(use.graph_pool_bytes for use in uses)
    return _Stack(parts)


def _bars(axes: Axes, stacks: dict[str, _Stack], parts: Parts, title: str) -> None:
    """The given parts of every stack; parts that are nowhere have no bar and no place in the legend."""
    shown = [name for name, _, _ in parts]
    totals = [sum(stack.parts.get(name, 0) for name in shown) for stack in stacks.values()]
    unit = size_unit(totals)
    left = [0.0] * len(stacks)
    for name, label, colour in parts:
        widths = [stack.parts.get(name, 0) / unit.scale for stack in stacks.values()]
        if any(widths):
            axes.barh(list(stacks), widths, left=left, color=colour, label=label, height=0.62)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    ends = [_measured(stack, total) for stack, total in zip(stacks.values(), totals, strict=True)]
    marked = [(row, end / unit.scale) for row, end in enumerate(ends) if end is not None]
    if marked:
        rows, places = zip(*marked, strict=True)
        axes.plot(places, rows, "|", color="black", markersize=17, markeredgewidth=1.5, label=MEASURED)
    texts = []
    for row, (total, end) in enumerate(zip(totals, ends, strict=True)):
        residual = 0 if end is None else end - total
        missed = f" (residual {significant(residual / unit.scale)})" if abs(residual) > RESIDUAL_LIMIT_BYTES else ""
        texts.append(f"{significant(total / unit.scale)}{missed}")
        axes.annotate(
            texts[-1],
            (max(total, end or 0) / unit.scale, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    furthest = max(*totals, *(end or 0 for end in ends)) / unit.scale
    room = 1 + 0.018 * max(map(len, texts))
    axes.set_xlim(0, max(furthest * room, 1e-9))
    axes.set_xlabel(f"{title} ({unit.name})")
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(stacks) - 0.5, -0.5)


def _measured(stack: _Stack, total: int) -> int | None:
    """Where the device's own count of the shown parts ends: the residual lies between it and the end of the bar."""
    if stack.device_bytes is None:
        return None
    return total + stack.device_bytes - sum(stack.parts.values())
