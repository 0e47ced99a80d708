"""What two timings of one and the same thing differ by in a run: no smaller difference means anything there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from mlaprof.analysis.arms import Arm, speedup
from mlaprof.analysis.cells import Floor
from mlaprof.analysis.seen import Seen

LEAST_FLOOR = 0.005  # agreement beyond it is not claimed, however well a few pairs agree
PERCENTILE = 95.0  # over the cells: one bad cell of many does not set the floor of all
TWIN = "/aa"  # what stands behind the key, and the way, of a baseline for its twin


def noise_floor(twins: Mapping[str, Arm], arms: Mapping[str, Arm]) -> Floor | None:
    """The Floor of a run by its twins and its arms with default tiles, by key; None where no cell has a timed twin.

    ratio: the larger of LEAST_FLOOR and the PERCENTILE of |log speed-up| of a twin over its baseline in device time,
    over the cells where both were timed, rounds paired. between: the PERCENTILE of |log| of the ratio of the device
    medians of two processes, over all these arms and twins and all pairs of processes; without a least value, and None
    of a single process.
    """
    ratios = [
        abs(math.log(ratio.median))
        for key, twin in twins.items()
        if (ratio := speedup(arms.get(key.removesuffix(TWIN)), twin)) is not None
    ]
    if not ratios:
        return None
    between = [each for arm in (*arms.values(), *twins.values()) for each in _between(arm)]
    return Floor(
        max(LEAST_FLOOR, float(np.percentile(ratios, PERCENTILE))),
        len(ratios),
        between=float(np.percentile(between, PERCENTILE)) if between else None,
    )


def _between(arm: Arm) -> Iterator[float]:
    medians = [float(np.median(rounds)) for rounds in arm.rounds("device_s").values()]
    if min(medians) > 0:
        yield from (abs(math.log(one / other)) for one, other in combinations(medians, 2))


def twin_trouble(twins: Mapping[str, Seen], seen: Mapping[str, Seen]) -> dict[str, str]:
    """Key of the baseline -> how its twin ended, where the twin failed or is incorrect and the baseline did not so in
    the same process."""
    found: dict[str, str] = {}
    for key, twin in twins.items():
        baseline = seen.get(key.removesuffix(TWIN), Seen())
        for process, measurement in twin.timings.items():
            ended = measurement.outcome
            alike = process in baseline.timings and baseline.timings[process].outcome.status == ended.status
            if ended.status in ("failed", "incorrect") and not alike:
                found.setdefault(key.removesuffix(TWIN), f"{ended.status} at {ended.stage}: {ended.reason}")
    return found
