"""What capturing buys and costs, in the terminal and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlaprof import store
from mlaprof.analysis.cells import Summary
from mlaprof.analysis.summary import summarize
from mlaprof.facts import SizeFacts
from mlaprof.report.capture_tables import ledger_columns
from mlaprof.report.console import print_summary
from mlaprof.report.export import summary_json, to_csv, to_json, to_markdown
from mlaprof.report.units import share

Printed = Callable[..., Any]
REFERENCE = sorted((Path(__file__).parents[2] / "results" / "reference").glob("*/run.mlaprof"))
BUDGET = "name: fake\nbudget: {eager_launches: 20}\n"


@pytest.fixture
def whole(fake_runs: ModuleType) -> Summary:
    """Every kind of measurement of a baseline, an eager form, and both bounded modes at two boundaries."""
    machine = fake_runs.h100(
        sizes=(64, 8), modes=("monolithic_eager", "split_eager", "split_piecewise", "breakable", "full")
    )
    rows = fake_runs.complete(machine, ("index_quant", "logits"))
    return summarize(fake_runs.make_run(rows, study_yaml=BUDGET))


def words(text: str, *starts: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.split()[: len(starts)] == list(starts)]


def test_a_wide_table_counts_what_a_step_asks_of_the_driver(whole: Summary, printed: Printed) -> None:
    console, text = printed(200)
    print_summary(whole, console)
    (header,) = words(text(), "tokens", "mode", "status")
    at = [" ".join(header).index(title) for title in ("eager kernels", "syncs", "d2h", "coverage", "graph nodes")]
    assert at == sorted(at)
    full, *_ = words(text(), "full", "✓")
    assert full[-11:-4] == ["device", "0", "0", "0", "100.0%", "60", "1"]
    logits, *_ = words(text(), "split_piecewise@logits", "✓")
    assert "71.4%" in logits and "44" in logits


def test_a_narrow_terminal_keeps_the_counts_in_a_table_of_their_own(whole: Summary, printed: Printed) -> None:
    for width in (80, 60, 40):
        console, text = printed(width)
        print_summary(whole, console)
        assert max(map(len, text().splitlines())) <= width
        assert "What a step asks of the driver, at the largest size" in " ".join(text().split())
    console, text = printed(80)
    print_summary(whole, console)
    assert words(text(), "64", "full")[-1][:6] == ["64", "full", "0", "0", "0", "100.0%"]


def test_incomplete_counts_read_as_bounds(fake_runs: ModuleType, printed: Printed) -> None:
    at = fake_runs.point()
    rows = [fake_runs.timing(at, 1e-4), fake_runs.counts(at, complete=False)]
    for encoding, bound in (("utf-8", "≥20"), ("ascii", ">=20")):
        console, text = printed(200, encoding=encoding)
        print_summary(summarize(fake_runs.make_run(rows)), console)
        assert bound in text() and "coverage" not in text().split("warning")[0]
        assert "warning: 1 cell with incomplete counts" in text()


def test_breakable_stands_beside_split_piecewise(whole: Summary, printed: Printed) -> None:
    """At 64 tokens of the fake machine: 119.1 and 117.2 us of device time, 150.1 and 95.1 us of submit time."""
    console, text = printed(100)
    print_summary(whole, console)
    _, table = text().split("Breakable beside split_piecewise")
    (row,) = words(table.split("\n\n")[0], "64", "index_quant")
    assert row[2:4] == ["1.02x", "faster"] and row[5:7] == ["1.58x", "faster"]


def test_one_boundary_needs_no_column_and_no_price(fake_runs: ModuleType, printed: Printed) -> None:
    machine = fake_runs.h100(sizes=(64,), modes=("split_piecewise", "breakable"))
    console, text = printed(200)
    print_summary(summarize(fake_runs.make_run(fake_runs.complete(machine, ("index_quant",)))), console)
    assert "Breakable beside" in text() and "boundary" not in text()


def test_each_move_of_the_boundary_has_its_price(whole: Summary, printed: Printed) -> None:
    console, text = printed(200)
    print_summary(whole, console)
    (row,) = words(text(), "64", "breakable", "index_quant", "logits")
    assert row[4:6] == ["1.11x", "faster"]
    assert [row[7], *row[-4:]] == ["-12.00", "-36.00", "-16", "+16", "+1.000"]


def test_a_move_without_a_price_says_why(fake_runs: ModuleType, printed: Printed) -> None:
    rows = [
        fake_runs.timing(fake_runs.point("breakable"), 1e-4),
        fake_runs.ended(fake_runs.point("breakable", boundary="logits"), "skipped", "aten::nonzero [7]"),
    ]
    summary = summarize(fake_runs.make_run(rows))
    console, text = printed(200)
    print_summary(summary, console)
    why = "no price: breakable@logits skipped: aten::nonzero [7] (breakable index_quant to logits at 64)"
    assert why in text() and why in to_markdown(summary)
    assert "What it changes" not in text()


def test_the_ledger_is_told_in_parts_with_its_hold(whole: Summary, printed: Printed) -> None:
    """Two sizes of 3 MiB of pool and 1 MiB of driver memory each; an eager process has nothing to hold."""
    console, text = printed(120)
    print_summary(whole, console)
    table = text().split("Memory of one process a mode, MiB")[1]
    (eager,) = words(table, "split_eager")
    assert eager == ["split_eager", "520.0", "150.0", "80.00", "2.000", "32.00", "5.000", "0", "0.500"]
    (full,) = words(table, "full", "strong")
    assert full[2:] == ["520.0", "150.0", "80.00", "2.000", "32.00", "5.000", "6.000", "2.000", "0.500"]


@pytest.mark.parametrize(
    ("residual_mib", "told"),
    [(4.0, None), (-4.0, None), (4.01, "4.010 MiB that no part explains"), (-9.0, "9.000 MiB counted twice")],
)
def test_a_residual_beyond_the_granules_of_the_driver_is_told_in_words(
    fake_runs: ModuleType, printed: Printed, residual_mib: float, told: str | None
) -> None:
    at = fake_runs.point()
    kept = fake_runs.ledger(residual_mib=residual_mib)
    console, text = printed(200)
    print_summary(summarize(fake_runs.make_run([fake_runs.with_ledger(fake_runs.memory(at, 1.0), kept)])), console)
    assert ("residual of full" in text()) == (told is not None)
    assert told is None or f"residual of full: {told}" in text()


def test_a_ledger_without_what_only_a_gpu_can_tell(fake_runs: ModuleType) -> None:
    """Unknown is blank, never 0."""
    kept = fake_runs.ledger(context_bytes=None, workspace_bytes=None, slack_bytes=None, device_bytes=None)
    blank = {column.title for column in ledger_columns({"full": kept}) if column.empty}
    assert blank == {"context", "workspaces", "slack", "residual"}


def test_a_fall_back_stands_in_the_status(fake_runs: ModuleType, printed: Printed) -> None:
    at = fake_runs.point("breakable", 300)
    measured = fake_runs.captured(fake_runs.timing(at, 1e-4), state="fell_back")
    console, text = printed(400)
    print_summary(summarize(fake_runs.make_run([measured])), console)
    assert "✓ ok, fell back" in text()
    assert "Add a size of 300 or more to capture.sizes" in text()


def test_a_size_that_was_not_captured_is_told_once_with_its_reason(fake_runs: ModuleType, printed: Printed) -> None:
    kept = fake_runs.ledger(sizes=())
    lost = SizeFacts(num_tokens=8192, state="not_captured", reason="out of memory")
    kept = kept.model_copy(update={"sizes": (lost,)})
    rows = []
    for tokens in (1, 8):
        at = fake_runs.point("breakable", tokens)
        rows += [fake_runs.timing(at, 1e-4), fake_runs.with_ledger(fake_runs.memory(at, 0.0), kept)]
    console, text = printed(400)
    print_summary(summarize(fake_runs.make_run(rows)), console)
    assert (
        "warning: 1 size that was asked for was not captured: "
        "out of memory (breakable 8192 tokens, prefill, context 0)." in text()
    )


def test_a_breach_names_the_limit_the_worst_cell_and_what_next(fake_runs: ModuleType, printed: Printed) -> None:
    rows = [fake_runs.counts(fake_runs.point("full", 8 * n), stream_syncs=n, d2h_copies=1) for n in (1, 2)]
    console, text = printed(1000)
    study = "budget: {syncs: 0, d2h: 1}\n"
    print_summary(summarize(fake_runs.make_run(rows, study_yaml=study)), console)
    assert (
        "warning: 2 cells exceed the budget, at worst syncs 2 where 0 are allowed (v3.2-tp8/prefill/t16/ctx0/full). "
        'To mend it find each with torch.cuda.set_sync_debug_mode("error").' in text()
    )
    assert "d2h 1" not in text()


def test_all_of_it_is_all_of_it() -> None:
    """A share is rounded down, so 100.0% leaves no kernel outside."""
    assert [share(value) for value in (None, 0.0, 0.99999, 1.0)] == ["", "0.0%", "99.9%", "100.0%"]


def test_an_ascii_terminal_gets_ascii(whole: Summary, printed: Printed) -> None:
    for width in (80, 200):
        console, text = printed(width, encoding="ascii")
        print_summary(whole, console)
        assert text().isascii()


def test_markdown_has_every_table_and_what_each_capture_cost(whole: Summary) -> None:
    text = to_markdown(whole)
    for title in ("Breakable beside", "What it changes", "Memory of one process", "What each captured size cost"):
        assert f"\n#### {title}" in text
    assert "| full | 64 | captured | 36 | 4 | 50.00 | 30.00 | 20.00 | 3.000 | 1.000 | 0.500 |" in text
    assert "residual of breakable: 6.500 MiB" in text
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 5
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.parent.name)
def test_runs_of_before_all_this_still_read(path: Path, printed: Printed) -> None:
    """None of the new facts is there, none is made up, and every format is written."""
    run = store.load(path)
    summary = summarize(run)
    assert not any(cell.counts or cell.gate or cell.break_even or cell.breaches for cell in summary.cells)
    console, text = printed(200)
    print_summary(summary, console)
    assert "device" in text() and "eager kernels" not in text() and "budget" not in text()
    assert to_markdown(summary) and len(to_csv(summary).splitlines()) == len(summary.cells) + 1
    (cell, *_) = json.loads(to_json(summary))
    assert cell["coverage"] is cell["ledger"] is cell["gate"] is cell["kernel_launches"] is cell["state"] is None
    assert json.loads(summary_json(run, summary))["ledgers"] == []


def test_there_are_reference_runs_to_read() -> None:
    assert REFERENCE
