"""Whether entries of a library still hold here: each beside the default once more, in rounds, in a fresh process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mlaprof.analysis.arms import arm_of, speedup
from mlaprof.analysis.stats import Estimate
from mlaprof.kernel_choices import choices
from mlaprof.kernel_plan import KernelPlan
from mlaprof.records import Device, Environment, KernelJob, KernelMeasurement
from mlaprof.study import MeasureSpec, TileChoice, TuneTarget
from mlaprof.tuning.candidates import point_of
from mlaprof.tuning.conditions import conditions_of
from mlaprof.tuning.finals import default_point
from mlaprof.tuning.library import Entry
from mlaprof.tuning.plan import has_hopper_forms

ROUNDS = MeasureSpec(processes=1, min_samples=20, max_samples=100, cell_time_s=3.0, twin=False)

Verdict = Literal["holds", "slower", "undecided", "not measured"]


@dataclass(frozen=True)
class Checked:
    """A tuned entry of this GPU, with the default that it is measured against."""

    entry: Entry
    target: TuneTarget
    default: TileChoice
    current: bool  # of this Triton, CUDA and kernel source, so that it serves now


@dataclass(frozen=True)
class Check:
    """How an entry fared."""

    checked: Checked
    verdict: Verdict
    gain: Estimate | None
    reason: str = ""


def to_check(
    entries: Iterable[Entry], environment: Environment, device: Device, kernels: Sequence[str] = ()
) -> list[Checked]:
    """The entries with tiles of their own that were tuned on such a GPU."""
    hopper = has_hopper_forms(environment, device)
    found = []
    for entry in entries:
        if entry.values is None or (kernels and entry.conditions.kernel not in kernels):
            continue
        of = entry.conditions
        here = conditions_of(environment, device, of.kernel, entry.shape, of.launch, of.cache)
        defaults = choices(of.kernel, entry.shape, hopper=hopper)
        if (of.gpu, of.sm_count) == (here.gpu, here.sm_count) and defaults:
            target = TuneTarget(kernel=of.kernel, shape=entry.shape, launch=of.launch)
            found.append(Checked(entry, target, defaults[0], of == here))
    return found


def check_plan(checked: Sequence[Checked], device: Device) -> KernelPlan:
    """A job a cache state: default and entry of every cell."""
    jobs = []
    for cache in dict.fromkeys(each.entry.conditions.cache for each in checked):
        points = {
            point.key: point
            for each in checked
            if each.entry.conditions.cache == cache
            for point in (default_point(each.target, each.default), point_of(each.target, _tiles(each.entry)))
        }
        measure = ROUNDS.model_copy(update={"cache": cache})
        jobs.append(KernelJob(device=device, seed=0, measure=measure, points=tuple(points.values())))
    return KernelPlan(tuple(jobs))


def outcomes(checked: Sequence[Checked], rows: Iterable[KernelMeasurement]) -> list[Check]:
    """A verdict an entry: slower where the whole interval is, and no rows are needed to say `not measured`."""
    known: dict[tuple[str, str], KernelMeasurement] = {}
    for row in rows:
        cache = row.timing.cache if row.timing else ""
        known[row.point.key, cache] = row
    found = []
    for each in checked:
        cache = each.entry.conditions.cache
        default, tuned = default_point(each.target, each.default), point_of(each.target, _tiles(each.entry))
        pair = [known.get((point.key, cache)) or known.get((point.key, "")) for point in (default, tuned)]
        arms = [arm_of(row.point.key, {0: row}) if row is not None else None for row in pair]
        gain = speedup(arms[0], arms[1])
        if gain is None:
            said = next((row.outcome.reason.splitlines()[0] for row in pair if row and row.outcome.reason), "no rounds")
            found.append(Check(each, "not measured", None, said))
            continue
        verdict: Verdict = "holds" if gain.ci_low >= 1.0 else "slower" if gain.ci_high < 1.0 else "undecided"
        found.append(Check(each, verdict, gain))
    return found


def _tiles(entry: Entry) -> TileChoice:
    return TileChoice(kernel=entry.form or entry.conditions.kernel, values=entry.values or {})
