"""Every figure that a run has data for, as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from mlaprof.analysis.cells import Summary
from mlaprof.analysis.groups import Group, groups
from mlaprof.records import Run
from mlaprof.report.figures.budget import budget
from mlaprof.report.figures.canvas import DPI, RC
from mlaprof.report.figures.capture import capture_cost, counts
from mlaprof.report.figures.curves import latency, speedup
from mlaprof.report.figures.memory import memory
from mlaprof.report.figures.tiles import tiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: dict[str, Callable[[Summary, Group], Figure | None]] = {
    "latency": latency,
    "speedup": speedup,
    "budget": budget,
    "memory": memory,
    "counts": counts,
    "capture-cost": capture_cost,
    "tiles": tiles,
}


def write_figures(run: Run, summary: Summary, folder: Path) -> list[Path]:
    """Write every figure that the run has data for into `folder`, PNG and SVG; returns the paths, PNG first.

    Names are `<figure>-<phase>-ctx<context_len>`. Raises OSError where the folder cannot be written.
    """
    if run.manifest.run_id != summary.run_id:
        raise ValueError(f"summary: expected the one of run {run.manifest.run_id}, got {summary.run_id}")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for stem, figure in drawn(summary):
        for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
            path = folder / f"{stem}.{suffix}"
            with _style():
                figure.savefig(path, dpi=DPI, metadata=metadata)
            written.append(path)
    return written


def drawn(summary: Summary) -> Iterator[tuple[str, Figure]]:
    """Every figure that the run has data for, with its name `<figure>-<phase>-ctx<context_len>`."""
    for stem in figure_stems(summary):
        if (figure := draw(summary, stem)) is not None:
            yield stem, figure


def figure_stems(summary: Summary) -> dict[str, str]:
    """The names that figures of the run's cells would have -> the figure of FIGURES that each is of."""
    return {_stem(name, group): name for group in groups(summary) for name in FIGURES}


def draw(summary: Summary, stem: str) -> Figure | None:
    """The figure of that name; None where the run has no data for it. Raises KeyError on a name that is none."""
    kind = figure_stems(summary)[stem]
    group = next(group for group in groups(summary) if _stem(kind, group) == stem)
    with _style():
        return FIGURES[kind](summary, group)


def _stem(name: str, group: Group) -> str:
    return f"{name}-{group.phase}-ctx{group.context_len}"


def _style() -> AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context(RC)
