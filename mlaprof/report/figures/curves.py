"""Latency and speed-up over token counts, a line a way with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from mlaprof.analysis.cells import Cell, Floor, Summary
from mlaprof.analysis.groups import Group
from mlaprof.analysis.stats import Estimate
from mlaprof.report.figures.canvas import canvas
from mlaprof.report.figures.lines import Arms, draw_lines, finish, plain_log_ticks, scaled
from mlaprof.report.figures.ways import by_way
from mlaprof.report.style import MODE
from mlaprof.report.units import time_unit
from mlaprof.study import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG_FROM = 8.0  # the spread of ratios from which a linear axis would press the small ones together


def latency(summary: Summary, group: Group) -> Figure | None:
    """Device time over tokens, a line a way with its interval; on a GPU the submit time in a second panel.

    Both panels have one scale: where a way's submit time stands higher than its device time, the host sets the pace.
    A Point without a time breaks its line. With one token count the ways stand side by side instead.
    """
    device = _arms(group, lambda cell: cell.device_s)
    submit = _arms(group, lambda cell: cell.submit_s if cell.clock == "cuda_event" else None)
    drawn = {what: arms for what, arms in _named(summary, device, submit).items() if arms}
    if not drawn:
        return None
    series = [each for arms in drawn.values() for each in arms.values()]
    unit = time_unit(value.median for each in series for _, value in each if value)
    figure, panels = canvas(summary, group, "Latency", rows=len(drawn))
    for axes, (what, arms) in zip(panels, drawn.items(), strict=True):
        draw_lines(axes, {way: scaled(each, unit) for way, each in arms.items()})
        axes.set_yscale("log")
        axes.set_ylabel(f"{what} per step ({unit.name})")
    bottoms, tops = zip(*(axes.get_ylim() for axes in panels), strict=True)
    for axes in panels:
        axes.set_ylim(min(bottoms), max(tops))
        plain_log_ticks(axes)
    finish(list(zip(panels, drawn.values(), strict=True)))
    return figure


def speedup(summary: Summary, group: Group) -> Figure | None:
    """Speed-up over the baseline mode, a line a way with its interval, and a line at 1.0.

    Of the device time, and in a second panel of the host's submit time; an emulated run has no host apart.
    """
    device, submit = _arms(group, lambda cell: cell.speedup), _arms(group, lambda cell: cell.submit_speedup)
    of = _named(summary, _without_baseline(device), _without_baseline(submit))
    drawn = {what: arms for what, arms in of.items() if arms}
    if not drawn:
        return None
    figure, panels = canvas(summary, group, f"Speed-up over {BASELINE}", rows=len(drawn))
    for axes, (what, arms) in zip(panels, drawn.items(), strict=True):
        _speedup_panel(axes, what, arms)
        if arms and summary.floor and what != "host submit time":  # the floor is of device times
            _floor_band(axes, summary.floor)
    finish(list(zip(panels, drawn.values(), strict=True)))
    return figure


def _named(summary: Summary, device: Arms, submit: Arms) -> dict[str, Arms]:
    return {"wall time" if summary.device == "cpu" else "device time": device, "host submit time": submit}


def _without_baseline(arms: Arms) -> Arms:
    return {way: series for way, series in arms.items() if way.mode != BASELINE}


def _speedup_panel(axes: Axes, what: str, arms: Arms) -> None:
    axes.axhline(1.0, color=MODE[BASELINE].colour, linestyle="--", linewidth=1.2, zorder=1, label=BASELINE)
    draw_lines(axes, arms)
    axes.set_ylabel(f"speed-up of {what}\n(above 1 is faster)")
    ratios = [1.0, *(value.median for series in arms.values() for _, value in series if value)]
    wide = max(ratios) / min(ratios) > LOG_FROM
    if wide:
        axes.set_yscale("log")
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(0.0, min(bottom, 0.9)), max(top, 1.1))
    if wide:
        plain_log_ticks(axes)


def _floor_band(axes: Axes, floor: Floor) -> None:
    """What two timings of one thing differ by: a line inside the band tells no difference."""
    axes.axhspan(math.exp(-floor.ratio), math.exp(floor.ratio), color="#999999", alpha=0.25, linewidth=0, zorder=0)
    axes.annotate(
        f"grey band: A/A floor {floor.ratio:.1%}", (0.995, 0.02), xycoords="axes fraction", ha="right", fontsize=8.5
    )


def _arms(group: Group, value: Callable[[Cell], Estimate | None]) -> Arms:
    """The default-tiles cells of each way that has the value anywhere, by num_tokens; None where it is absent."""
    arms = {way: [(cell.num_tokens, value(cell)) for cell in cells] for way, cells in by_way(group).items()}
    return {way: series for way, series in arms.items() if any(each for _, each in series)}
