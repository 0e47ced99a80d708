"""What two timings of one and the same thing differ by in a run: no smaller difference means anything there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from mlaprof.analysis.arms import Arm, arm_of, speedup
from mlaprof.analysis.cells import Floor
from mlaprof.records import Measurement

LEAST_FLOOR = 0.005  # agreement beyond it is not claimed, however well a few pairs agree
PERCENTILE = 95.0  # over the cells: one bad cell of many does not set the floor of all


def noise_floor(twins: Iterable[Measurement], arms: Mapping[str, Arm]) -> Floor | None:
    """The larger of LEAST_FLOOR and the PERCENTILE of |log(median twin / median baseline)| of device time over the
    cells where both were timed.

    arms  by key, the baselines among them

    None without such a cell.
    """
    ratios = []
    for twin in twins:
        ratio = speedup(arms.get(_baseline_key(twin)), arm_of(twin.point.key, twin))
        if ratio is not None:
            ratios.append(abs(math.log(ratio.value)))
    return Floor(max(LEAST_FLOOR, float(np.percentile(ratios, PERCENTILE))), len(ratios)) if ratios else None


def twin_trouble(twins: Iterable[Measurement], baselines: Mapping[str, Measurement]) -> dict[str, str]:
    """Key of the baseline -> how its twin ended, where the twin failed or is incorrect and the baseline did not so."""
    found = {}
    for twin in twins:
        key, ended = _baseline_key(twin), twin.outcome
        alike = key in baselines and baselines[key].outcome.status == ended.status
        if ended.status in ("failed", "incorrect") and not alike:
            found[key] = f"{ended.status} at {ended.stage}: {ended.reason}"
    return found


def _baseline_key(twin: Measurement) -> str:
    return twin.point.model_copy(update={"twin": False}).key
