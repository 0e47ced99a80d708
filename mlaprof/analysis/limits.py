"""The smallest change of a cell that counts: what was asked, or what the noise of the two runs leaves to be seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlaprof.analysis.cells import Floor
from mlaprof.analysis.floor import LEAST_FLOOR


@dataclass(frozen=True)
class Limit:
    """A ratio, and the parts it is the largest of: 0.01 is 1 %."""

    threshold: float  # as asked
    in_run: float  # the larger A/A floor of the two runs
    between: float | None = None  # of fresh processes; None where pairing cancels it, and where no run measured it

    @property
    def floor(self) -> float:
        return max(self.in_run, self.between or 0.0)

    @property
    def value(self) -> float:
        return max(self.threshold, self.floor)


def limit_of(
    threshold: float, base: Floor | None, new: Floor | None, processes: tuple[int, int], *, paired: bool
) -> Limit:
    """The Limit of a cell that base and new timed in so many processes. A paired one needs the in-run floors alone."""
    return Limit(
        threshold,
        max(in_run_floor(base), in_run_floor(new)),
        None if paired else between_floor(base, new, processes),
    )


def in_run_floor(floor: Floor | None) -> float:
    """The A/A floor of a run, a ratio; of one that timed nothing twice the least there is, an assumption."""
    return floor.ratio if floor else LEAST_FLOOR


def between_floor(base: Floor | None, new: Floor | None, processes: tuple[int, int]) -> float | None:
    """What two runs of one thing differ by because their processes do, a ratio; None where neither run measured it.

    `Floor.between` is of the difference of two single processes, whose variance is twice that of one. A run of P
    processes has 1/P of that, and the variances of the two runs add up: sqrt((b^2 / P_base + n^2 / P_new) / 2). A run
    that did not measure its own, being of one process, is taken to spread as the other one does.
    """
    known = [each.between if each else None for each in (base, new)]
    spreads = [own if own is not None else other for own, other in zip(known, reversed(known), strict=True)]
    if any(each is None for each in spreads):
        return None
    return math.sqrt(sum(spread**2 / count for spread, count in zip(spreads, processes, strict=True) if spread) / 2)
