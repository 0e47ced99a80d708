"""A line a way over token counts, or the ways side by side where there is one count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlaprof.analysis.stats import Estimate
from mlaprof.report.figures.ways import Way
from mlaprof.report.units import Unit
from mlaprof.study import MODES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = list[tuple[int, Estimate | None]]  # (num_tokens, value), by num_tokens
Arms = dict[Way, Series]

LONG_NAME = 20  # characters from which three names a line need smaller letters


def token_counts(arms: Arms) -> list[int]:
    return sorted({tokens for series in arms.values() for tokens, value in series if value})


def scaled(series: Series, unit: Unit) -> Series:
    return [
        (tokens, e and Estimate(e.median / unit.scale, e.ci_low / unit.scale, e.ci_high / unit.scale, e.n))
        for tokens, e in series
    ]


def _columns(series: Series) -> tuple[list[int], list[float], list[float], list[float]]:
    """Tokens, medians and both ends of the intervals; NaN breaks a line where there is no value."""
    values = [value or Estimate(math.nan, math.nan, math.nan, 0) for _, value in series]
    return (
        [tokens for tokens, _ in series],
        [value.median for value in values],
        [value.ci_low for value in values],
        [value.ci_high for value in values],
    )


def draw_lines(axes: Axes, arms: Arms) -> None:
    side_by_side = len(token_counts(arms)) == 1
    for place, (way, series) in enumerate(arms.items()):
        present = [entry for entry in series if entry[1]] if side_by_side else series
        tokens, medians, low, high = _columns(present)
        x: list[int] = [place] if side_by_side else tokens
        size = 8 if side_by_side else 6
        axes.plot(x, medians, **way.line, markersize=size, linewidth=1.8, label=way.name, zorder=3)
        axes.fill_between(x, low, high, color=way.colour, alpha=0.22, linewidth=0, zorder=2)
        axes.vlines(x, low, high, color=way.colour, linewidth=2.5, alpha=0.5, zorder=2)  # a band needs neighbours
    if side_by_side:
        axes.set_xticks(
            range(len(arms)),
            [way.stacked_name for way in arms],
            fontsize=10 if len(arms) <= len(MODES) else 7.5,
        )
        axes.set_xlim(-0.6, len(arms) - 0.4)


def finish(panels: Sequence[tuple[Axes, Arms]]) -> None:
    """The token axis of panels that stand above each other, and the legend above the first, which they share.

    Ways that stand side by side have their names on the axis already.
    """
    for axes, arms in panels:
        counts = token_counts(arms)
        if len(counts) == 1:
            axes.set_xlabel(f"{counts[0]} token{'s' * (counts[0] > 1)} per step")
            axes.grid(axis="x", visible=False)
        else:
            _token_axis(axes, counts)
    for axes, _ in panels[:-1]:
        axes.set_xlabel("")
    first, arms = panels[0]
    lines = [line for line in first.get_lines() if not str(line.get_label()).startswith("_")]
    if len(token_counts(arms)) == 1:
        lines = [line for line in lines if line.get_marker() in ("None", "")]
    if lines:
        long = max(len(str(line.get_label())) for line in lines) > LONG_NAME
        first.legend(
            handles=lines,
            ncols=3,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            borderaxespad=0.2,
            columnspacing=1.0 if long else 1.6,
            handlelength=3.2,  # two dashes beside the marker
            fontsize=8.5 if long else None,
        )


def _token_axis(axes: Axes, counts: Sequence[int]) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axes.set_xscale("log", base=2)
    room = math.log2(counts[-1] / counts[0]) / 20  # what a label needs of the axis
    shown = [counts[0]]
    for tokens in counts[1:]:
        if math.log2(tokens / shown[-1]) >= room:
            shown.append(tokens)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FixedFormatter([str(tokens) for tokens in shown]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(counts[0] / 1.25, counts[-1] * 1.25)
    axes.set_xlabel("tokens per step")


def plain_log_ticks(axes: Axes) -> None:
    from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullFormatter

    bottom, top = axes.get_ylim()
    decades = math.log10(top / bottom)
    subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0, 3.0) if decades < 4 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs) if decades > 0.7 else AutoLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom, top)
