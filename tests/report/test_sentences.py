"""What a run's conditions and findings read like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any, get_args

import pytest

from mlaprof.analysis.cells import Finding, FindingKind, Floor, Summary
from mlaprof.analysis.summary import summarize
from mlaprof.facts import RankFacts
from mlaprof.report import sentences
from mlaprof.report.console import print_summary
from mlaprof.report.export import to_markdown

Printed = Callable[..., Any]
Served = Callable[..., Summary]


def told(kind: FindingKind, summary: Summary, *modes: str) -> str:
    keys = tuple(cell.key for cell in summary.cells if cell.mode in modes)
    return sentences.finding(Finding(kind, keys), summary)


@pytest.mark.parametrize(
    ("floor", "words"),
    [
        (None, "no A/A floor"),
        (Floor(0.005, 14), "A/A floor 0.5% (n=14)"),
        (Floor(0.005, 14, 0.0031), "A/A floor 0.5% (n=14), 0.3% between processes"),
    ],
    ids=["none", "one process", "several"],
)
def test_the_conditions_end_with_the_floors(served: Served, floor: Floor | None, words: str) -> None:
    summary = replace(served(), floor=floor)
    assert sentences.conditions(summary, summary.cells).endswith(f"95% CI, {words}")


@pytest.mark.parametrize(
    ("processes", "words"), [((1, 1), "n=50,"), ((3, 3), "n=50 (3 processes),"), ((2, 3), "n=50 (2 to 3 processes),")]
)
def test_the_conditions_name_the_processes_where_there_are_several(
    served: Served, processes: tuple[int, int], words: str
) -> None:
    first, others = processes
    summary = served(
        monolithic_eager={"processes": first}, split_eager={"processes": others}, full={"processes": others}
    )
    assert f"cold L2, median of {words} 95% CI" in sentences.conditions(summary, summary.cells)


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, ""), (0.003, ", power-capped in <1% of rounds"), (0.6, ", power-capped in 20% of rounds")],
)
def test_a_power_cap_is_a_condition_of_the_rounds_of_all_cells(served: Served, share: float, words: str) -> None:
    """Of the third of them that one arm of three has."""
    summary = served(full={"power_capped": share})
    assert sentences.conditions(summary, summary.cells).endswith(f"no A/A floor{words}")


def test_a_power_cap_is_a_note_and_no_warning(served: Served, printed: Printed) -> None:
    capped = served(full={"power_capped": 0.34})
    summary = replace(capped, findings=(Finding("power_capped", (capped.cells[2].key,)),))
    console, text = printed(1000)
    print_summary(summary, console)
    assert "note: 1 cell under the GPU's power cap in up to 34% of the rounds." in text() and "warning" not in text()
    assert "- **note:** 1 cell under" in to_markdown(summary)


def test_a_cell_that_stayed_throttled_is_marked_and_explained(served: Served, printed: Printed) -> None:
    summary = served(full={"throttled": True, "clock_events": ("hw_thermal_slowdown",)})
    console, text = printed(160)
    print_summary(summary, console)
    assert [line.split()[:4] for line in text().splitlines() if "throttled" in line] == [
        ["full", "✓", "ok,", "throttled"]
    ]
    sentence = told("throttled", summary, "full")
    assert "held its clocks down (hw_thermal_slowdown)" in sentence and "no verdict" in sentence
    assert sentence.endswith("See `mlaprof doctor`, let the GPU cool, and sweep again.")
    assert "down:" in told("throttled", served(full={"throttled": True}), "full")


def test_throttled_is_seen_in_colour(served: Served, printed: Printed) -> None:
    console, text = printed(160, terminal=True)
    print_summary(served(full={"throttled": True}), console)
    assert "\x1b[33m, throttled" in text()


@pytest.mark.parametrize(("others", "words"), [(1, "beside another process"), (4, "beside up to 4 other processes")])
def test_a_gpu_that_was_shared_says_with_how_many(served: Served, others: int, words: str) -> None:
    sentence = told("shared_gpu", served(full={"other_processes": others}), "full", "split_eager")
    assert sentence.startswith("2 cells timed") and words in sentence
    assert sentence.endswith("sweep again without --shared-gpu.")


def test_a_host_bound_step_is_told_by_what_it_takes_in_service(served: Served) -> None:
    summary = served((1, 2))
    sentence = told("host_bound", summary, "monolithic_eager")
    assert sentence.startswith("2 cells are host-bound")
    assert "up to 6.3x what the device works on it (630.0 us where 100.0 us are work, " in sentence
    assert sentence.endswith("capture more of the step to submit it faster.")
    assert told("host_bound", served(), "monolithic_eager").startswith("1 cell is host-bound")


def test_a_noisy_cell_is_told_how_to_be_measured_for_longer(served: Served) -> None:
    sentence = told("noisy", served(), "full")
    assert "--rigorous" in sentence and "measure.cell_time_s" in sentence and sentence.endswith("and sweep again.")


@pytest.mark.parametrize("kind", get_args(FindingKind))
def test_every_kind_of_finding_has_a_sentence_that_ends(fake_runs: ModuleType, kind: FindingKind) -> None:
    """Even about a cell of which little is known."""
    summary = summarize(fake_runs.make_run([fake_runs.timing(fake_runs.point(), 1e-4, 2e-4)]))
    sentence = sentences.finding(Finding(kind, (summary.cells[0].key,)), summary)
    assert sentence.endswith(".") and sentences.heading(Finding(kind, ())) in ("warning", "note")


def test_ranks_are_told_where_there_are_any(fake_runs: ModuleType) -> None:
    """How many, that the row is the slowest's, by how much they differ, and whose tiles did, with what to do next."""
    at = fake_runs.point()
    timed = fake_runs.timing(at, 2e-4, n=3)
    of_ranks = RankFacts(device_s=((1e-4, 1e-4, 1e-4), (2e-4, 3e-4, 2e-4)), disagreement=("topk",))
    alone = summarize(fake_runs.make_run([timed]))
    summary = summarize(fake_runs.make_run([timed.model_copy(update={"ranks": of_ranks})]))

    assert alone.cells[0].ranks is None and "rank" not in sentences.conditions(alone, alone.cells)
    assert "median of n=3, slowest of 2 ranks, 95% CI" in sentences.conditions(summary, summary.cells)
    assert summary.cells[0].ranks.spread_s == pytest.approx(1e-4)
    assert summary.cells[0].ranks.device_s == pytest.approx((1e-4, 2e-4))
    text = to_markdown(summary)
    assert "spread us" in text or "spread ms" in text
    assert "1 cell timed with other tiles on one rank than on another (topk)" in text and "and sweep again." in text
