"""What the ranks of a tensor parallel layer differ by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from mlaprof.facts import RankFacts


@dataclass(frozen=True)
class RankSpread:
    """The ranks of one arm, over all processes; a cell's own times are those of the slowest rank of each round."""

    world: int
    device_s: tuple[float, ...]  # a rank: the median of its own samples
    spread_s: float  # median over the rounds of the slowest rank's time less the fastest's
    disagreement: tuple[str, ...]  # kernels whose tiles are not the same on all ranks


def rank_spread(every: Iterable[RankFacts | None]) -> RankSpread | None:
    """Of the processes that timed the arm; None where one rank ran it alone, or no round was kept."""
    found = [each for each in every if each is not None and each.spread_s]
    if not found:
        return None
    return RankSpread(
        world=found[0].world,
        device_s=tuple(median(s for each in found for s in each.device_s[rank]) for rank in range(found[0].world)),
        spread_s=median(s for each in found for s in each.spread_s),
        disagreement=tuple(dict.fromkeys(kernel for each in found for kernel in each.disagreement)),
    )
