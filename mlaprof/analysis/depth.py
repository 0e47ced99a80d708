"""What the attention of a whole model would take, from the few layers that a run measures.

The assumption, to be told wherever a number of it is shown: every layer of the model costs what a measured one does on
average, what a step costs once included. A graph for the whole step is launched once however many layers are in it, so
its submit time is overstated; device times of deep stacks add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.stats import Estimate
from mlaprof.analysis.stored import stored_study
from mlaprof.study import BASELINE


@dataclass(frozen=True)
class FullDepth:
    """A cell at the depth of its model. Seconds."""

    cell: Cell
    layers: int  # of the model
    measured: int  # of the run
    step_s: Estimate  # in service
    saved_s: Estimate | None  # of the baseline's step, by the paired speed-up; None of the baseline, and without one


def measured_layers(study_yaml: str) -> int | None:
    """The number of layers of a stored study; None where it does not say."""
    study: Mapping[str, Any] = stored_study(study_yaml) or {}
    layer = study.get("layer")
    found = study.get("num_layers", layer.get("num_layers") if isinstance(layer, dict) else None)
    return found if isinstance(found, int) and found > 0 else None


def full_depth(summary: Summary, *, measured: int, layers: int) -> tuple[FullDepth, ...]:
    """Every timed cell with default tiles at `layers` layers, in the order of the summary; none of an emulated run."""
    factor = layers / measured
    baselines = {cell.place: cell for cell in summary.cells if cell.way == BASELINE and not cell.tiles}
    return tuple(
        FullDepth(cell, layers, measured, _times(factor, cell.step), _saved(factor, baselines.get(cell.place), cell))
        for cell in summary.cells
        if cell.step and not cell.tiles and not cell.emulated
    )


def _saved(factor: float, baseline: Cell | None, cell: Cell) -> Estimate | None:
    """What the ratio, measured in the same rounds, leaves of the baseline's median."""
    ratio = cell.step_speedup
    if baseline is None or baseline.step is None or ratio is None or cell is baseline:
        return None
    whole_s = factor * baseline.step.median
    median_s, low_s, high_s = (whole_s * (1 - 1 / each) for each in (ratio.median, ratio.ci_low, ratio.ci_high))
    return Estimate(median_s, low_s, high_s, ratio.n)


def _times(factor: float, each: Estimate) -> Estimate:
    return Estimate(factor * each.median, factor * each.ci_low, factor * each.ci_high, each.n)
