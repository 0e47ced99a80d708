"""Every figure that a run has data for, as files."""

from __future__ import annotations

from collections.abc import Callable
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
    import matplotlib

    if run.manifest.run_id != summary.run_id:
        raise ValueError(f"summary: expected the one of run {run.manifest.run_id}, got {summary.run_id}")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with matplotlib.rc_context(RC):
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
