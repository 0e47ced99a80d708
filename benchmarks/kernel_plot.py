"""The figure of results/reference/kernels-h100.json: a dot a shape, by family, over the harder peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kernel_names import FAMILIES
from kernel_tables import GOAL_LEAST, TITLES
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FASTER, SLOWER, MISSED = "#0072B2", "#E69F00", "#D55E00"  # Okabe and Ito's: told apart in grey print, too
TICKS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2, 3, 4, 5)
STEP = 0.16  # between dots that would cover each other, in rows
NEAR = 1.028  # ratios this much apart do not cover each other
LEFT, RIGHT = 0.36, 5.6
ROOM = 20  # characters that fit before a dot


def draw(artifact: Mapping[str, Any], path: Path) -> None:
    """A PNG 1600 pixels wide, legible at half of that."""
    figure = Figure(figsize=(8, 5.9), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, name in enumerate(reversed(FAMILIES)):
        rows = [row for row in artifact["rows"] if row["family"] == name and row["ratio"] is not None]
        found = artifact["families"][name]["hardest"]
        ratios = sorted(row["ratio"] for row in rows)
        heights = [place + STEP * step for step in spread(ratios)]
        axes.scatter(ratios, heights, s=26, c=[colour(each) for each in ratios], linewidths=0, alpha=0.85, zorder=3)
        axes.plot([found["geomean"]] * 2, [place - 0.43, place + 0.43], color="#999999", linewidth=3, zorder=2)
        if found["least"] < GOAL_LEAST:
            _tell_least(axes, place, found)
    axes.axvline(1.0, color="#222222", linewidth=1.2, zorder=1)
    axes.axvline(GOAL_LEAST, color="#888888", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_xscale("log")
    axes.set_xlim(LEFT, RIGHT)
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.set_xticks([], minor=True)
    axes.set_yticks(
        range(len(FAMILIES)),
        [f"{TITLES[name]}  {artifact['families'][name]['hardest']['geomean']:.2f}" for name in reversed(FAMILIES)],
    )
    axes.set_ylim(-0.6, len(FAMILIES) - 0.4)
    axes.tick_params(axis="y", length=0, labelsize=9.5)
    axes.tick_params(axis="x", labelsize=9)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6, zorder=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("time of the harder peer over ours: right of 1, ours is faster", fontsize=9.5)
    axes.set_title(
        f"{artifact['processor']}, cold L2, {artifact['date'][:10]}. A dot is a shape; bar and number: geometric mean",
        fontsize=9.5,
        loc="right",
        color="#444444",
    )
    figure.savefig(path, metadata={"Software": None})


def _tell_least(axes: Axes, place: int, found: Mapping[str, Any]) -> None:
    """The shape of the least ratio: before its dot where that leaves room, else under it."""
    text = f"{found['least_shape']}  {found['least']:.2f}"
    before = len(text) < ROOM
    axes.annotate(
        text,
        (found["least"] if before else LEFT * 1.02, place),
        xytext=(-6, -3) if before else (0, -16),
        textcoords="offset points",
        ha="right" if before else "left",
        fontsize=8.2,
        zorder=2.5,
        color="#444444",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
    )


def spread(ratios: Sequence[float]) -> list[float]:
    """Steps up and down for ratios in rising order, so that near ones stand beside each other: 0, 1, -1, 2, -2."""
    last: dict[int, float] = {}  # step -> the ratio that has it
    found = []
    for ratio in ratios:
        step = next(step for step in (0, 1, -1, 2, -2) if free(step, ratio, last))
        last[step] = ratio
        found.append(float(step))
    return found


def free(step: int, ratio: float, last: Mapping[int, float]) -> bool:
    taken = last.get(step)
    return taken is None or ratio / taken >= NEAR or step == -2


def colour(ratio: float) -> str:
    if ratio >= 1.0:
        return FASTER
    return SLOWER if ratio >= GOAL_LEAST else MISSED
