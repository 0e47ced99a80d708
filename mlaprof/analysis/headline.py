"""The one number that a run comes to: by how much a step is faster in service, a way a group."""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.groups import Group, groups
from mlaprof.analysis.ratios import ModeMean
from mlaprof.analysis.stats import Estimate
from mlaprof.study import BASELINE, PR_BOUNDARY, Mode

SUBJECTS: tuple[Mode, ...] = (  # what a run is asked about, the first that it timed
    "split_piecewise",
    "breakable",
    "full",
    "monolithic_piecewise",
    "split_eager",
)


@dataclass(frozen=True)
class Headline:
    """How much faster than the baseline one way runs the steps of a group, default tiles; above 1 is faster.

    mean    the geometric mean over the cells, of what a step takes in service
    most    the cell with the largest speed-up, `least` the one with the smallest
    """

    group: Group
    way: str
    over: Mode
    mean: Estimate
    device: Estimate  # of device time alone, over the same cells
    most: Cell
    least: Cell

    @property
    def num_tokens(self) -> tuple[int, int]:
        """The smallest and the largest count of tokens that the mean is over."""
        counts = [cell.num_tokens for cell in _compared(self.group, self.way)]
        return min(counts), max(counts)

    @property
    def samples(self) -> int:
        """How many rounds or bursts the speed-up in service of a cell rests on, at least."""
        return min(cell.step_speedup.n for cell in _compared(self.group, self.way) if cell.step_speedup)


def headlines(summary: Summary) -> tuple[Headline, ...]:
    """The Headline of each group that has one, in the order of the plan."""
    return tuple(found for group in groups(summary) if (found := _headline(group)) is not None)


def _headline(group: Group) -> Headline | None:
    means = {mean.mode: mean for mean in group.means if not mean.tiles and mean.boundary == PR_BOUNDARY and mean.step}
    mean: ModeMean | None = next((means[mode] for mode in SUBJECTS if mode in means), None)
    if mean is None or mean.step is None:
        return None
    cells = sorted(_compared(group, mean.way), key=lambda cell: cell.step_speedup.median if cell.step_speedup else 0.0)
    return Headline(group, mean.way, BASELINE, mean.step, mean.speedup, most=cells[-1], least=cells[0])


def _compared(group: Group, way: str) -> list[Cell]:
    return [cell for cell in group.cells if cell.way == way and not cell.tiles and cell.step_speedup]
