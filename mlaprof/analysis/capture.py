"""What capturing buys: replays until it pays, breakable beside piecewise, and the price of each boundary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from mlaprof.analysis.arms import Arm, speedup
from mlaprof.analysis.cells import BreakEven, Cell
from mlaprof.analysis.ratios import BoundaryPrice, PiecewiseVsBreakable
from mlaprof.analysis.stats import Estimate
from mlaprof.facts import GraphFacts
from mlaprof.study import BOUNDARIES, BOUNDED_MODES, PR_BOUNDARY, Boundary, Mode

_EAGER_FORMS: dict[Mode, tuple[Mode, ...]] = {  # the same operators without graphs; plain MLA has no split form
    "monolithic_piecewise": ("monolithic_eager",),
    "split_piecewise": ("split_eager", "monolithic_eager"),
    "breakable": ("split_eager", "monolithic_eager"),
    "full": ("split_eager", "monolithic_eager"),
}


def break_even(cell: Cell, cells: Mapping[str, Cell]) -> BreakEven | None:
    """How often a graph must be replayed until its capture is paid; `cells` by key hold the eager ones.

    None in eager modes, on a CPU, where the cost of the capture is not known apart, and where replays are not faster
    beyond both intervals.
    """
    cost_s = capture_cost_s(cell.graph)
    if cell.emulated or cell.step is None or not cost_s:
        return None
    for mode in _EAGER_FORMS.get(cell.mode, ()):
        eager = cells.get("/".join(part for part in (cell.place, mode, cell.tiles) if part))
        if eager is not None and eager.step is not None and _alike(eager, cell):
            faster = eager.step.ci_low > cell.step.ci_high
            return BreakEven(cost_s / (eager.step.median - cell.step.median), over=mode) if faster else None
    return None


def _alike(one: Cell, other: Cell) -> bool:
    """Their steps are times of one kind."""
    kinds = [(each.clock, each.cache, each.sustained_s is None) for each in (one, other)]
    return kinds[0] == kinds[1]


def capture_cost_s(graph: GraphFacts | None) -> float | None:
    """Seconds of capture, instantiation and first replay; None unless all were measured apart."""
    if graph is None or graph.instantiate_s is None or graph.first_replay_s is None:
        return None
    return graph.capture_s + graph.instantiate_s + graph.first_replay_s


def piecewise_vs_breakable(cells: Sequence[Cell], arms: Mapping[str, Arm]) -> tuple[PiecewiseVsBreakable, ...]:
    """breakable against split_piecewise wherever both were timed at one boundary with the same tiles, in plan order."""
    by_arm = {(cell.place, cell.mode, cell.boundary, cell.tiles): cell for cell in cells}
    found = []
    for cell in cells:
        rival = by_arm.get((cell.place, "split_piecewise", cell.boundary, cell.tiles))
        if cell.mode != "breakable" or rival is None:
            continue
        before, after = arms.get(rival.key), arms.get(cell.key)
        device, submit = speedup(before, after), _submit(cell, before, after)
        if device or submit:
            place = (cell.preset, cell.phase, cell.num_tokens, cell.context_len)
            found.append(PiecewiseVsBreakable(*place, cell.boundary, cell.tiles, device, submit))
    return tuple(found)


def boundary_prices(cells: Sequence[Cell], arms: Mapping[str, Arm]) -> tuple[BoundaryPrice, ...]:
    """Each move of the boundary with default tiles, in plan order: from the PR's to every other, and along the chain.

    Where one of the two cells is not ok the move carries the reason instead of a price; where neither is, it is left
    out.
    """
    ways: dict[tuple[str, Mode], dict[Boundary, Cell]] = {}
    for cell in cells:
        if cell.mode in BOUNDED_MODES and not cell.tiles:
            ways.setdefault((cell.place, cell.mode), {})[cell.boundary] = cell
    return tuple(
        _price(by_boundary[start], by_boundary[end], arms)
        for by_boundary in ways.values()
        for start, end in _moves([each for each in BOUNDARIES if each in by_boundary])
        if "ok" in (by_boundary[start].outcome, by_boundary[end].outcome)
    )


def _moves(present: Sequence[Boundary]) -> Iterator[tuple[Boundary, Boundary]]:
    if PR_BOUNDARY in present:
        yield from ((PR_BOUNDARY, other) for other in present if other != PR_BOUNDARY)
    yield from (move for move in pairwise(present) if PR_BOUNDARY not in move)


def _price(start: Cell, end: Cell, arms: Mapping[str, Arm]) -> BoundaryPrice:
    place = (start.preset, start.phase, start.num_tokens, start.context_len)
    move = (start.mode, start.boundary, end.boundary)
    for each in (start, end):
        if each.outcome != "ok":
            return BoundaryPrice(*place, *move, reason=f"{each.way} {each.outcome}: {each.reason}")
    before, after = arms.get(start.key), arms.get(end.key)
    return BoundaryPrice(
        *place,
        *move,
        device=speedup(before, after),
        device_change_s=_change(start.device_s, end.device_s),
        submit=_submit(end, before, after),
        submit_change_s=None if end.emulated else _change(start.submit_s, end.submit_s),
        eager_kernels=end.counts.kernel_launches - start.counts.kernel_launches
        if start.counts and end.counts
        else None,
        graph_nodes=end.graph.graph_nodes - start.graph.graph_nodes if start.graph and end.graph else None,
        pool_bytes=end.memory.graph_pool_bytes - start.memory.graph_pool_bytes if start.memory and end.memory else None,
    )


def _submit(cell: Cell, before: Arm | None, after: Arm | None) -> Estimate | None:
    return None if cell.emulated else speedup(before, after, "submit_s")


def _change(before: Estimate | None, after: Estimate | None) -> float | None:
    return after.median - before.median if before and after else None
