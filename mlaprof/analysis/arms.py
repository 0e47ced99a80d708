"""A timing that may be shown, and by how much one is faster than another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import numpy as np

from mlaprof.analysis.stats import Bootstrap, bootstrap, quotient
from mlaprof.facts import Timing
from mlaprof.records import Measurement


@dataclass(frozen=True, eq=False)
class Arm:
    """A timing that may be shown, and the bootstraps of its times, drawn once for every use."""

    timing: Timing
    device_s: Bootstrap
    submit_s: Bootstrap | None


def arm_of(key: str, measurement: Measurement | None) -> Arm | None:
    """The Arm of a timing; None where there is none that may be shown."""
    if measurement is None or not measurement.outcome.usable:
        return None
    timing = measurement.timing
    if timing is None or not timing.device_s:
        return None
    return Arm(
        timing,
        device_s=bootstrap(timing.device_s, seed=crc32(key.encode())),
        submit_s=bootstrap(timing.submit_s, seed=crc32(f"submit {key}".encode())) if timing.submit_s else None,
    )


def speedup(
    slower: Arm | None, arm: Arm | None, clock: Literal["device_s", "submit_s"] = "device_s"
) -> Bootstrap | None:
    """slower / arm by one of the clocks: above 1 where `arm` is faster. None where the two cannot be compared."""
    if slower is None or arm is None or not _comparable(slower, arm):
        return None
    base: Bootstrap | None = getattr(slower, clock)
    new: Bootstrap | None = getattr(arm, clock)
    if base is None or new is None or min(*getattr(slower.timing, clock), *getattr(arm.timing, clock)) <= 0:
        return None
    return _quotient(new, base)


def _comparable(one: Arm, other: Arm) -> bool:
    return one.timing.clock == other.timing.clock and one.timing.cache == other.timing.cache


def _quotient(base: Bootstrap, new: Bootstrap) -> Bootstrap:
    """new / base; a series over itself is 1 exactly, its draws being no independent ones."""
    return Bootstrap(1.0, np.ones(1), base.n) if base is new else quotient(base, new)
