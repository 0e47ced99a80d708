"""Two runs joined by key: a verdict a cell, a geometric mean a way, and what differs around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal
from zlib import crc32

import numpy as np

from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.differences import MACHINE, Difference, mismatches, notes
from mlaprof.analysis.stats import (
    DRAWS,
    Bootstrap,
    Estimate,
    benjamini_hochberg,
    geometric_mean,
    hierarchical,
    holm,
    mann_whitney,
    quotient,
)
from mlaprof.analysis.summary import summarize
from mlaprof.analysis.verdicts import Judgement, Verdict, floor_of, judge
from mlaprof.facts import Timing
from mlaprof.records import Run


class FailOn(StrEnum):
    """What a comparison fails on: a regression; also what is ambiguous or missing; nothing."""

    slower = "slower"
    ambiguous = "ambiguous"
    never = "never"


@dataclass(frozen=True)
class Delta:
    """One key in both runs. ratio is new / base of the device medians: above 1 is slower.

    The p-values are of one test of the two series, by itself and adjusted over all cells judged together: Holm's
    decides, Benjamini and Hochberg's is for reading. A throttled cell is not judged and has no adjusted ones.
    """

    key: str
    way: str
    verdict: Verdict
    base: Cell | None
    new: Cell | None
    ratio: Estimate | None = None
    reason: str = ""
    p: float | None = None
    p_holm: float | None = None
    p_bh: float | None = None
    rounds: int | None = None  # that each run needs to settle an AMBIGUOUS; None: rounds alone would not

    @property
    def regression(self) -> bool:
        """The new run is worse: slower, wrong, or failed where the base had a time."""
        if self.verdict == "FAILED":
            return self.base is not None and self.base.timed
        return self.verdict in ("SLOWER", "INCORRECT")


@dataclass(frozen=True)
class Comparison:
    """deltas in the base's plan order; mismatches forbid a comparison, crossed ones were allowed, notes explain one."""

    base: Summary
    new: Summary
    threshold: float  # as asked
    floor: float  # the larger one of the two runs
    deltas: tuple[Delta, ...]
    means: Mapping[str, Estimate]  # geometric mean of the ratios of each way, without throttled cells; n counts cells
    mismatches: tuple[Difference, ...]
    crossed: tuple[Difference, ...]
    notes: tuple[Difference, ...]

    @property
    def limit(self) -> float:
        """The smallest change that counts: the threshold, or the floor where that is larger."""
        return max(self.threshold, self.floor)

    @property
    def judged(self) -> bool:
        """Some cell was timed in both runs, or is worse without: otherwise nothing was compared."""
        told = ("SLOWER", "FASTER", "SAME", "AMBIGUOUS")
        return any(delta.verdict in told or delta.regression for delta in self.deltas)

    def exit_code(self, fail_on: FailOn = FailOn.slower) -> Literal[0, 1, 3, 4]:
        """4 the runs are of different kinds; 1 a regression; 3 something ambiguous; 0 neither.

        fail_on slower: ambiguous and missing cells pass. ambiguous: they do not, and a missing one is a regression.
        never: nothing but 4 fails.
        """
        if self.mismatches:
            return 4
        if fail_on is FailOn.never:
            return 0
        found = {delta.verdict for delta in self.deltas}
        strict = fail_on is FailOn.ambiguous
        if any(delta.regression for delta in self.deltas) or (strict and "MISSING" in found):
            return 1
        return 3 if strict and "AMBIGUOUS" in found else 0


@dataclass(frozen=True)
class _Change:
    """A key that both runs timed: the ratio of its medians, and the p-values of no change as in Delta."""

    ratio: Bootstrap
    p: float
    p_holm: float | None = None
    p_bh: float | None = None


def compare(base: Run, new: Run, *, threshold: float = 0.01, cross_machine: bool = False) -> Comparison:
    """Join two runs by key and judge each cell by the interval of its ratio of medians.

    SLOWER, FASTER: the whole interval lies beyond the limit and Holm's p-value is below 0.05; SAME: it lies inside;
    AMBIGUOUS: neither. A cell that neither run could time is left out. cross_machine lets another machine pass.
    Raises ValueError on a threshold outside (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold: expected a ratio between 0 and 1, got {threshold}")
    before, after = summarize(base), summarize(new)
    base_cells = {cell.key: cell for cell in before.cells}
    new_cells = {cell.key: cell for cell in after.cells}
    floor = max(floor_of(before), floor_of(after))
    base_timings, new_timings = _timings(base), _timings(new)
    changes = {
        key: _change(key, base_timings[key], new_timings[key])
        for key in base_cells
        if key in base_timings and key in new_timings
    }
    throttled = {cell.key for cell in (*before.cells, *after.cells) if cell.throttled}
    tested = _adjusted({key: change for key, change in changes.items() if key not in throttled})
    limit = max(threshold, floor)
    deltas = (
        _delta(key, base_cells.get(key), new_cells.get(key), tested.get(key) or changes.get(key), limit)
        for key in dict.fromkeys([*base_cells, *new_cells])
    )
    differ = tuple(mismatches(before, after))
    crossed = tuple(each for each in differ if cross_machine and each.name in MACHINE)
    return Comparison(
        base=before,
        new=after,
        threshold=threshold,
        floor=floor,
        deltas=tuple(delta for delta in deltas if delta),
        means=_means(tested, new_cells),
        mismatches=tuple(each for each in differ if each not in crossed),
        crossed=crossed,
        notes=tuple(notes(base.manifest, new.manifest)),
    )


def _timings(run: Run) -> dict[str, Timing]:
    """Key -> the timing that its cell shows, where every sample is positive."""
    latest = {each.point.key: each for each in run.measurements if each.kind == "timing"}
    return {
        key: each.timing
        for key, each in latest.items()
        if each.outcome.usable and each.timing and each.timing.device_s and min(each.timing.device_s) > 0
    }


def _change(key: str, base: Timing, new: Timing) -> _Change:
    """new / base of two series taken apart; a series over itself is 1 exactly, its draws being no independent ones."""
    if base == new:
        return _Change(Bootstrap(1.0, np.ones(DRAWS), len(base.device_s)), 1.0)
    drawn = [hierarchical([each.device_s], seed=_seed(key, each)) for each in (base, new)]
    return _Change(quotient(*drawn), mann_whitney(base.device_s, new.device_s))


def _seed(key: str, timing: Timing) -> int:
    """Of the samples, not of the side they are on: exchanging the runs inverts the interval."""
    return crc32(np.asarray(timing.device_s).tobytes(), crc32(key.encode()))


def _adjusted(changes: Mapping[str, _Change]) -> dict[str, _Change]:
    """The changes with p-values adjusted over all of them."""
    p_values = [change.p for change in changes.values()]
    rows = zip(changes.items(), holm(p_values), benjamini_hochberg(p_values), strict=True)
    return {key: replace(change, p_holm=p_holm, p_bh=p_bh) for (key, change), p_holm, p_bh in rows}


def _delta(key: str, base: Cell | None, new: Cell | None, change: _Change | None, limit: float) -> Delta | None:
    known = new or base
    assert known is not None  # the key came from one of the two
    if base is None or new is None or not base.timed or not new.timed:
        found = _untimed(base, new)
        return Delta(key, known.way, found.verdict, base, new, reason=found.reason) if found else None
    if change is None:
        return Delta(
            key, known.way, "AMBIGUOUS", base, new, reason="a sample of 0 s: the clock cannot resolve the step"
        )
    ratio = change.ratio.estimate
    found = judge(ratio, 1.0 if change.p_holm is None else change.p_holm, limit, base, new)
    return Delta(
        key,
        known.way,
        found.verdict,
        base,
        new,
        ratio=ratio,
        reason=found.reason,
        p=change.p,
        p_holm=change.p_holm,
        p_bh=change.p_bh,
        rounds=found.rounds,
    )


def _untimed(base: Cell | None, new: Cell | None) -> Judgement | None:
    """The verdict on a key that one of the runs could not time; None on one that neither could."""
    had_time = base is not None and base.timed
    if new is None or new.outcome == "missing":
        return Judgement("MISSING", "not in the new run") if had_time else None
    if new.outcome == "incorrect":
        return Judgement("INCORRECT", new.reason)
    if new.outcome == "failed":
        return Judgement("FAILED", new.reason)
    if not new.timed:
        return Judgement("MISSING", f"{new.outcome}: {new.reason}") if had_time else None
    return Judgement("NEW", f"the base is {base.outcome} here" if base else "not in the base run")


def _means(changes: Mapping[str, _Change], cells: Mapping[str, Cell]) -> dict[str, Estimate]:
    by_way: dict[str, list[Bootstrap]] = {}
    for key, change in changes.items():
        by_way.setdefault(cells[key].way, []).append(change.ratio)
    return {way: geometric_mean(members).estimate for way, members in by_way.items()}
