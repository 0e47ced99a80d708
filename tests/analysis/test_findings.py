"""Budgets, fall-backs, sizes that were not captured and counts that cannot be trusted."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from mlaprof.analysis.cells import Breach, Summary
from mlaprof.analysis.summary import summarize
from mlaprof.errors import RunFileError
from mlaprof.facts import SizeFacts


def summary_of(fake_runs: ModuleType, rows: list[Any], budget: str = "") -> Summary:
    return summarize(fake_runs.make_run(rows, study_yaml=f"name: fake\nbudget: {{{budget}}}\n"))


def kinds(summary: Summary) -> dict[str, tuple[str, ...]]:
    return {found.kind: found.keys for found in summary.findings}


@pytest.mark.parametrize(
    ("budget", "mode", "expected"),
    [
        ("syncs: 0", "full", (Breach("syncs", 3, 0),)),
        ("syncs: 2", "monolithic_eager", (Breach("syncs", 3, 2),)),
        ("syncs: 3", "full", ()),
        ("d2h: 0", "split_eager", (Breach("d2h", 1, 0),)),
        ("eager_launches: 19", "split_piecewise", (Breach("eager_launches", 20, 19),)),
        ("eager_launches: 20", "split_piecewise", ()),
        ("eager_launches: 0", "split_eager", ()),
        ("eager_launches: 0", "monolithic_eager", ()),
        ("syncs: 0, d2h: 0", "breakable", (Breach("syncs", 3, 0), Breach("d2h", 1, 0))),
        ("", "full", ()),
    ],
)
def test_a_step_is_held_to_its_budget(
    fake_runs: ModuleType, budget: str, mode: str, expected: tuple[Breach, ...]
) -> None:
    """Synchronisations of every sort and copies in every mode, eager kernels only where there are graphs."""
    at = fake_runs.point(mode)
    asked = fake_runs.counts(at, stream_syncs=1, device_syncs=1, event_syncs=1, d2h_copies=1)
    summary = summary_of(fake_runs, [fake_runs.timing(at, 1e-4), asked], budget)
    assert summary.cells[0].breaches == expected
    assert summary.over_budget == bool(expected) == ("over_budget" in kinds(summary))


def test_a_lower_bound_that_exceeds_the_budget_exceeds_it(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    summary = summary_of(fake_runs, [fake_runs.counts(at, stream_syncs=1, complete=False)], "syncs: 0")
    assert summary.over_budget and kinds(summary)["incomplete"] == (at.key,)
    assert summary.cells[0].coverage is None


def test_a_budget_that_was_not_checked_is_told(fake_runs: ModuleType) -> None:
    """Without a budget there is nothing to check."""
    at = fake_runs.point()
    rows = [fake_runs.timing(at, 1e-4)]
    assert kinds(summary_of(fake_runs, rows, "syncs: 0")) == {"unbudgeted": (at.key,)}
    assert kinds(summary_of(fake_runs, rows)) == {}


@pytest.mark.parametrize("study_yaml", ["", "[1, 2]", "a: [", "budget:", "name: x\n"])
def test_a_study_without_a_budget_limits_nothing(fake_runs: ModuleType, study_yaml: str) -> None:
    rows = [fake_runs.counts(fake_runs.point(), stream_syncs=9)]
    assert not summarize(fake_runs.make_run(rows, study_yaml=study_yaml)).over_budget


@pytest.mark.parametrize("budget", ["syncs: -1", "syncs: many", "sync: 0"])
def test_a_budget_that_is_none_is_refused(fake_runs: ModuleType, budget: str) -> None:
    """Rather than taken for no limit."""
    with pytest.raises(RunFileError, match="BudgetSpec"):
        summary_of(fake_runs, [], budget)


def test_a_step_that_fell_back_is_told(fake_runs: ModuleType) -> None:
    at = fake_runs.point("breakable")
    summary = summary_of(fake_runs, [fake_runs.captured(fake_runs.timing(at, 1e-4), state="fell_back")])
    assert kinds(summary) == {"fell_back": (at.key,)}


def test_sizes_that_were_not_captured_are_told_of_every_cell_of_the_process(fake_runs: ModuleType) -> None:
    at = fake_runs.point("breakable")
    lost = SizeFacts(num_tokens=8192, state="not_captured", reason="out of memory")
    kept = fake_runs.ledger(sizes=(64,))
    kept = kept.model_copy(update={"sizes": (*kept.sizes, lost)})
    summary = summary_of(
        fake_runs, [fake_runs.timing(at, 1e-4), fake_runs.with_ledger(fake_runs.memory(at, 1.0), kept)]
    )
    assert kinds(summary) == {"not_captured": (at.key,)}
    assert summary.cells[0].not_captured == (lost,)


def test_counts_that_failed_are_a_note_of_a_good_cell(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    rows = [fake_runs.timing(at, 1e-4), fake_runs.ended(at, "failed", "no CUPTI", kind="counts")]
    (cell,) = summarize(fake_runs.make_run(rows)).cells
    assert cell.outcome == "ok" and cell.counts is None
    assert cell.notes == ("counts failed: no CUPTI",)


def test_counts_that_are_missing_are_a_note_of_a_good_cell(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    planned = [f"timing {at.key}", f"counts {at.key}"]
    (cell,) = summarize(fake_runs.make_run([fake_runs.timing(at, 1e-4)], planned=planned)).cells
    assert cell.notes == ("counts missing: the run ended before it was measured",)
