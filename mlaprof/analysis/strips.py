"""The raw samples behind the cells, as far from their median as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

from mlaprof.analysis.seen import collect
from mlaprof.records import Run

LEAST_REACH, MOST_REACH = 0.01, 0.2  # of the median
INSIDE = 99.0  # percent of all samples that lie within the reach


@dataclass(frozen=True)
class Strip:
    """The device times of a cell by process: each sample over the median of all, less 1."""

    deviations: Mapping[int, tuple[float, ...]]


def strips(run: Run) -> dict[str, Strip]:
    """Key -> the Strip of each cell whose samples may be shown."""
    found: dict[str, Strip] = {}
    for key, seen in collect(run)[0].items():
        if not all(each.outcome.usable for each in seen.timings.values()):
            continue
        rounds = {
            process: each.timing.device_s
            for process, each in seen.timings.items()
            if each.timing and each.timing.device_s
        }
        middle = median(sample for samples in rounds.values() for sample in samples) if rounds else 0.0
        if middle > 0:
            found[key] = Strip({process: tuple(s / middle - 1 for s in samples) for process, samples in rounds.items()})
    return found


def reach(found: Mapping[str, Strip]) -> float:
    """How far from the median one axis for all strips must go, to hold most samples of all cells."""
    every = [abs(each) for strip in found.values() for samples in strip.deviations.values() for each in samples]
    return float(np.clip(np.percentile(every, INSIDE), LEAST_REACH, MOST_REACH)) if every else LEAST_REACH
