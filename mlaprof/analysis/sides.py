"""One side of a comparison: the cells and series of a run, or of one way of it, under the keys that join them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.floor import TWIN
from mlaprof.analysis.summary import summarize
from mlaprof.errors import RunFileError
from mlaprof.facts import Timing
from mlaprof.records import Manifest, Measurement, Run

Series = Mapping[int, Timing]
"""The timings of one Point by process, every sample positive."""


@dataclass(frozen=True)
class Side:
    """What is compared of a run. Of a whole run cells and series go by key; of one way by place and tiles."""

    manifest: Manifest
    summary: Summary  # of the whole run
    way: str | None
    cells: Mapping[str, Cell]
    series: Mapping[str, Series]


def side_of(run: Run, way: str | None = None) -> Side:
    """The Side of a run, or of `mode[@boundary]` in it, with `/aa` behind it that way's A/A twin.

    Raises RunFileError on a way that the run lacks.
    """
    summary = summarize(run)
    if way is None:
        return Side(
            run.manifest,
            summary,
            None,
            {cell.key: cell for cell in summary.cells},
            _series((each.point.key, each) for each in run.measurements if not each.point.twin),
        )
    known = _ways(run, summary)
    if way not in known:
        raise RunFileError(
            f"run {summary.run_id} has no way {way!r}", where=way, hint=f"its ways are {', '.join(known) or 'none'}"
        )
    chosen = _of_twin(run, way.removesuffix(TWIN)) if way.endswith(TWIN) else run
    cells = summarize(chosen).cells if chosen is not run else summary.cells
    joined = {cell.key: _join_key(cell) for cell in cells if cell.way == way.removesuffix(TWIN)}
    return Side(
        run.manifest,
        summary,
        way,
        {joined[cell.key]: cell for cell in cells if cell.key in joined},
        _series((joined[each.point.key], each) for each in chosen.measurements if each.point.key in joined),
    )


def _ways(run: Run, summary: Summary) -> list[str]:
    twins = (f"{each.point.way}{TWIN}" for each in run.measurements if each.point.twin)
    return list(dict.fromkeys([*(cell.way for cell in summary.cells), *twins]))


def _join_key(cell: Cell) -> str:
    return f"{cell.place}/{cell.tiles}" if cell.tiles else cell.place


def _of_twin(run: Run, way: str) -> Run:
    """The run as if the twins of this way were all it timed, under the way's own name."""
    twins = [each for each in run.measurements if each.point.twin and each.point.way == way]
    keys = {each.point.key for each in twins}
    lines = (line for line in run.manifest.planned if line.partition(" ")[2] in keys)
    return Run(
        manifest=run.manifest.model_copy(update={"planned": tuple(line.removesuffix(TWIN) for line in lines)}),
        measurements=tuple(
            each.model_copy(update={"point": each.point.model_copy(update={"twin": False})}) for each in twins
        ),
    )


def _series(rows: Iterable[tuple[str, Measurement]]) -> dict[str, Series]:
    """Key -> the usable timings by process, where every sample is positive; of a repeated one the latest."""
    found: dict[str, dict[int, Timing]] = {}
    for key, each in rows:
        if each.kind != "timing":
            continue
        series = found.setdefault(key, {})
        series.pop(each.process, None)
        if each.outcome.usable and each.timing and each.timing.device_s:
            series[each.process] = each.timing
    return {
        key: dict(sorted(series.items()))
        for key, series in found.items()
        if series and all(min(timing.device_s) > 0 for timing in series.values())
    }
