"""What one pair of cells comes to: slower, faster, the same, or not to be told, and then why and what would tell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mlaprof.analysis.cells import Cell
from mlaprof.analysis.stats import Estimate

Verdict = Literal["SLOWER", "FASTER", "SAME", "AMBIGUOUS", "THROTTLED", "INCORRECT", "FAILED", "MISSING", "NEW"]
VERDICTS: tuple[Verdict, ...] = (
    "INCORRECT",
    "FAILED",
    "MISSING",
    "THROTTLED",
    "SLOWER",
    "AMBIGUOUS",
    "FASTER",
    "SAME",
    "NEW",
)  # what to read first

MIN_SAMPLES = 6  # below it the interval of a median does not reach 95 % whatever the samples are
SIGNIFICANCE = 0.05  # of p-values adjusted over the grid
CLOCKS_DIFFER = 0.01  # from here a verdict must hold in cycles, too
MOST_ROUNDS, MOST_PROCESSES = 5_000, 100  # beyond them more is no advice


@dataclass(frozen=True)
class Judgement:
    """A verdict; effort only where it is AMBIGUOUS, a reason where the interval alone does not tell it."""

    verdict: Verdict
    reason: str = ""
    effort: float | None = None  # how many times as much would settle it; None: nothing would, or a reason is given


def judge(change: Estimate, p_adjusted: float, limit: float, base: Cell, new: Cell) -> Judgement:
    """The Judgement on a ratio new / base whose smallest size that counts is `limit`.

    base and new: the cells, of which clocks and throttling count. p_adjusted: over all cells judged together.
    """
    throttled = [name for name, cell in (("base", base), ("new", new)) if cell.throttled]
    if throttled:
        return Judgement("THROTTLED", f"the clocks stayed down in {' and '.join(throttled)}")
    if change.n < MIN_SAMPLES:
        return Judgement("AMBIGUOUS", f"fewer than {MIN_SAMPLES} samples", effort=MIN_SAMPLES / change.n)
    found = verdict(change, limit)
    if found == "AMBIGUOUS":
        return Judgement(found, effort=effort_to_settle(change, limit))
    if found == "SAME":
        return Judgement(found)
    if p_adjusted >= SIGNIFICANCE:
        return Judgement("AMBIGUOUS", f"p = {p_adjusted:.2f} when adjusted over all cells")
    if not _holds_in_cycles(change, base, new):
        return Judgement("AMBIGUOUS", "the SM clocks differ as much: in cycles the change is gone")
    return Judgement(found)


def verdict(change: Estimate, limit: float) -> Verdict:
    """The verdict on a ratio new / base: by its whole interval, never by its median.

    A limit of 0.01 is a factor of 1.01 either way, so that exchanging the runs exchanges SLOWER and FASTER.
    """
    if change.ci_low > 1 + limit:
        return "SLOWER"
    if change.ci_high < 1 / (1 + limit):
        return "FASTER"
    if change.ci_low >= 1 / (1 + limit) and change.ci_high <= 1 + limit:
        return "SAME"
    return "AMBIGUOUS"


def effort_to_settle(change: Estimate, limit: float) -> float | None:
    """How many times as much, rounds or processes, would shrink an ambiguous interval until it lies on one side of the
    limit; None where nothing would.

    The width falls with the root of what it rests on, and the median is taken to stay.
    """
    half_width = (math.log(change.ci_high) - math.log(change.ci_low)) / 2
    distance = abs(abs(math.log(change.median)) - math.log1p(limit))
    return (half_width / distance) ** 2 if distance else None


def at_least(effort: float | None, count: int, most: int) -> int | None:
    """That many times `count`, and more than it; None beyond `most`, which is no advice."""
    if effort is None or effort * count > most:
        return None
    return max(count + 1, math.ceil(effort * count))


def _holds_in_cycles(change: Estimate, base: Cell, new: Cell) -> bool:
    """Where the clocks differ, the whole interval of cycles (time x SM clock) lies on the same side of 1."""
    if not base.sm_clock_hz or not new.sm_clock_hz:
        return True  # nothing is known against it
    clocks = new.sm_clock_hz / base.sm_clock_hz
    if max(clocks, 1 / clocks) <= 1 + CLOCKS_DIFFER:
        return True
    return change.ci_low * clocks > 1 if change.median > 1 else change.ci_high * clocks < 1
