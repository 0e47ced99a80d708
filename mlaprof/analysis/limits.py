"""The smallest change of a cell that counts: what was asked, or what the noise of the two runs leaves to be seen.

What fresh processes differ by is no part of it: the interval of a change holds that, cell by cell. One number for all
cells would hide small changes of graphs, which processes repeat to 0.2 %, behind eager steps, which they move by 4 %.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.analysis.cells import Floor
from mlaprof.analysis.floor import LEAST_FLOOR


@dataclass(frozen=True)
class Limit:
    """A ratio, the larger one of its parts: 0.01 is 1 %."""

    threshold: float  # as asked
    floor: float  # the larger A/A floor of the two runs

    @property
    def value(self) -> float:
        return max(self.threshold, self.floor)


def limit_of(threshold: float, base: Floor | None, new: Floor | None) -> Limit:
    """The Limit of the cells of two runs with these A/A floors."""
    return Limit(threshold, max(in_run_floor(base), in_run_floor(new)))


def in_run_floor(floor: Floor | None) -> float:
    """The A/A floor of a run, a ratio; of one that timed nothing twice the least there is, an assumption."""
    return floor.ratio if floor else LEAST_FLOOR
