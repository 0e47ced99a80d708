"""The chosen list put to the test: which steps to run under it, and what they say of the prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlaprof.analysis.cells import Cell, Summary
from mlaprof.buckets import bucket_of
from mlaprof.sizing.capture_cost import of_ledger
from mlaprof.sizing.costs import Costs, measured_step
from mlaprof.sizing.score import Expected
from mlaprof.sizing.steps import Steps
from mlaprof.study import BOUNDED_MODES, Study

STRATA = 24  # steps that are run to stand for a trace


@dataclass(frozen=True)
class Stratum:
    """An equal part of a trace's steps, by token count, and the step that stands for it: its median."""

    num_tokens: int
    padded: int | None  # None: eager
    share: float


@dataclass(frozen=True)
class Row:
    """A stratum with its two times, in seconds of a step."""

    num_tokens: int
    padded: int | None
    share: float
    predicted_s: float
    measured_s: float
    low_s: float
    high_s: float


@dataclass(frozen=True)
class Checked:
    """Prediction and measurement over the same strata; memory and capture of the list itself."""

    rows: tuple[Row, ...]
    predicted_s: float
    measured_s: float
    low_s: float  # of measured_s, by the intervals of its rows
    high_s: float
    predicted_bytes: int | None
    measured_bytes: int | None
    predicted_capture_s: float | None
    measured_capture_s: float | None
    emulated: bool
    failed: tuple[str, ...] = ()  # keys of strata without a time; what is left is weighted anew


def strata(steps: Steps, sizes: Sequence[int], parts: int = STRATA) -> tuple[Stratum, ...]:
    """The weighted medians of so many equal parts of the trace, by token count; of equal ones their shares together.

    Their token counts do not depend on the list: two lists are compared by the same steps.
    """
    running = np.cumsum(steps.weights)
    places = np.searchsorted(running, running[-1] * (np.arange(parts) + 0.5) / parts)
    shares: dict[int, float] = {}
    for place in np.minimum(places, steps.tokens.size - 1).tolist():
        shares[int(steps.tokens[place])] = shares.get(int(steps.tokens[place]), 0.0) + 1 / parts
    return tuple(Stratum(count, bucket_of(count, sizes), share) for count, share in shares.items())


def study_under(study: Study, chosen: Sequence[int], counts: Sequence[int], way: str, context_len: int) -> Study:
    """The run's study with this list captured and these steps measured, in one way."""
    mode, _, boundary = way.partition("@")
    axes: dict[str, object] = {
        "num_tokens": tuple(sorted(set(counts))),
        "context_len": (context_len,),
        "mode": (mode,),
        "phase": tuple(phase for phase in study.axes.phase if phase != "decode"),
    }
    if boundary and mode in BOUNDED_MODES:
        axes["boundary"] = (boundary,)
    return study.model_copy(
        update={
            "name": f"{study.name}-buckets",
            "axes": study.axes.model_copy(update=axes),
            "include": (),
            "exclude": (),
            "tiles": {},
            "capture": study.capture.model_copy(update={"sizes": tuple(chosen)}),
            "measure": study.measure.model_copy(update={"memory": True, "counts": False, "twin": False}),
        }
    )


def check(found: Expected, asked: Sequence[Stratum], costs: Costs, summary: Summary) -> Checked:
    """Lay a prediction beside a run under its list. Raises ValueError where no stratum was timed."""
    cells = {cell.num_tokens: cell for cell in summary.cells if not cell.tiles}
    rows, failed = [], []
    for each in asked:
        cell = cells.get(each.num_tokens)
        measured = measured_step(cell, costs) if cell else None
        if measured is None:
            failed.append(cell.key if cell else f"t{each.num_tokens}")
            continue
        own = predicted_step(each.num_tokens, found.sizes, costs)
        rows.append(
            Row(each.num_tokens, each.padded, each.share, own, measured.median, measured.ci_low, measured.ci_high)
        )
    if not rows:
        raise ValueError("summary: expected a time of at least one stratum, got none")
    total = sum(row.share for row in rows)

    def mean(values: Mapping[int, float]) -> float:
        return sum(row.share * values[row.num_tokens] for row in rows) / total

    memory, seconds = _captured(cells.values(), costs)
    return Checked(
        rows=tuple(rows),
        predicted_s=mean({row.num_tokens: row.predicted_s for row in rows}),
        measured_s=mean({row.num_tokens: row.measured_s for row in rows}),
        low_s=mean({row.num_tokens: row.low_s for row in rows}),
        high_s=mean({row.num_tokens: row.high_s for row in rows}),
        predicted_bytes=found.memory_bytes,
        measured_bytes=memory,
        predicted_capture_s=found.capture_s,
        measured_capture_s=seconds,
        emulated=summary.emulated,
        failed=tuple(failed),
    )


def predicted_step(num_tokens: int, sizes: Sequence[int], costs: Costs) -> float:
    """Seconds of one step under a list."""
    padded = bucket_of(num_tokens, sizes)
    own = np.array([num_tokens])
    if padded is None:
        return float(costs.eager.at(own)[0])
    share = costs.padding_share
    return float((1 - share) * costs.graph.at(own)[0] + share * costs.graph.at(np.array([padded]))[0])


def _captured(cells: Iterable[Cell], costs: Costs) -> tuple[int | None, float | None]:
    """Bytes and seconds of all sizes that the run captured, for as many layers as costs has."""
    ledger = next((cell.memory.ledger for cell in cells if cell.memory and cell.memory.ledger), None)
    made = of_ledger(ledger.sizes, ledger.hold) if ledger else None
    if made is None:
        return None, None
    made = made.scaled(costs.layers / costs.measured_layers)
    assert made.bytes is not None
    return int(made.bytes.sum()), float(made.seconds.sum())
