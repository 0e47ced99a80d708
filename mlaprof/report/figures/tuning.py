"""The course of a search: its best so far over evaluations and over seconds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlaprof.records import Manifest
from mlaprof.report.figures.canvas import HEIGHT_IN, RC, WIDTH_IN, save
from mlaprof.report.units import time_unit
from mlaprof.tuning.summary import TargetSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOUR = "#0B5FA5"
DEFAULT_COLOUR = "#666666"


def write_tuning_figures(summaries: Sequence[TargetSummary], manifest: Manifest, folder: Path) -> list[Path]:
    """A figure a target that has a course, PNG and SVG; returns the paths, PNG first. Raises OSError."""
    import matplotlib

    written: list[Path] = []
    with matplotlib.rc_context(RC):
        for number, summary in enumerate(summaries):
            if not summary.course:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            written += save(course(summary, manifest), folder, course_stem(number, summary))
    return written


def course_stem(number: int, summary: TargetSummary) -> str:
    """`course-<number of the target>-<kernel>`, of lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"course-{number}-{summary.search.target.kernel}".lower()).strip("-")


def course(summary: TargetSummary, manifest: Manifest) -> Figure:
    """Two panels: over evaluations, over seconds; the default's first time as a line where it has one."""
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    steps = summary.course
    default_s = summary.default_seen_s
    unit = time_unit([each.best_device_s for each in steps])
    panels = (
        ("configurations launched", [float(each.evaluations) for each in steps], float(summary.evaluations)),
        ("seconds of the search", [each.at_s for each in steps], summary.wall_s),
    )
    for axes, (name, places, end) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        heights = [each.best_device_s / unit.scale for each in steps]
        axes.step([*places, end], [*heights, heights[-1]], where="post", color=COLOUR)
        axes.plot(places, heights, "o", color=COLOUR, markersize=4)
        if default_s is not None:
            axes.axhline(default_s / unit.scale, color=DEFAULT_COLOUR, linestyle="--", linewidth=1)
            axes.annotate("default", (1, default_s / unit.scale), xycoords=("axes fraction", "data"), ha="right",
                          va="bottom", color=DEFAULT_COLOUR)  # fmt: skip
        axes.set_xlabel(name)
    figure.axes[0].set_ylabel(f"device time of the best so far, {unit.name}")
    stamp = " (emulated on a CPU)" if summary.decision.emulated else ""
    figure.suptitle(
        f"{summary.search.target.kernel}: course of the search{stamp}", x=0.012, ha="left", fontweight="bold"
    )
    caption = f"{manifest.environment.processor(manifest.device)} | run {manifest.run_id}\n{summary.search.label}"
    figure.supxlabel(caption, x=0.012, ha="left", fontsize=8.5, color="#444444")
    return figure
