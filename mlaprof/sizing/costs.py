"""What a run knows of steps with graphs and without: two curves, what capturing costs, what padding costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mlaprof.analysis.capture import capture_cost_s
from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.groups import Group, groups
from mlaprof.analysis.stats import Estimate
from mlaprof.errors import RunFileError
from mlaprof.sizing.capture_cost import CaptureCost, of_ledger
from mlaprof.sizing.curve import Curve, curve_of
from mlaprof.study import BUCKETED_MODES, Mode

Clock = Literal["step", "device"]
PREFERRED: tuple[Mode, ...] = ("split_piecewise", "breakable", "monolithic_piecewise")
EAGER: tuple[Mode, ...] = ("split_eager", "monolithic_eager")  # an engine's eager step runs the split operators, too


STEADY_HALF_WIDTH = 0.05  # of the median, in the middle of the cells: bursts of few rounds can be far worse


@dataclass(frozen=True, eq=False)
class Costs:
    """Seconds and bytes of the layers named in `layers`."""

    way: str
    eager_way: str
    clock: Clock
    clock_name: str  # what the seconds are, for a reader
    graph: Curve
    eager: Curve
    capture: CaptureCost | None
    padding_share: float  # of what a step grows from its own size to the padded one; 1 is all of it
    padded_cells: int  # measured ones that say so; 0: none, and the share is the bound 1
    layers: int
    measured_layers: int
    emulated: bool

    @property
    def largest(self) -> int:
        """Largest token count that both curves reach."""
        return int(min(self.graph.tokens[-1], self.eager.tokens[-1]))


def costs_of(
    summary: Summary,
    *,
    measured_layers: int,
    layers: int | None = None,
    way: str | None = None,
    context_len: int | None = None,
    clock: Clock = "step",
) -> Costs:
    """The costs of one way of a run beside its eager form; layers None is as many as were measured.

    Raises RunFileError where the run lacks the way, an eager form of it, or two sizes of both.
    """
    group = _group(summary, context_len)
    chosen = way or next((mode for mode in PREFERRED if _timed(group, mode)), None)
    if chosen is None or not _timed(group, chosen):
        there = sorted({cell.way for cell in group.cells if cell.mode in BUCKETED_MODES and cell.timed})
        hint = f"it has {', '.join(there)}" if there else "sweep with -a mode=split_eager,split_piecewise"
        raise RunFileError(f"no timed cell of {way or 'a mode with piecewise graphs'}", where=summary.run_id, hint=hint)
    if chosen.partition("@")[0] not in BUCKETED_MODES:
        hint = f"give one of {', '.join(BUCKETED_MODES)}"
        raise RunFileError(f"{chosen} pads to no capture size", where="--way", hint=hint)
    eager_way = next((mode for mode in EAGER if _timed(group, mode)), None)
    if eager_way is None:
        raise RunFileError("no eager mode was timed", where=summary.run_id, hint="sweep with -a mode=split_eager,...")
    graph_cells, eager_cells = _timed(group, chosen), _timed(group, eager_way)
    true_size = [cell for cell in graph_cells if _padded(cell) is None and not cell.fell_back]
    shared = {cell.num_tokens for cell in true_size} & {cell.num_tokens for cell in eager_cells}
    if len(shared) < 2:
        hint = "sweep at least two token counts in both modes, e.g. -a num_tokens=1,64,1024,8192"
        raise RunFileError(f"{len(shared)} sizes of both {chosen} and {eager_way}", where=summary.run_id, hint=hint)
    sustained = clock == "step" and _steady([*graph_cells, *eager_cells])
    graph, eager = (
        curve_of([(cell.num_tokens, _time(cell, clock, sustained)) for cell in cells])
        for cells in (true_size, eager_cells)
    )
    share, padded = _padding_share(graph_cells, graph, clock, sustained)
    scale = (layers or measured_layers) / measured_layers
    capture = _capture(group, chosen, true_size)
    return Costs(
        way=chosen,
        eager_way=eager_way,
        clock=clock,
        clock_name=_clock_name(clock, sustained),
        graph=graph.scaled(scale),
        eager=eager.scaled(scale),
        capture=capture.scaled(scale) if capture else None,
        padding_share=share,
        padded_cells=padded,
        layers=layers or measured_layers,
        measured_layers=measured_layers,
        emulated=summary.emulated,
    )


def measured_step(cell: Cell, costs: Costs) -> Estimate | None:
    """What a cell measured by the clock of costs, for as many layers; None where it was not timed."""
    if not cell.timed:
        return None
    time = _time(cell, costs.clock, costs.clock_name == _clock_name("step", True) and cell.sustained_s is not None)
    scale = costs.layers / costs.measured_layers
    return replace(time, median=time.median * scale, ci_low=time.ci_low * scale, ci_high=time.ci_high * scale)


def _clock_name(clock: Clock, sustained: bool) -> str:
    if clock == "device":
        return "device time"
    return "sustained time" if sustained else "the longer of device and submit time"


def _steady(cells: Sequence[Cell]) -> bool:
    """Sustained time was measured of every cell, and is known well enough to choose by."""
    known = [cell.sustained_s.half_width for cell in cells if cell.sustained_s]
    return len(known) == len(cells) and float(np.median(known)) <= STEADY_HALF_WIDTH


def _time(cell: Cell, clock: Clock, sustained: bool) -> Estimate:
    """One kind of time for every cell: medians of different clocks make no curve."""
    assert cell.device_s is not None
    if clock == "device":
        return cell.device_s
    if sustained and cell.sustained_s:
        return cell.sustained_s
    return max((each for each in (cell.device_s, cell.submit_s) if each), key=lambda each: each.median)


def _group(summary: Summary, context_len: int | None) -> Group:
    """The one prefill group of a run; generations alone are never padded to a capture size."""
    found = [each for each in groups(summary) if each.phase != "decode"]
    if context_len is not None:
        found = [each for each in found if each.context_len == context_len]
    if not found:
        hint = "sweep prefill or mixed steps: generations alone are run by full graphs"
        raise RunFileError("no prefill or mixed cell to choose from", where=summary.run_id, hint=hint)
    if len(found) > 1:
        lengths = ", ".join(sorted({str(each.context_len) for each in found}))
        raise RunFileError(
            f"cells of {len(found)} phases or context lengths ({lengths})",
            where=summary.run_id,
            hint="name one with --context, or sweep one phase alone",
        )
    return found[0]


def _timed(group: Group, way: str) -> list[Cell]:
    return [cell for cell in group.cells if cell.way == way and cell.timed and not cell.tiles]


def _padded(cell: Cell) -> int | None:
    """The captured size that a cell ran at, where that is not its own."""
    padded = cell.graph.padded_tokens if cell.graph else None
    return padded if padded and padded != cell.num_tokens else None


def _padding_share(cells: Sequence[Cell], graph: Curve, clock: Clock, sustained: bool) -> tuple[float, int]:
    """How much of a step's growth to its padded size a padded step shows, by least squares; 1 where none was measured.

    Op 2 works on the true tokens of a padded step, so the share lies between 0 and 1.
    """
    padded = [(cell, size) for cell in cells if (size := _padded(cell)) is not None and size <= graph.tokens[-1]]
    if not padded:
        return 1.0, 0
    own = graph.at(np.array([cell.num_tokens for cell, _ in padded]))
    growth = graph.at(np.array([size for _, size in padded])) - own
    seen = np.array([_time(cell, clock, sustained).median for cell, _ in padded]) - own
    weight = float(growth @ growth)
    return (float(np.clip(seen @ growth / weight, 0.0, 1.0)), len(padded)) if weight else (1.0, 0)


def _capture(group: Group, way: str, cells: Sequence[Cell]) -> CaptureCost | None:
    """From the ledger of the way's memory process, or without one seconds alone, from the timing process."""
    ledger = group.ledgers.get(way)
    if ledger is not None and (found := of_ledger(ledger.sizes, ledger.hold)) is not None:
        return found
    known = [(cell.num_tokens, cost) for cell in cells if (cost := capture_cost_s(cell.graph)) is not None]
    if not known:
        return None
    known.sort()
    tokens, seconds = zip(*known, strict=True)
    return CaptureCost(np.array(tokens, dtype=np.int64), None, np.array(seconds))
