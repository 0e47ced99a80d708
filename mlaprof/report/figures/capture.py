"""What capture changes and costs: kernels in graphs and outside by way; seconds and bytes by captured size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mlaprof.analysis.cells import Summary
from mlaprof.analysis.groups import Group
from mlaprof.analysis.stats import Estimate
from mlaprof.facts import SizeFacts, StepCounts
from mlaprof.report.figures.canvas import WIDTH_IN, canvas, legend_above
from mlaprof.report.figures.lines import Arms, draw_lines, finish, plain_log_ticks, scaled
from mlaprof.report.figures.ways import by_way
from mlaprof.report.style import CAPTURED_COLOUR, EAGER_COLOUR
from mlaprof.report.units import size_unit, time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LETTER_IN = 0.075  # width of a letter of the texts beside bars


def counts(summary: Summary, group: Group) -> Figure | None:
    """Kernels of a step in graphs and launched one by one, a bar a way, at the smallest and the largest size.

    Sizes that count the same share a panel.
    """
    by_size: dict[int, dict[str, StepCounts]] = {}
    for way, cells in by_way(group).items():
        for cell in cells:
            if cell.counts:
                by_size.setdefault(cell.num_tokens, {})[way.name] = cell.counts
    if not by_size:
        return None
    shown: dict[tuple[tuple[str, int, int, str], ...], list[int]] = {}
    for tokens in sorted({min(by_size), max(by_size)}):
        rows = tuple((n, c.nodes.kernel, c.kernel_launches, _asked(c)) for n, c in by_size[tokens].items())
        shown.setdefault(rows, []).append(tokens)
    emulated = " (operators, emulated on a CPU)" if summary.device == "cpu" else ""
    bars = sum(len(rows) for rows in shown)
    figure, panels = canvas(
        summary,
        group,
        f"Kernels of a step{emulated}",
        rows=len(shown),
        height_in=2.0 + 0.45 * len(shown) + (0.42 if bars < 16 else 0.34) * bars,
        timed=False,
        note="counted in a profiled pass that is not timed; in brackets the share of kernels in graphs",
    )
    for axes, (rows, sizes) in zip(panels, shown.items(), strict=True):
        _kernel_bars(axes, rows)
        axes.set_xlabel(f"kernels per step of {' and '.join(map(str, sizes))} token{'s' * (sizes != [1])}")
    legend_above(panels[0], ncols=2)
    return figure


def _asked(of: StepCounts) -> str:
    """`4 graphs + 20 launches (75%), 1 sync`: what stands behind a bar."""
    graphs = f"{of.graph_launches} graph{'s' * (of.graph_launches != 1)} + " if of.graph_launches else ""
    share = f" ({of.coverage:.0%})" if of.coverage else ""
    waits = f", {of.syncs} sync{'s' * (of.syncs != 1)}" if of.syncs else ""
    copies = f", {of.d2h_copies} D2H" if of.d2h_copies else ""
    return f"{graphs}{of.kernel_launches} launches{share}{waits}{copies}{'' if of.complete else ', incomplete'}"


def _kernel_bars(axes: Axes, rows: Sequence[tuple[str, int, int, str]]) -> None:
    names, captured, eager, texts = zip(*rows, strict=True)
    axes.barh(names, captured, color=CAPTURED_COLOUR, height=0.62, label="kernels in graphs")
    axes.barh(names, eager, left=captured, color=EAGER_COLOUR, height=0.62, label="kernels launched one by one")
    totals = [one + other for one, other in zip(captured, eager, strict=True)]
    for row, (total, text) in enumerate(zip(totals, texts, strict=True)):
        axes.annotate(text, (total, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
    bar_in = WIDTH_IN - LETTER_IN * (max(map(len, names)) + max(map(len, texts)) + 6)
    axes.set_xlim(0, max(*totals, 1) * (bar_in + LETTER_IN * max(map(len, texts))) / bar_in)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def capture_cost(summary: Summary, group: Group) -> Figure | None:
    """Seconds to make the graphs of each size, and device memory that each added, a line a way.

    Sizes are captured largest first into one pool, so the later, smaller ones add little. A size that could not be
    captured breaks its line.
    """
    seconds = _cost(group, lambda size: size.capture_s + size.instantiate_s + size.first_replay_s)
    if not seconds:
        return None
    lacking = sorted({size.num_tokens for each in group.ledgers.values() for size in each.sizes if not _made(size)})
    memory = _cost(group, lambda size: float(size.pool_bytes + (size.driver_bytes or 0)))
    emulated = ", emulated on a CPU" if summary.device == "cpu" else ""
    missed = f"; not captured in every mode: {', '.join(map(str, lacking))} tokens" if lacking else ""
    figure, panels = canvas(
        summary,
        group,
        "Cost of capture",
        rows=2,
        timed=False,
        note=f"all segments of a size together, captured once, largest size first{emulated}{missed}",
    )
    times = time_unit(_values(seconds))
    draw_lines(panels[0], {way: scaled(series, times) for way, series in seconds.items()})
    panels[0].set_ylabel(f"capture, instantiation and\nfirst replay ({times.name})")
    if any(_values(seconds)):
        panels[0].set_yscale("log")
        plain_log_ticks(panels[0])
    sizes = size_unit([max(_values(memory))])
    draw_lines(panels[1], {way: scaled(series, sizes) for way, series in memory.items()})
    panels[1].set_ylabel(f"added to graph pool and\ndriver memory ({sizes.name})")
    panels[1].set_ylim(bottom=min(0.0, panels[1].get_ylim()[0]))
    finish(list(zip(panels, (seconds, memory), strict=True)))
    return figure


def _cost(group: Group, value: Callable[[SizeFacts], float]) -> Arms:
    """A value of every captured size, by num_tokens, from the ledger of each way that captured any."""
    arms: Arms = {}
    ledgers = group.ledgers
    for way in by_way(group):
        ledger = ledgers.get(way.name)
        sizes = sorted(ledger.sizes, key=lambda size: size.num_tokens) if ledger else []
        if any(_made(size) for size in sizes):
            arms[way] = [(size.num_tokens, _exactly(value(size), size)) for size in sizes]
    return arms


def _exactly(value: float, size: SizeFacts) -> Estimate | None:
    return Estimate(value, value, value, 1) if _made(size) else None


def _made(size: SizeFacts) -> bool:
    return size.state == "captured"


def _values(arms: Arms) -> list[float]:
    return [value.median for series in arms.values() for _, value in series if value]
