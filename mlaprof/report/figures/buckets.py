"""Capture sizes for a trace: step time over tokens with the sizes, where the steps are, and time against memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlaprof.analysis.cells import Summary
from mlaprof.report.figures.canvas import DPI, RC, WIDTH_IN
from mlaprof.report.figures.lines import plain_log_ticks
from mlaprof.report.style import MODE
from mlaprof.report.units import seconds, size_unit, time_unit
from mlaprof.sizing.check import Checked
from mlaprof.sizing.choose import Choice
from mlaprof.sizing.engines import ENGINES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT_IN = 8.4
POINTS = 600  # of a curve
BARS = 48
OFF_THE_PANEL = 1.15  # of the eager step: a list slower than that would flatten the front
CHOSEN, STEPS = "#D55E00", "#56B4E9"
MARKERS = ("s", "^", "v", "x", "+", "1")


def write_choice_figure(choice: Choice, summary: Summary, checked: Checked | None, folder: Path) -> list[Path]:
    """`buckets-<trace>` as PNG and SVG into folder; returns the paths, PNG first. Raises OSError."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    stem = f"buckets-{re.sub(r'[^a-z0-9]+', '-', choice.steps.name.lower()).strip('-') or 'trace'}"
    with matplotlib.rc_context(RC):
        figure = choice_figure(choice, summary, checked)
        written = []
        for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
            written.append(folder / f"{stem}.{suffix}")
            figure.savefig(written[-1], dpi=DPI, metadata=metadata)
    return written


def choice_figure(choice: Choice, summary: Summary, checked: Checked | None = None) -> Figure:
    """Three panels above each other; the last one only where the run has a memory ledger."""
    from matplotlib.figure import Figure as NewFigure

    panels = 3 if choice.front else 2
    ratios = (1.15, 0.7, 1.0)[:panels]
    figure = NewFigure(figsize=(WIDTH_IN, HEIGHT_IN * sum(ratios) / 2.85), layout="constrained")
    axes = list(figure.subplots(panels, 1, height_ratios=ratios).flat)
    axes[1].sharex(axes[0])
    _curves(axes[0], choice, checked)
    _histogram(axes[1], choice)
    if choice.front:
        _front(axes[2], choice)
    chosen, costs = choice.chosen, choice.costs
    stamp = " (emulated on a CPU)" if costs.emulated else ""
    what = f"{len(chosen.sizes)} sizes, {seconds(chosen.step_s)} a step predicted{stamp}"
    title = f"Capture sizes for {choice.steps.name}: {what}"
    figure.suptitle(title, x=0.012, ha="left", fontsize=12.5, fontweight="bold")
    layers = f"{costs.layers} layers" + ("" if costs.layers == costs.measured_layers else
                                         f", scaled from {costs.measured_layers}")  # fmt: skip
    caption = (
        f"{summary.processor} | run {summary.run_id} | {costs.clock_name}, {layers}\n"
        f"{choice.steps.count} steps; expected times are predicted; bands: intervals of measured sizes"
    )
    figure.supxlabel(caption, x=0.012, ha="left", fontsize=8.5, color="#444444")
    return figure


def _curves(axes: Axes, choice: Choice, checked: Checked | None) -> None:
    """Eager and graph at their own size, the step under the chosen list, and what was measured of it."""
    costs, chosen = choice.costs, choice.chosen
    tokens = np.unique(np.geomspace(1, costs.largest, POINTS).round().astype(np.int64))
    unit = time_unit([*costs.graph.seconds, *costs.eager.seconds])
    ways = ((costs.eager, costs.eager_way), (costs.graph, costs.way))
    for curve, way in ways:
        colour = MODE[way.partition("@")[0]].colour  # type: ignore[index]
        low, high = curve.bounds(tokens)
        axes.fill_between(tokens, low / unit.scale, high / unit.scale, color=colour, alpha=0.15, linewidth=0)
        axes.plot(tokens, curve.at(tokens) / unit.scale, color=colour, linewidth=1.2, label=way)
        axes.plot(curve.tokens, curve.seconds / unit.scale, "o", color=colour, markersize=3.5)
    if chosen.sizes:
        sizes = np.array(chosen.sizes)
        inside = np.union1d(tokens[tokens <= sizes[-1]], np.concatenate([sizes, sizes[:-1] + 1]))
        padded = sizes[np.searchsorted(sizes, inside)]
        share = costs.padding_share
        step = (1 - share) * costs.graph.at(inside) + share * costs.graph.at(padded)
        axes.plot(inside, step / unit.scale, color=CHOSEN, linewidth=1.4, label="padded to the chosen sizes")
        axes.axvline(sizes[-1], color=CHOSEN, linewidth=0.9, linestyle=":")
        side = "right" if sizes[-1] > costs.largest**0.6 else "left"
        axes.annotate(
            f"eager above {sizes[-1]}",
            (sizes[-1], 0.04),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if side == "right" else 4, 0),
            textcoords="offset points",
            ha=side,
            fontsize=9,
            color=CHOSEN,
        )
    if checked:
        axes.plot(
            [row.num_tokens for row in checked.rows],
            [row.measured_s / unit.scale for row in checked.rows],
            "x",
            color="black",
            markersize=5,
            label="measured under the chosen list",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _plain_ticks(axes, choice.costs.largest)
    axes.set_ylabel(f"time of a step ({unit.name})")
    axes.legend(loc="upper left")


def _histogram(axes: Axes, choice: Choice) -> None:
    """The share of steps by token count; a tick below for every chosen size."""
    steps = choice.steps
    edges = np.geomspace(1, choice.costs.largest + 1, BARS)
    heights, _ = np.histogram(steps.tokens, bins=edges, weights=100 * steps.weights)
    axes.bar(edges[:-1], heights, width=np.diff(edges), align="edge", color=STEPS, linewidth=0)
    for size in choice.chosen.sizes:
        axes.axvline(size, ymax=0.09, color=CHOSEN, linewidth=1.0)
    axes.set_ylabel("share of steps (%)")
    left_out = f"; {steps.decode_only} of generations alone left out" if steps.decode_only else ""
    axes.set_xlabel(f"tokens of a step (ticks at the chosen sizes{left_out})")


def _front(axes: Axes, choice: Choice) -> None:
    """Expected time against memory: what no list beats in both, and where the lists lie that it is compared with."""
    front = [each for each in choice.front if each.sizes]
    unit = time_unit([each.step_s for each in front])
    memory = size_unit([max(each.memory_bytes for each in front)])
    axes.axhline(choice.eager.step_s / unit.scale, color=MODE["split_eager"].colour, linewidth=1.0)
    axes.step(
        [each.memory_bytes / memory.scale for each in front],
        [each.step_s / unit.scale for each in front],
        where="post",
        color="#0072B2",
        linewidth=1.4,
        label="best list of each memory",
    )
    for baseline, marker in zip(choice.baselines, MARKERS, strict=False):
        found = baseline.found
        if found.memory_bytes is None or found.step_s > OFF_THE_PANEL * choice.eager.step_s:
            continue
        filled = baseline.name in ENGINES
        place = (found.memory_bytes / memory.scale, found.step_s / unit.scale)
        axes.plot(*place, marker, color="#333333" if filled else "#888888", markersize=6, linestyle="",
                  label=baseline.name + (" default" if filled else ""))  # fmt: skip
    chosen = choice.chosen
    if chosen.memory_bytes is not None and chosen.sizes:
        place = (chosen.memory_bytes / memory.scale, chosen.step_s / unit.scale)
        axes.plot(*place, "*", color=CHOSEN, markersize=12, linestyle="", label="chosen")
    axes.annotate("eager", (1, choice.eager.step_s / unit.scale), xycoords=("axes fraction", "data"), ha="right",
                  va="bottom", fontsize=9, color=MODE["split_eager"].colour)  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_xlabel(f"memory of the graphs ({memory.name}), predicted")
    axes.set_ylabel(f"expected step ({unit.name})")
    axes.legend(ncols=2, fontsize=8.5)


def _plain_ticks(axes: Axes, largest: int) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.xaxis.set_major_locator(FixedLocator([4**power for power in range(12) if 4**power <= largest]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    plain_log_ticks(axes)
