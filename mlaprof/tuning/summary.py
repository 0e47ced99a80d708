"""What a run of tuning says of each target: its decision, its course, where the time went, which fields matter."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from mlaprof.kernels import tiles
from mlaprof.records import KernelMeasurement, Run
from mlaprof.tuning.candidates import form_of
from mlaprof.tuning.finals import Decision, decide
from mlaprof.tuning.plan import Search, evaluated, has_hopper_forms, plan_search, rows_of
from mlaprof.tuning.study import tune_study_from_resolved


@dataclass(frozen=True)
class Step:
    """The best after so many evaluations and so many seconds."""

    evaluations: int
    at_s: float
    best_device_s: float


@dataclass(frozen=True)
class Spent:
    """Where the wall time of a search went, in seconds. compile_s is of other processes, beside the rest."""

    starting_s: float  # imports, context, inputs and a first check, while the compilers start
    check_s: float
    measure_s: float
    waiting_s: float  # for the next compiled configuration
    other_s: float  # proposing, writing
    compile_s: float

    @property
    def wall_s(self) -> float:
        """Until the fastest were sampled once more, which is later than the last row of the search."""
        return self.starting_s + self.check_s + self.measure_s + self.waiting_s + self.other_s


@dataclass(frozen=True)
class Effect:
    """By how much a field matters: the slowest of its values' best over the fastest, of the form with the best time."""

    field: str
    ratio: float
    best: Mapping[int, float]  # value -> seconds of the fastest configuration that has it


@dataclass(frozen=True)
class TargetSummary:
    search: Search
    decision: Decision
    declared: int
    legal: int
    tried: int  # rows, launched or not
    evaluations: int
    wall_s: float  # of the search
    total_s: float | None  # from its beginning to its last finalist; None before those
    course: tuple[Step, ...]
    default_seen_s: float | None  # of the launcher's own choice, as the search first saw it: what course compares with
    spent: Spent
    failures: Mapping[str, int]  # `spills`, `failed at compile`, `incorrect` ... -> how many
    effects: tuple[Effect, ...]  # that matter most first

    @property
    def coverage(self) -> float:
        """Of the legal space."""
        return self.tried / self.legal


def summarize_tuning(run: Run) -> tuple[TargetSummary, ...]:
    """A summary a target, in the order of the study. Raises ConfigError where the run is none of tuning."""
    study = tune_study_from_resolved(run.manifest.study_yaml)
    hopper = has_hopper_forms(run.manifest.environment, run.manifest.device)
    return tuple(
        summarize_target(
            plan_search(target, hopper=hopper),
            rows_of(target, run.kernels, "search"),
            rows_of(target, run.kernels, "kernel"),
        )
        for target in study.targets
    )


def summarize_target(
    search: Search, rows: Sequence[KernelMeasurement], finals: Sequence[KernelMeasurement]
) -> TargetSummary:
    facts = sorted((each.search for each in rows if each.search is not None), key=lambda each: each.at_s)
    wall_s = facts[-1].at_s if facts else 0.0
    starting_s = sum(first.at_s - first.waited_s - first.check_s - first.measure_s for first in facts[:1])
    check_s, measure_s, waiting_s = (
        sum(getattr(each, name) for each in facts) for name in ("check_s", "measure_s", "waited_s")
    )
    return TargetSummary(
        search=search,
        decision=decide(search.target, rows, finals, search.default, search.deployed),
        declared=search.space.declared,
        legal=len(search.space.space.configurations),
        tried=len(rows),
        evaluations=evaluated(rows),
        wall_s=wall_s,
        total_s=_total_s(rows, finals),
        course=_course(rows),
        default_seen_s=_seen_s(search, rows),
        spent=Spent(
            starting_s,
            check_s,
            measure_s,
            waiting_s,
            max(0.0, wall_s - starting_s - check_s - measure_s - waiting_s),
            sum(each.compile_s for each in facts),
        ),
        failures=Counter(kind for each in rows if (kind := failure_kind(each))),
        effects=_effects(rows),
    )


def failure_kind(row: KernelMeasurement) -> str:
    """Why a configuration has no time of its own, in two or three words; empty where it has one."""
    outcome = row.outcome
    if outcome.usable or outcome.status == "compiled":
        return ""
    if row.search is not None and row.search.twin_of:
        return "same binary"
    if outcome.status == "skipped" and outcome.stage == "compile":
        return "spills" if outcome.reason.startswith("spills") else "too much shared memory"
    if outcome.status == "incorrect":
        return "incorrect"
    return f"{outcome.status} at {outcome.stage}"


def first_time_s(row: KernelMeasurement) -> float | None:
    """What a search first took a configuration's time to be."""
    if row.search is not None and row.search.first_device_s is not None:
        return row.search.first_device_s
    return median(row.timing.device_s) if row.timing is not None and row.timing.device_s else None


def _total_s(rows: Sequence[KernelMeasurement], finals: Sequence[KernelMeasurement]) -> float | None:
    """By the dates of the rows: the search's last says when it began, whatever pauses lay before that."""
    timed = [(datetime.fromisoformat(each.recorded_at), each.search.at_s) for each in rows if each.search]
    if not timed or not finals:
        return None
    at, after_s = max(timed)
    return after_s + (max(datetime.fromisoformat(each.recorded_at) for each in finals) - at).total_seconds()


def _course(rows: Sequence[KernelMeasurement]) -> tuple[Step, ...]:
    found: list[Step] = []
    best_s, count = math.inf, 0
    for row in sorted(rows, key=lambda each: each.search.at_s if each.search else 0.0):
        if row.search is None or row.search.check_s <= 0:
            continue
        count += 1
        seconds = first_time_s(row)
        if seconds is not None and seconds < best_s:
            best_s = seconds
            found.append(Step(count, row.search.at_s, best_s))
    return tuple(found)


def _seen_s(search: Search, rows: Sequence[KernelMeasurement]) -> float | None:
    key = search.space.point(search.default).key
    return next((first_time_s(row) for row in rows if row.point.key == key), None)


def _effects(rows: Sequence[KernelMeasurement]) -> tuple[Effect, ...]:
    timed = [(seconds, row) for row in rows if row.outcome.usable and (seconds := first_time_s(row)) is not None]
    if not timed:
        return ()
    form = form_of(min(timed, key=lambda each: each[0])[1].point)
    same = [(seconds, row.point.tiles or {}) for seconds, row in timed if form_of(row.point) == form]
    found = []
    for field in tiles.field_names(form):
        best: dict[int, float] = {}
        for seconds, values in same:
            best[values[field]] = min(seconds, best.get(values[field], math.inf))
        found.append(Effect(field, max(best.values()) / min(best.values()), dict(sorted(best.items()))))
    return tuple(sorted(found, key=lambda each: -each.ratio))
