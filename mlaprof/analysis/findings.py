"""What a reader must know before believing a run: budgets that do not hold, and whatever weakens a number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mlaprof.analysis.cells import NOISY_HALF_WIDTH, Breach, Cell, Finding
from mlaprof.facts import CONTENDED, StepCounts
from mlaprof.study import BudgetSpec, Mode

EAGER_MODES: tuple[Mode, ...] = ("monolithic_eager", "split_eager")


def breaches(counts: StepCounts | None, mode: Mode, budget: BudgetSpec) -> tuple[Breach, ...]:
    """The limits that one step in this mode exceeds; incomplete counts are lower bounds, so what exceeds exceeds."""
    return () if counts is None else tuple(_breaches(counts, mode, budget))


def _breaches(counts: StepCounts, mode: Mode, budget: BudgetSpec) -> Iterator[Breach]:
    eager_launches = None if mode in EAGER_MODES else budget.eager_launches
    limits = (
        ("syncs", counts.syncs, budget.syncs),
        ("d2h", counts.d2h_copies, budget.d2h),
        ("eager_launches", counts.kernel_launches, eager_launches),
    )
    for name, got, limit in limits:
        if limit is not None and got > limit:
            yield Breach(name, got, limit)


def findings(cells: Iterable[Cell], budget: BudgetSpec) -> tuple[Finding, ...]:
    """Every kind of finding that some cell gives cause for, the gravest first."""
    every = tuple(cells)
    limited = budget != BudgetSpec()

    def keys(wanted: Iterable[Cell]) -> tuple[str, ...]:
        return tuple(cell.key for cell in wanted)

    found = [
        Finding("incorrect", keys(c for c in every if c.outcome == "incorrect")),
        Finding("failed", keys(c for c in every if c.outcome == "failed")),
        Finding("irreproducible", keys(c for c in every if c.twin_trouble)),
        Finding("missing", keys(c for c in every if c.outcome == "missing")),
        Finding("over_budget", keys(c for c in every if c.breaches)),
        Finding("unbudgeted", keys(c for c in every if limited and c.outcome == "ok" and not c.tiles and not c.counts)),
        Finding("not_captured", keys(c for c in every if c.not_captured)),
        Finding("fell_back", keys(c for c in every if c.fell_back)),
        Finding("partial", keys(c for c in every if c.notes)),
        Finding("incomplete", keys(c for c in every if c.counts and not c.counts.complete)),
        Finding("throttled", keys(c for c in every if c.throttled)),
        Finding("ranks_disagree", keys(c for c in every if c.ranks and c.ranks.disagreement)),
        Finding("shared_gpu", keys(c for c in every if c.other_processes)),
        Finding("contended", keys(c for c in every if not c.emulated and (c.cpu_wait or 0.0) > CONTENDED)),
        Finding("noisy", keys(c for c in every if c.device_s and c.device_s.half_width > NOISY_HALF_WIDTH)),
        Finding("self_synchronising", keys(c for c in every if c.self_synchronising)),
        Finding("host_bound", keys(c for c in every if c.bound == "host")),
        Finding("power_capped", keys(c for c in every if c.power_capped)),
        Finding("emulated", keys(c for c in every if c.emulated and c.timed)),
    ]
    return tuple(finding for finding in found if finding.keys)
