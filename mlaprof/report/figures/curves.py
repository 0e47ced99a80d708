"""Latency and speed-up over token counts, a line a mode with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mlaprof.analysis.cells import BASELINE, Cell, Group, Summary
from mlaprof.analysis.stats import Estimate
from mlaprof.report.figures.canvas import HEIGHT_IN, canvas
from mlaprof.report.style import MODE
from mlaprof.report.units import Unit, time_unit
from mlaprof.study import MODES, Mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TWO_PANELS_IN = 7.4
LOG_FROM = 8.0  # the spread of ratios from which a linear axis would press the small ones together

Series = list[tuple[int, Estimate | None]]  # (num_tokens, value), by num_tokens


def latency(summary: Summary, group: Group) -> Figure | None:
    """Device time over tokens, a line a mode with its interval; on a GPU the submit time dashed beside it.

    A Point without a time breaks its line. With one token count the modes stand side by side instead.
    """
    arms = _arms(group, lambda cell: cell.device_s)
    if not arms:
        return None
    submit = _arms(group, lambda cell: cell.submit_s if cell.clock == "cuda_event" else None)
    unit = time_unit(value.median for series in arms.values() for _, value in series if value)
    figure, axes = canvas(summary, group, "Latency")
    _lines(axes, {mode: _scaled(series, unit) for mode, series in arms.items()})
    for place, (mode, series) in enumerate(submit.items()):
        tokens, medians, _, _ = _columns(_scaled(series, unit))
        if len(_counts(arms)) == 1:
            axes.hlines(medians, place - 0.3, place + 0.3, color=MODE[mode].colour, linestyle=(0, (3, 2)), zorder=2)
        else:
            axes.plot(tokens, medians, color=MODE[mode].colour, linestyle=(0, (3, 2)), linewidth=1, zorder=2)
    axes.set_yscale("log")
    _plain_log_ticks(axes)
    what = "wall time" if summary.device == "cpu" else "time" if submit else "device time"
    axes.set_ylabel(f"{what} per step ({unit.name})")
    _finish(axes, _counts(arms), "host submit (markers: device)" if submit else "")
    return figure


def speedup(summary: Summary, group: Group) -> Figure | None:
    """Speed-up over the baseline mode, a line a mode with its interval, and a line at 1.0.

    Of the device time, and in a second panel of the host's submit time; an emulated run has no host apart.
    """
    device, submit = _arms(group, lambda cell: cell.speedup), _arms(group, lambda cell: cell.submit_speedup)
    of = {"device time": device, "host submit time": submit}
    panels = {what: others for what, arms in of.items() if (others := _without_baseline(arms))}
    if not panels:
        return None
    figure, drawn = canvas(
        summary,
        group,
        f"Speed-up over {BASELINE}",
        rows=len(panels),
        height_in=HEIGHT_IN if len(panels) == 1 else TWO_PANELS_IN,
    )
    every_axes = [drawn] if len(panels) == 1 else list(drawn)
    for axes, (what, arms) in zip(every_axes, panels.items(), strict=True):
        _speedup_panel(axes, "wall time" if summary.device == "cpu" else what, arms)
        _finish(axes, _counts(arms), "", legend=axes is every_axes[0])
    for axes in every_axes[:-1]:
        axes.set_xlabel("")
    return figure


def _without_baseline(arms: dict[Mode, Series]) -> dict[Mode, Series]:
    return {mode: series for mode, series in arms.items() if mode != BASELINE}


def _speedup_panel(axes: Axes, what: str, arms: dict[Mode, Series]) -> None:
    axes.axhline(1.0, color=MODE[BASELINE].colour, linestyle="--", linewidth=1.2, zorder=1, label=BASELINE)
    _lines(axes, arms)
    axes.set_ylabel(f"speed-up of {what}\n(above 1 is faster)")
    ratios = [1.0, *(value.median for series in arms.values() for _, value in series if value)]
    wide = max(ratios) / min(ratios) > LOG_FROM
    if wide:
        axes.set_yscale("log")
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0.0, min(bottom, 0.9)), max(top, 1.1))
    if wide:
        _plain_log_ticks(axes)


def _arms(group: Group, value: Callable[[Cell], Estimate | None]) -> dict[Mode, Series]:
    """The default-tiles cells of each mode that has the value anywhere, by num_tokens; None where it is absent."""
    arms: dict[Mode, Series] = {}
    for mode in MODES:
        series = [(c.num_tokens, value(c)) for c in group.cells if c.mode == mode and not c.tiles]
        if any(each for _, each in series):
            arms[mode] = series
    return arms


def _counts(arms: dict[Mode, Series]) -> list[int]:
    return sorted({tokens for series in arms.values() for tokens, value in series if value})


def _scaled(series: Series, unit: Unit) -> Series:
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


def _lines(axes: Axes, arms: dict[Mode, Series]) -> None:
    side_by_side = len(_counts(arms)) == 1
    for place, (mode, series) in enumerate(arms.items()):
        present = [entry for entry in series if entry[1]] if side_by_side else series
        tokens, medians, low, high = _columns(present)
        x: list[int] = [place] if side_by_side else tokens
        look = MODE[mode]
        size = 8 if side_by_side else 5
        axes.plot(
            x, medians, color=look.colour, marker=look.marker, markersize=size, linewidth=1.8, label=mode, zorder=3
        )
        axes.fill_between(x, low, high, color=look.colour, alpha=0.22, linewidth=0, zorder=2)
        axes.vlines(x, low, high, color=look.colour, linewidth=2.5, alpha=0.5, zorder=2)  # a band needs neighbours


def _finish(axes: Axes, counts: Sequence[int], dashed: str, *, legend: bool = True) -> None:
    """The token axis, or the modes side by side, and the legend; `dashed` names the dashed lines, if any.

    Of several panels with the same lines only one needs the legend.
    """
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    if len(counts) == 1:
        named = [str(line.get_label()) for line in axes.get_lines() if line.get_marker() not in ("None", "")]
        axes.set_xticks(range(len(named)), [name.replace("_", "\n") for name in named])
        axes.set_xlim(-0.6, len(named) - 0.4)
        axes.set_xlabel(f"{counts[0]} tokens per step")
        axes.grid(axis="x", visible=False)
        unnamed = [(handle, text) for handle, text in zip(handles, labels, strict=True) if text not in named]
        handles, labels = [handle for handle, _ in unnamed], [text for _, text in unnamed]
    else:
        _token_axis(axes, counts)
    if dashed:
        handles.append(Line2D([], [], color="#444444", linestyle=(0, (3, 2)), linewidth=1))
        labels.append(dashed)
    if handles and legend:
        axes.legend(
            handles, labels, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2, columnspacing=1.6
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


def _plain_log_ticks(axes: Axes) -> None:
    from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullFormatter

    bottom, top = axes.get_ylim()
    decades = math.log10(top / bottom)
    subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0, 3.0) if decades < 4 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs) if decades > 0.7 else AutoLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom, top)
