"""Two runs, or two ways of running a step, joined cell by cell: verdicts, geometric means, and what differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.changes import Change, Stepped, adjusted, changes_of, mean_of
from mlaprof.analysis.differences import MACHINE, Difference, mismatches, notes
from mlaprof.analysis.limits import Limit, limit_of
from mlaprof.analysis.sides import Side, side_of
from mlaprof.analysis.stats import Estimate
from mlaprof.analysis.stored import stored_study
from mlaprof.analysis.verdicts import MOST_PROCESSES, MOST_ROUNDS, Judgement, Verdict, at_least, judge
from mlaprof.records import Manifest, Run
from mlaprof.study import MeasureSpec

GATING_ROUNDS = MeasureSpec.model_fields["min_samples"].default  # of a single process; fewer make a quick run


class FailOn(StrEnum):
    """What a comparison fails on: a regression; also what is not settled or missing; nothing."""

    slower = "slower"
    ambiguous = "ambiguous"
    never = "never"


@dataclass(frozen=True)
class Delta:
    """One cell of both sides. ratio is new / base of device times: above 1 is slower.

    The p-values are of one test of the two series, by itself and adjusted over all cells judged together: Holm's
    decides, Benjamini and Hochberg's is for reading. A throttled cell is not judged and has no adjusted ones.
    """

    key: str  # of whole runs the Point's; of ways its place and tiles
    way: str  # what it is averaged with
    verdict: Verdict
    base: Cell | None
    new: Cell | None
    ratio: Estimate | None = None
    reason: str = ""
    p: float | None = None
    p_holm: float | None = None
    p_bh: float | None = None
    limit: Limit | None = None
    paired: bool = False
    processes: tuple[int, int] | None = None  # of base and new
    rounds: int | None = None  # that each run needs to settle an AMBIGUOUS; None: rounds alone would not
    more: int | None = None  # processes that each run needs to settle it, where rounds alone would not

    @property
    def regression(self) -> bool:
        """The new run is worse: slower, wrong, or failed where the base had a time."""
        return self.broken or self.verdict == "SLOWER"

    @property
    def broken(self) -> bool:
        """The new run has no time, or none that may be shown, where it should: no matter of noise."""
        if self.verdict == "FAILED":
            return self.base is not None and self.base.timed
        return self.verdict == "INCORRECT"


@dataclass(frozen=True)
class Comparison:
    """deltas in the base's plan order; mismatches forbid a comparison, crossed ones were allowed, notes explain one."""

    base: Summary
    new: Summary
    threshold: float  # as asked
    deltas: tuple[Delta, ...]
    means: Mapping[str, Estimate]  # geometric mean of the ratios of each way, without throttled cells; n counts cells
    mismatches: tuple[Difference, ...]
    crossed: tuple[Difference, ...]
    notes: tuple[Difference, ...]
    base_way: str | None = None  # None: the whole run
    new_way: str | None = None
    quick: tuple[str, ...] = ()  # which of base and new are quick runs
    again: str | None = None  # the run that measured once more what was SLOWER

    @property
    def limit(self) -> float:
        """The smallest change that counts in any cell: the threshold, or the larger A/A floor of the two runs."""
        return limit_of(self.threshold, self.base.floor, self.new.floor).value

    @property
    def judged(self) -> bool:
        """Some cell was timed in both runs, or is worse without: otherwise nothing was compared."""
        told = ("SLOWER", "FASTER", "SAME", "AMBIGUOUS", "THROTTLED")
        return any(delta.verdict in told or delta.regression for delta in self.deltas)

    def exit_code(self, fail_on: FailOn = FailOn.slower) -> Literal[0, 1, 3, 4]:
        """4 the runs are of different kinds; 1 a regression; 3 something not settled; 0 neither.

        fail_on slower: ambiguous, throttled and missing cells pass. ambiguous: they do not, and a missing one is a
        regression. never: nothing but 4 fails. A quick run reports and does not gate: what it finds slower counts as
        ambiguous, and what is incorrect or failed counts as ever.
        """
        if self.mismatches:
            return 4
        if fail_on is FailOn.never:
            return 0
        found = {delta.verdict for delta in self.deltas}
        strict = fail_on is FailOn.ambiguous
        slower = "SLOWER" in found
        if any(delta.broken for delta in self.deltas) or (slower and not self.quick) or (strict and "MISSING" in found):
            return 1
        return 3 if strict and (slower or not found.isdisjoint(("AMBIGUOUS", "THROTTLED"))) else 0


def compare(
    base: Run,
    new: Run,
    *,
    base_way: str | None = None,
    new_way: str | None = None,
    threshold: float = 0.01,
    cross_machine: bool = False,
) -> Comparison:
    """Join two runs by key, or one way of each by place and tiles, and judge each cell by the interval of its ratio.

    base_way, new_way  `mode[@boundary]`, with `/aa` behind it the way's A/A twin; both or neither. Two ways of one run
                       are paired by round

    SLOWER, FASTER: the whole interval lies beyond the limit and Holm's p-value is below 0.05; SAME: it lies inside;
    AMBIGUOUS: neither; THROTTLED: the clocks stayed down. A cell that neither run could time is left out.
    cross_machine lets another machine pass.
    Raises RunFileError on a way that a run lacks, ValueError on a threshold outside (0, 1) or on one way alone.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold: expected a ratio between 0 and 1, got {threshold}")
    if (base_way is None) != (new_way is None):
        raise ValueError(f"base_way, new_way: expected both or neither, got {base_way} and {new_way}")
    before, after = side_of(base, base_way), side_of(new, new_way)
    one_run = base_way is not None and base.manifest == new.manifest
    pairs = {
        key: (before.series[key], after.series[key])
        for key in before.cells
        if key in before.series and key in after.series
    }
    steps = {
        key: Stepped(_way(key, before, after), _launches(*cells), emulated=any(cell.emulated for cell in cells))
        for key in pairs
        for cells in [(before.cells[key], after.cells[key])]
    }
    changes = changes_of(pairs, steps, one_run=one_run)
    throttled = {key for side in (before, after) for key, cell in side.cells.items() if cell.throttled}
    tested = adjusted({key: change for key, change in changes.items() if key not in throttled})
    deltas = (
        _delta(key, before, after, tested.get(key) or changes.get(key), threshold)
        for key in dict.fromkeys([*before.cells, *after.cells])
    )
    differ = tuple(mismatches(before.summary, after.summary))
    crossed = tuple(each for each in differ if cross_machine and each.name in MACHINE)
    return Comparison(
        base=before.summary,
        new=after.summary,
        threshold=threshold,
        deltas=tuple(delta for delta in deltas if delta),
        means=_means(tested, before, after),
        mismatches=tuple(each for each in differ if each not in crossed),
        crossed=crossed,
        notes=tuple(notes(base.manifest, new.manifest)),
        base_way=base_way,
        new_way=new_way,
        quick=tuple(name for name, run in (("base", base), ("new", new)) if is_quick(run.manifest)),
    )


def is_quick(manifest: Manifest) -> bool:
    """A run that was asked for one process and few rounds, as `--quick` asks: it shows, and settles nothing."""
    study = stored_study(manifest.study_yaml) or {}
    measure = study.get("measure")
    asked = measure if isinstance(measure, dict) else {}
    return bool(asked.get("processes", 1) == 1 and asked.get("min_samples", GATING_ROUNDS) < GATING_ROUNDS)


def _delta(key: str, before: Side, after: Side, change: Change | None, threshold: float) -> Delta | None:
    base, new = before.cells.get(key), after.cells.get(key)
    way = _way(key, before, after)
    if base is None or new is None or not base.timed or not new.timed:
        found = _untimed(base, new)
        return Delta(key, way, found.verdict, base, new, reason=found.reason) if found else None
    if change is None:
        return Delta(key, way, "AMBIGUOUS", base, new, reason="a sample of 0 s: the clock cannot resolve the step")
    limit = limit_of(threshold, before.summary.floor, after.summary.floor)
    ratio = change.ratio
    found = judge(ratio, 1.0 if change.p_holm is None else change.p_holm, limit.value, base, new)
    return Delta(
        key,
        way,
        found.verdict,
        base,
        new,
        ratio=ratio,
        reason=found.reason,
        p=change.p,
        p_holm=change.p_holm,
        p_bh=change.p_bh,
        limit=limit,
        paired=change.paired,
        processes=change.processes,
        rounds=None if change.by_processes else at_least(found.effort, ratio.n, MOST_ROUNDS),
        more=at_least(found.effort, min(change.processes), MOST_PROCESSES) if change.by_processes else None,
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


def _way(key: str, before: Side, after: Side) -> str:
    if before.way is not None:
        return f"{after.way} over {before.way}"
    return (after.cells.get(key) or before.cells[key]).way


def _launches(*cells: Cell) -> int | None:
    """The most kernels that either step launches outside graphs, of those counted; None where neither was."""
    counted = [0 if cell.mode == "full" else cell.counts.kernel_launches if cell.counts else None for cell in cells]
    known = [each for each in counted if each is not None]
    return max(known, default=None)


def _means(changes: Mapping[str, Change], before: Side, after: Side) -> dict[str, Estimate]:
    by_way: dict[str, list[Change]] = {}
    for key, change in changes.items():
        by_way.setdefault(_way(key, before, after), []).append(change)
    return {way: mean_of(members) for way, members in by_way.items()}
