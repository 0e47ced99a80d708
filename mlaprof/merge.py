"""Several runs of one study as one: parts that were swept apart, by hand or by a batch system."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlaprof import store
from mlaprof.analysis.differences import elsewhere
from mlaprof.analysis.stored import stored_study
from mlaprof.errors import RunFileError
from mlaprof.records import AnyMeasurement, Manifest, Measurement, Run, work

Unit = tuple[str, int, str]
"""(kind, process, what) of samples that belong together, because they were taken side by side in one process."""


@dataclass(frozen=True)
class Merged:
    """What the parts have together; not written yet."""

    manifest: Manifest
    measurements: tuple[AnyMeasurement, ...]  # in plan order

    @property
    def missing(self) -> int:
        """Planned measurements that no part has."""
        found = {work(each.kind, each.point.key, each.process) for each in self.measurements}
        return len(set(self.manifest.planned) - found)


def merged(paths: Sequence[Path], *, command: Sequence[str]) -> Merged:
    """The run that these runs are parts of.

    What one part measured and another only failed at is taken from the first. Raises RunFileError where the runs are of
    different studies, schemas, processors, tuned tiles or code, or where two measured the same cell.
    """
    parts = {path: store.load_to_go_on(path) for path in paths}
    first = next(iter(parts.values())).manifest
    for path, run in parts.items():
        _require_alike(first, run, path)
    units: dict[Unit, dict[Path, dict[str, AnyMeasurement]]] = {}
    for path, run in parts.items():
        rows: Iterable[AnyMeasurement] = (*run.measurements, *run.kernels)
        for each in rows:
            units.setdefault(_unit(each), {}).setdefault(path, {})[each.point.key] = each
    chosen = [each for unit, held in units.items() for each in _chosen(unit, held).values()]
    place = {line: number for number, line in enumerate(first.planned)}
    chosen.sort(key=lambda each: place.get(work(each.kind, each.point.key, each.process), len(place)))
    now = datetime.now(UTC)
    manifest = first.model_copy(
        update={
            "run_id": store.new_run_id(str((stored_study(first.study_yaml) or {}).get("name", "")), now),
            "created_at": now.isoformat(timespec="seconds"),
            "command": tuple(command),
            "forced": tuple(dict.fromkeys(line for run in parts.values() for line in run.manifest.forced)),
            "merged": tuple(run.manifest.run_id for run in parts.values()),
        }
    )
    return Merged(manifest, tuple(chosen))


def _require_alike(first: Manifest, run: Run, path: Path) -> None:
    other = run.manifest
    what = ""
    if run.is_of_tuning:
        raise RunFileError("a run of tuning has no parts", where=str(path), hint="`mlaprof tuned` joins libraries")
    if other.study_yaml != first.study_yaml or other.planned != first.planned or other.device != first.device:
        what = "another study"
    elif other.tuned != first.tuned:
        what = "other tuned tiles"
    elif differ := [each.name for each in elsewhere(first, other.environment)]:
        what = f"another {' and '.join(differ)}"
    elif other.environment.source_sha256 != first.environment.source_sha256:
        what = "another mlaprof"
    if what:
        raise RunFileError(
            f"of {what} than run {first.run_id}", where=str(path), hint="merge parts of one, `mlaprof sweep --part`"
        )


def _unit(each: AnyMeasurement) -> Unit:
    point = each.point
    if isinstance(each, Measurement) and each.kind == "memory":  # all sizes of one way share a graph pool
        return each.kind, each.process, f"{each.point.phase}/ctx{each.point.context_len}/{each.point.way}"
    alone = isinstance(each, Measurement) and each.kind != "timing"
    return each.kind, each.process, point.key if alone else point.cell


def _chosen(unit: Unit, held: Mapping[Path, Mapping[str, AnyMeasurement]]) -> Mapping[str, AnyMeasurement]:
    """Whose rows of the unit count. Raises RunFileError where two runs measured it."""
    if len(held) == 1:
        return next(iter(held.values()))
    rows = [(path, each) for path, each in held.items() if not _repeats(path, held)]
    measured = [(path, each) for path, each in rows if _is_measured(each.values())]
    if len(measured) > 1:
        (one, _), (other, _) = measured[:2]
        kind, process, what = unit
        raise RunFileError(
            f"{work('timing', what, process).replace('timing', kind, 1)} was measured in {one}, too",
            where=str(other),
            hint="a cell counts once: leave one of the runs out",
        )
    return (measured or rows)[0][1]


def _repeats(path: Path, held: Mapping[Path, Mapping[str, AnyMeasurement]]) -> bool:
    """An earlier part says all of this, or a later one says this and more: an older copy of a run, or a skip."""
    mine = _spoken(held[path])
    places = list(held)
    for other in places:
        theirs = _spoken(held[other])
        earlier = places.index(other) < places.index(path)
        if other != path and mine.items() <= theirs.items() and (earlier or len(mine) < len(theirs)):
            return True
    return False


def _spoken(rows: Mapping[str, AnyMeasurement]) -> dict[str, str]:
    return {key: _said(each) for key, each in rows.items()}


def _said(each: AnyMeasurement) -> str:
    """What tells two rows apart; two runs skip a Point alike, at different times."""
    skipped = each.outcome.status == "skipped" and each.outcome.stage == "plan"
    return (each.model_copy(update={"recorded_at": ""}) if skipped else each).model_dump_json()


def _is_measured(rows: Iterable[AnyMeasurement]) -> bool:
    return any(each.outcome.status != "failed" for each in rows)
