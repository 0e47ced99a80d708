"""Figures of a summary as matplotlib objects, and as PNG and SVG files.

1600 pixels wide, drawn to be read at 800. matplotlib is imported on first use, pyplot never.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlaprof.analysis.stats import Estimate
from mlaprof.analysis.summary import BASELINE, Cell, Group, Summary, groups
from mlaprof.records import KernelResources, Run
from mlaprof.report import sentences
from mlaprof.report.style import MEMORY_PARTS, MEMORY_REST, MODE, STATUS
from mlaprof.report.units import Unit, significant, size_unit, time_unit
from mlaprof.study import MODES, Mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN, DPI = 8.0, 5.2, 200
TWO_PANELS_IN = 7.4
LOG_FROM = 8.0  # the spread of ratios from which a linear axis would press the small ones together
REGISTERS_LIMIT = 255  # a thread, sm_90
SHARED_LIMIT_BYTES = 232_448  # a block, sm_90: 227 KiB


def write_figures(run: Run, summary: Summary, folder: Path) -> list[Path]:
    """Write every figure that the run has data for into `folder`, PNG and SVG; returns the paths, PNG first.

    Names are `<figure>-<phase>-ctx<context_len>`. Raises OSError where the folder cannot be written.
    """
    import matplotlib

    if run.manifest.run_id != summary.run_id:
        raise ValueError(f"summary: expected the one of run {run.manifest.run_id}, got {summary.run_id}")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with matplotlib.rc_context(_RC):
        for group in groups(summary):
            for name, draw in FIGURES.items():
                figure = draw(summary, group)
                if figure is None:
                    continue
                stem = f"{name}-{group.phase}-ctx{group.context_len}"
                for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
                    path = folder / f"{stem}.{suffix}"
                    figure.savefig(path, dpi=DPI, metadata=metadata)
                    written.append(path)
    return written


def latency(summary: Summary, group: Group) -> Figure | None:
    """Device time over tokens, a line a mode with its interval; on a GPU the submit time dashed beside it.

    A Point without a time breaks its line. With one token count the modes stand side by side instead.
    """
    arms = _arms(group, lambda cell: cell.device_s)
    if not arms:
        return None
    submit = _arms(group, lambda cell: cell.submit_s if cell.clock == "cuda_event" else None)
    unit = time_unit(value.median for series in arms.values() for _, value in series if value)
    figure, axes = _canvas(summary, group, f"Latency: {_place(group)}")
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
    figure, drawn = _canvas(
        summary,
        group,
        f"Speed-up over {BASELINE}: {_place(group)}",
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


def memory(summary: Summary, group: Group) -> Figure | None:
    """Stacked bars a mode at its largest size, and a second panel without weights and caches, which dwarf the rest.

    The graph pool is the one of all sizes together; every other part belongs to the largest size.
    """
    stacks = _memory_stacks(group)
    if not stacks:
        return None
    largest = max(cell.num_tokens for cell in group.cells if cell.memory)
    figure, axes = _canvas(
        summary,
        group,
        f"Memory by mode at {largest} tokens: {_place(group)}",
        rows=2,
        height_in=2.6 + 0.62 * len(stacks),
        timed=False,
        note="a bar is the sum of its parts, with the graph pool that all sizes need, not a measured peak",
    )
    parts = [(name, *look) for name, look in MEMORY_PARTS.items()] + [("rest", *MEMORY_REST)]
    _bars(axes[0], stacks, parts, "all")
    _bars(axes[1], stacks, parts[2:], "without weights and caches")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].legend(handles, labels, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
    return figure


def tiles(summary: Summary, group: Group) -> Figure | None:
    """Heat map of tile configurations over tokens; compile facts where no tile configuration was timed."""
    timed = [mode for mode in MODES if any(cell.tiles_speedup for cell in group.cells if cell.mode == mode)]
    if timed:
        return _timed_tiles(summary, group, timed)
    resources = list(dict.fromkeys(each for cell in group.cells for each in cell.resources))
    return _compiled_tiles(summary, group, resources) if resources else None


FIGURES: dict[str, Callable[[Summary, Group], Figure | None]] = {
    "latency": latency,
    "speedup": speedup,
    "memory": memory,
    "tiles": tiles,
}

Series = list[tuple[int, Estimate | None]]  # (num_tokens, value), by num_tokens

_RC: dict[Any, Any] = {
    "svg.hashsalt": "mlaprof",  # with no date in the file, the same run draws the same bytes
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.facecolor": "white",
}


def _place(group: Group) -> str:
    return sentences.placed(group.phase, group.context_len)


def _canvas(
    summary: Summary,
    group: Group,
    title: str,
    *,
    rows: int = 1,
    height_in: float = HEIGHT_IN,
    timed: bool = True,
    note: str = "",
) -> tuple[Figure, Any]:
    """A figure with a title above, and below it the caption that every figure carries; `note` is its last line."""
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(WIDTH_IN, height_in), layout="constrained")
    caption = f"{sentences.processor(summary)} | {group.preset} | run {summary.run_id}"
    if timed:
        caption = f"{caption}\n{sentences.conditions(summary, group.cells)}{sentences.left_out(group.cells)}"
    caption = f"{caption}\n{note}" if note else caption
    stamp = " (emulated on a CPU)" if timed and summary.emulated else ""
    figure.suptitle(title + stamp, x=0.012, ha="left", fontsize=12.5, fontweight="bold")
    figure.supxlabel(caption, x=0.012, ha="left", fontsize=8.5, color="#444444")
    return figure, figure.subplots(rows, 1)


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


def _memory_stacks(group: Group) -> dict[Mode, dict[str, int]]:
    """Bytes by part for each mode; `rest` is what the allocator's peak holds beyond the named parts."""
    stacks: dict[Mode, dict[str, int]] = {}
    for mode in MODES:
        cells = [cell for cell in group.cells if cell.mode == mode and not cell.tiles and cell.memory]
        uses = [cell.memory for cell in sorted(cells, key=lambda cell: cell.num_tokens) if cell.memory]
        if not uses:
            continue
        largest = uses[-1]
        parts = {name: int(getattr(largest, name)) for name in MEMORY_PARTS}
        if largest.allocator_peak_bytes is not None:
            parts["rest"] = max(0, largest.allocator_peak_bytes - sum(parts.values()))
        parts["graph_pool_bytes"] = max(use.graph_pool_bytes for use in uses)
        stacks[mode] = parts
    return stacks


def _bars(axes: Axes, stacks: dict[Mode, dict[str, int]], parts: Sequence[tuple[str, str, str]], title: str) -> None:
    totals = [sum(stack.get(name, 0) for name, _, _ in parts) for stack in stacks.values()]
    unit = size_unit(totals)
    left = [0.0] * len(stacks)
    for name, label, colour in parts:
        widths = [stack.get(name, 0) / unit.scale for stack in stacks.values()]
        if any(name in stack for stack in stacks.values()):
            axes.barh(list(stacks), widths, left=left, color=colour, label=label, height=0.62)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, total in enumerate(totals):
        axes.annotate(
            f"{significant(total / unit.scale)}",
            (total / unit.scale, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xlim(0, max(max(totals) / unit.scale * 1.1, 1e-9))
    axes.set_xlabel(f"{title} ({unit.name})")
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()


def _timed_tiles(summary: Summary, group: Group, modes: Sequence[Mode]) -> Figure:
    labels = list(dict.fromkeys(cell.tiles for cell in group.cells if cell.tiles))
    tokens = sorted({cell.num_tokens for cell in group.cells if cell.tiles})
    height = 1.6 + len(modes) * (0.9 + 0.3 * (len(labels) + 1))
    figure, panels = _canvas(
        summary, group, f"Tiles against the default: {_place(group)}", rows=len(modes), height_in=height
    )
    by_place = {(cell.mode, cell.num_tokens, cell.tiles): cell for cell in group.cells}
    logs = [abs(math.log2(cell.tiles_speedup.median)) for cell in group.cells if cell.tiles_speedup]
    limit = max([*logs, math.log2(1.1)])
    for axes, mode in zip([panels] if len(modes) == 1 else panels, modes, strict=True):
        _tile_panel(axes, mode, ["", *labels], tokens, by_place, limit)
    return figure


def _tile_panel(
    axes: Axes,
    mode: Mode,
    labels: Sequence[str],
    tokens: Sequence[int],
    by_place: dict[tuple[Mode, int, str], Cell],
    limit: float,
) -> None:
    default_times = [
        cell.device_s.median for count in tokens if (cell := by_place.get((mode, count, ""))) and cell.device_s
    ]
    unit = time_unit(default_times)
    colours: list[list[float]] = []
    for row, label in enumerate(labels):
        colours.append([])
        for column, count in enumerate(tokens):
            cell = by_place.get((mode, count, label))
            text, log = _tile_text(cell, unit)
            colours[-1].append(log)
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=8,
                color="white" if abs(log) > 0.7 * limit else "#222222",
            )
    # Blue is faster, red slower: a pair that the common forms of colour blindness keep apart.
    axes.imshow(colours, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    _grid_axes(axes, [str(count) for count in tokens], [label or f"default ({unit.name})" for label in labels])
    axes.set_xlabel("tokens per step")
    axes.set_title(f"{mode}: speed-up over the default tiles (blue is faster)", loc="left")


def _tile_text(cell: Cell | None, unit: Unit) -> tuple[str, float]:
    """What stands in one field and its colour as a log2 ratio; NaN leaves the field white."""
    if cell is None:
        return "", math.nan
    if not cell.device_s:
        return STATUS[cell.outcome].word, math.nan
    if not cell.tiles:
        return unit.text(cell.device_s.median), 0.0
    if not cell.tiles_speedup:
        return "no default", math.nan
    return f"{cell.tiles_speedup.median:.2f}", math.log2(cell.tiles_speedup.median)


def _compiled_tiles(summary: Summary, group: Group, resources: Sequence[KernelResources]) -> Figure:
    targets = ", ".join(sorted({each.target for each in resources}))
    figure, axes = _canvas(
        summary,
        group,
        f"Tiles compiled for {targets}, not timed: {_place(group)}",
        height_in=1.9 + 0.34 * len(resources),
        timed=False,
    )
    shares = []
    for row, each in enumerate(resources):
        texts = (str(each.registers), significant(each.shared_bytes / 1024), str(each.stack_bytes))
        # Any stack at all means spills or local arrays, so it has two colours only.
        share = (each.registers / REGISTERS_LIMIT, each.shared_bytes / SHARED_LIMIT_BYTES, float(each.stack_bytes > 0))
        shares.append(share)
        for column, (text, filled) in enumerate(zip(texts, share, strict=True)):
            colour = "white" if filled > 0.7 else "#222222"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    rows = [f"{each.kernel} {each.tiles or 'default'}" for each in resources]
    _grid_axes(axes, ["registers\na thread", "shared KiB\na block", "stack B\na thread"], rows)
    axes.set_title("darker is nearer to the hardware's limit; any stack means spills", loc="left")
    return figure


def _grid_axes(axes: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks([column - 0.5 for column in range(1, len(columns))], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, len(rows))], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
