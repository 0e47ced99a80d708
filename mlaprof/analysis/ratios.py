"""Speed-ups beside the cells: of a way over its token counts, of one way over another, of a boundary over another."""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.analysis.stats import Estimate
from mlaprof.study import Boundary, Mode, Phase


@dataclass(frozen=True)
class ModeMean:
    """The geometric mean of a way's speed-ups over the token counts of one phase and context length."""

    preset: str
    phase: Phase
    context_len: int
    mode: Mode
    boundary: Boundary
    way: str
    tiles: str
    speedup: Estimate  # of device_s; n counts cells
    step: Estimate | None = None  # of what a step takes in service, host and device at work at once


@dataclass(frozen=True)
class PiecewiseVsBreakable:
    """By how much breakable is faster than split_piecewise at one place: above 1 is faster."""

    preset: str
    phase: Phase
    num_tokens: int
    context_len: int
    boundary: Boundary
    tiles: str
    device: Estimate | None
    submit: Estimate | None  # None where emulated


@dataclass(frozen=True)
class BoundaryPrice:
    """What it changes to move the boundary from `start` to `end`: speed-ups, and differences end - start.

    A part that one of the two cells lacks is None.
    """

    preset: str
    phase: Phase
    num_tokens: int
    context_len: int
    mode: Mode
    start: Boundary
    end: Boundary
    reason: str = ""  # why there is no price
    device: Estimate | None = None
    device_change_s: float | None = None
    submit: Estimate | None = None  # None where emulated
    submit_change_s: float | None = None
    eager_kernels: int | None = None
    graph_nodes: int | None = None
    pool_bytes: int | None = None
