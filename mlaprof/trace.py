"""One cell of a run once more, for its timeline: what to run, and what keeps this machine from running it."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from mlaprof.analysis.differences import Difference, elsewhere, other_shape
from mlaprof.config.load import study_from_resolved
from mlaprof.errors import RunFileError
from mlaprof.plan import Plan, expand
from mlaprof.records import Environment, Job, Manifest, Point

NEAREST = 3


@dataclass(frozen=True)
class Retrace:
    """A plan of one trace job, and what differs here from where the run was measured and may change what is seen."""

    plan: Plan
    point: Point
    differs: tuple[Difference, ...]


def retrace(manifest: Manifest, key: str, here: Environment) -> Retrace:
    """What traces the Point `key` of a run as the run measured it, alone in its process.

    Raises RunFileError on a key that the run has not, on a Point that was not run, and where this machine is of another
    shape than the run's; ConfigError on a study that this mlaprof cannot read.
    """
    name = manifest.run_id
    known = list(dict.fromkeys(line.partition(" ")[2] for line in manifest.planned))
    if key not in known:
        nearest = get_close_matches(key, known, n=NEAREST, cutoff=0.0)
        hint = f"the nearest are {', '.join(nearest)}" if nearest else "it planned nothing"
        raise RunFileError(f"run {name} has no such cell", where=key, hint=hint)
    if differ := tuple(other_shape(manifest, here)):
        what = "; ".join(f"{each.name} was {each.base}, here {each.new}" for each in differ)
        raise RunFileError(f"run {name} cannot be run again here: {what}", where=key, hint="trace it where it ran")
    plan = expand(study_from_resolved(manifest.study_yaml), manifest.device).with_tuned(manifest.tuned)
    skipped = {skip.point.key: skip.outcome.reason for skip in plan.skips}
    if key in skipped:
        raise RunFileError(f"was not run: {skipped[key]}", where=key, hint="choose a cell that was")
    found = _job_of(plan, key)
    if found is None:
        raise RunFileError("was compiled and not run", where=key, hint="trace it on a GPU, or its default tiles here")
    job, point = found
    alone = job.model_copy(update={"kind": "trace", "process": 0, "points": (point,)})
    return Retrace(Plan(jobs=(alone,), skips=()), point, tuple(elsewhere(manifest, here)))


def _job_of(plan: Plan, key: str) -> tuple[Job, Point] | None:
    """The job that runs the Point, and the Point."""
    for job in plan.jobs:
        for point in job.points if job.kind != "compile" else ():
            if point.key == key:
                return job, point
    return None
