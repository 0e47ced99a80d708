"""The roofline of single kernels: rate over intensity under the ceilings that were measured in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from mlaprof.analysis.kernels import KernelCell, KernelSummary
from mlaprof.records import Manifest
from mlaprof.report.figures.canvas import HEIGHT_IN, WIDTH_IN
from mlaprof.report.figures.lines import plain_log_ticks
from mlaprof.report.style import ROOFLINE_MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TERA = 1e12
ROOF_COLOUR = "#444444"


def roofline(summary: KernelSummary, manifest: Manifest) -> Figure | None:
    """A dot a shape of each kernel, its fastest own form; dashed above them the ceilings of the run.

    None without ceilings, or without a kernel that both computes and was timed.
    """
    from matplotlib.figure import Figure as NewFigure

    found = _fastest(summary.cells)
    if not found or summary.copy_rate is None or not summary.product_rates:
        return None
    figure = NewFigure(figsize=(WIDTH_IN, HEIGHT_IN + 0.6), layout="constrained")
    axes = figure.subplots()
    for number, (kernel, members) in enumerate(groupby(found, key=lambda cell: cell.kernel)):
        cells = list(members)
        colour, marker = ROOFLINE_MARKERS[number % len(ROOFLINE_MARKERS)]
        places = [_place(cell) for cell in cells]
        axes.plot(
            [each[0] for each in places],
            [each[1] for each in places],
            linestyle="none",
            marker=marker,
            color=colour,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.5,
            label=kernel,
        )
    _roofs(axes, [_place(cell)[0] for cell in found], summary)
    axes.set_xlabel("FLOP per byte moved")
    axes.set_ylabel("TFLOP/s")
    stamp = " (emulated on a CPU)" if any(cell.emulated for cell in found) else ""
    figure.suptitle(f"Roofline of single kernels{stamp}", x=0.012, ha="left", fontsize=12.5, fontweight="bold")
    axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
    figure.supxlabel(
        f"{manifest.environment.processor(manifest.device)} | run {manifest.run_id}\n"
        "a dot a shape, the fastest own form; bytes count every gathered row, so the L2 may lift a dot above the slope",
        x=0.012,
        ha="left",
        fontsize=8.5,
        color="#444444",
    )
    return figure


def _fastest(cells: Sequence[KernelCell]) -> list[KernelCell]:
    """Of each kernel and shape the fastest own form that has a rate, in the order of the run."""
    best: dict[tuple[str, str], KernelCell] = {}
    for cell in cells:
        if cell.own and cell.device_s and cell.flop_rate and cell.byte_rate:
            known = best.get((cell.kernel, cell.shape))
            if known is None or (known.device_s and cell.device_s.median < known.device_s.median):
                best[cell.kernel, cell.shape] = cell
    return sorted(best.values(), key=lambda cell: cell.kernel)


def _place(cell: KernelCell) -> tuple[float, float]:
    """FLOP a byte, TFLOP/s."""
    flop_rate, byte_rate = cell.flop_rate or 0.0, cell.byte_rate or 1.0
    return flop_rate / byte_rate, flop_rate / TERA


def _roofs(axes: Axes, intensities: Sequence[float], summary: KernelSummary) -> None:
    """The slope of the copy, and a level for each precision of products."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    copy_rate = summary.copy_rate or 0.0
    left = min(intensities) / 1.5
    highest = max(summary.product_rates.values())
    right = max(max(intensities) * 1.5, 3 * highest / copy_rate)
    for precision, rate in sorted(summary.product_rates.items()):
        ridge = rate / copy_rate
        axes.plot(
            [left, ridge, right],
            [left * copy_rate / TERA, rate / TERA, rate / TERA],
            color=ROOF_COLOUR,
            linestyle="--",
            linewidth=1.2,
            label=f"_{precision}",
            zorder=1,
        )
        axes.annotate(  # left of the ridge, where no dot can be
            f"{precision} {rate / TERA:.0f} TFLOP/s",
            (ridge, rate / TERA),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8.5,
        )
    axes.annotate(
        f"copy {copy_rate / 1e9:.0f} GB/s",
        (10 * left, 10 * left * copy_rate / TERA),
        xytext=(-8, 0),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    plain_log_ticks(axes)
