"""What stands where in a drawn figure, in words: a value can be told on hover that is the one drawn, for it is read
off the figure itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


@dataclass(frozen=True)
class Mark:
    """A place in shares of the figure, from its left and its top, and what is drawn there."""

    x: float
    y: float
    text: str


def marks(figure: Figure) -> list[Mark]:
    """Every marker of a line with its interval, every part of a bar, every field of a heat map. Draws the figure."""
    figure.draw_without_rendering()
    found: list[Mark] = []
    shown = [axes for axes in figure.axes if axes.get_visible()]
    for axes in shown:
        below = next((each.get_xlabel() for each in shown[shown.index(axes) :] if each.get_xlabel()), "")
        for x, y, text in (*_of_bars(axes), *_of_lines(axes, below), *_of_fields(axes)):
            right, top = figure.transFigure.inverted().transform(axes.transData.transform((x, y)))
            if 0 <= right <= 1 and 0 <= top <= 1:
                found.append(Mark(round(float(right), 4), round(1 - float(top), 4), " ".join(text.split())))
    return found


Placed = tuple[float, float, str]


def _of_lines(axes: Axes, below: str) -> Iterator[Placed]:
    lines = [line for line in axes.get_lines() if line.get_marker() not in ("None", "", None)]
    intervals = _intervals(axes)
    rows = _labels(axes, "y") if axes.containers else []
    for place, line in enumerate(lines):
        low_high = intervals[place] if len(intervals) == len(lines) else {}
        for x, y in zip(_floats(line.get_xdata()), _floats(line.get_ydata()), strict=True):
            if math.isfinite(x) and math.isfinite(y):
                yield x, y, _at(axes, line, x, y, low_high.get(x), rows, below)


def _at(
    axes: Axes,
    line: Line2D,
    x: float,
    y: float,
    interval: tuple[float, float] | None,
    rows: Sequence[str],
    below: str,
) -> str:
    label = str(line.get_label())
    name = "" if label.startswith("_") else label
    if rows:
        return f"{_named(rows, y)}: {name} {_number(x)} {axes.get_xlabel()}"
    columns = _labels(axes, "x") if _categorical(axes) else []
    where = "" if columns else f"{below or axes.get_xlabel()} {x:g}"
    spread = f" [{_number(interval[0])}, {_number(interval[1])}]" if interval and interval[0] < interval[1] else ""
    return f"{', '.join(filter(None, (name, where)))}: {_number(y)}{spread} {axes.get_ylabel()}"


def _intervals(axes: Axes) -> list[dict[float, tuple[float, float]]]:
    """Of each line in its order: x -> both ends of the upright bar there."""
    from matplotlib.collections import LineCollection

    found = []
    for each in axes.collections:
        if isinstance(each, LineCollection):
            ends = [np.asarray(segment, dtype=float) for segment in each.get_segments()]
            found.append({float(end[0][0]): (float(end[0][1]), float(end[-1][1])) for end in ends if len(end)})
    return found


def _of_bars(axes: Axes) -> Iterator[Placed]:
    from matplotlib.container import BarContainer

    rows = _labels(axes, "y") if axes.containers else []
    for bars in axes.containers:
        if isinstance(bars, BarContainer):
            yield from _of_bar(axes, bars, rows)


def _of_bar(axes: Axes, bars: BarContainer, rows: Sequence[str]) -> Iterator[Placed]:
    for patch in bars.patches:
        width, y = patch.get_width(), patch.get_y() + patch.get_height() / 2
        if width:
            text = f"{_named(rows, y)}: {bars.get_label()} {_number(width)} {axes.get_xlabel()}"
            yield patch.get_x() + width / 2, y, text


def _of_fields(axes: Axes) -> Iterator[Placed]:
    if not axes.images:
        return
    columns, rows = _labels(axes, "x"), _labels(axes, "y")
    for text in axes.texts:
        x, y = text.get_position()
        if text.get_text():
            yield float(x), float(y), f"{_named(rows, y)}, {_named(columns, x)}: {text.get_text()}"


def _categorical(axes: Axes) -> bool:
    return axes.get_xscale() == "linear" and any(text and not _is_number(text) for text in _labels(axes, "x"))


def _labels(axes: Axes, which: str) -> list[str]:
    ticks = axes.get_xticklabels() if which == "x" else axes.get_yticklabels()
    return [tick.get_text().replace("\n", " ") for tick in ticks]


def _named(names: Sequence[str], place: float) -> str:
    number = round(place)
    return names[number] if 0 <= number < len(names) else ""


def _is_number(text: str) -> bool:
    try:
        float(text.replace("\N{MINUS SIGN}", "-"))
    except ValueError:
        return False
    return True


def _floats(values: Any) -> list[float]:
    return [float(each) for each in np.asarray(values).ravel()]


def _number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
