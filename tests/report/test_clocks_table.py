"""Four clocks a cell, and the shares of a step in service."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from mlaprof.analysis.cells import Summary
from mlaprof.analysis.clocks import StepBudget
from mlaprof.analysis.summary import summarize
from mlaprof.records import work
from mlaprof.report.clocks_table import clocks_columns, clocks_remarks, clocks_title, in_service, spread
from mlaprof.report.console import print_summary
from mlaprof.report.export import to_markdown

Printed = Callable[..., Any]
Served = Callable[..., Summary]
SIZES = tuple(2**power for power in range(9))


def columns_of(summary: Summary) -> dict[str, list[str]]:
    return {column.title: [str(cell) for cell in column.cells] for column in clocks_columns(summary.cells)}


def test_the_clocks_are_medians_in_the_unit_of_the_title(served: Served) -> None:
    summary = served()
    assert clocks_title(summary.cells) == "Four clocks (medians, us), and where the time of a sustained step goes"
    columns = columns_of(summary)
    assert columns["tokens"] == ["1", "", ""]
    assert columns["mode"] == ["monolithic_eager", "split_eager", "full"]
    assert columns["device"] == ["110.0", "110.0", "75.00"]
    assert columns["latency"] == ["700.0", "180.0", "95.00"]
    assert columns["sustained"] == ["630.0", "106.0", "70.35"]
    assert columns["submit"] == ["600.0", "90.00", "21.00"]


def test_the_margin_has_a_sign(served: Served) -> None:
    """Below zero the host is the limit already."""
    assert columns_of(served())["margin"] == ["-490.0", "+20.00", "+54.00"]


def test_the_bound_is_of_a_step_in_service(served: Served) -> None:
    """6.3 times the device's work, not the 5.5 that submitting takes of a cold step."""
    assert columns_of(served())["bound"] == ["host 6.3x", "mixed", "device"]


def test_the_parts_are_shares_of_a_sustained_step(served: Served) -> None:
    """What is there at all is never told as nothing, nor what is not all as all."""
    columns = columns_of(served())
    assert columns["busy"] == ["16%", "94%", ">99%"]
    assert columns["gaps"] == ["74%", "5%", "<1%"]
    assert columns["stalls"] == ["0%", "1%", "0%"]
    assert columns["waits"] == ["10%", "0%", "0%"]


def test_a_device_busier_than_its_step_is_all_busy(served: Served) -> None:
    """Two clocks of their own: noise may put the work above the wall time."""
    summary = served(full={"budget": StepBudget(71e-6, 0.0, 0.0, 0.0)})
    assert [column[-1] for title, column in columns_of(summary).items() if title in ("busy", "gaps")] == ["100%", "0%"]


def test_cells_without_a_sustained_time_or_with_tiles_have_no_row(served: Served) -> None:
    summary = served(split_eager={"budget": None}, full={"tiles": "sparse_attn=n64"})
    assert columns_of(summary)["mode"] == ["monolithic_eager"]
    nothing = served(**{mode: {"budget": None} for mode in ("monolithic_eager", "split_eager", "full")})
    assert clocks_columns(nothing.cells) == [] and list(clocks_remarks(nothing.cells)) == []


def test_a_clock_that_was_not_taken_leaves_its_field_empty(served: Served) -> None:
    columns = columns_of(served(full={"latency_s": None, "submit_s": None}))
    assert (columns["latency"][-1], columns["submit"][-1], columns["margin"][-1]) == ("", "", "")


@pytest.mark.parametrize(
    ("sizes", "most", "shown"),
    [((64,), 3, [64]), ((1, 8), 3, [1, 8]), (SIZES, 3, [1, 16, 256]), (SIZES, 6, [1, 4, 8, 32, 64, 256])],
)
def test_of_many_sizes_some_are_shown_with_both_ends(
    served: Served, sizes: tuple[int, ...], most: int, shown: list[int]
) -> None:
    assert spread(served(sizes).cells, most) == shown


@pytest.mark.parametrize(
    ("width", "lost"),
    [(110, set()), (90, {"stalls", "submit"}), (70, {"stalls", "submit", "device", "latency", "waits"})],
    ids=["wide", "narrow", "narrower"],
)
def test_a_narrow_terminal_keeps_what_stands_nowhere_else(
    served: Served, printed: Printed, width: int, lost: set[str]
) -> None:
    """Stalls of 1 % go first, then what the table above has; the verdict and the device's share stay."""
    console, text = printed(width)
    print_summary(served(), console)
    lines = text().splitlines()
    (start,) = [row for row, line in enumerate(lines) if line.startswith("Four clocks")]
    header = lines[start + 1].split()
    assert max(map(len, lines)) <= width
    every = {"device", "latency", "sustained", "submit", "margin", "bound", "busy", "gaps", "stalls", "waits"}
    assert every - set(header) == lost


def test_a_terminal_shows_three_sizes_and_markdown_all(served: Served, printed: Printed) -> None:
    summary = served(SIZES)
    console, text = printed(120)
    print_summary(summary, console)
    table = text().split("Four clocks")[1]
    rows = [line.split() for line in table.splitlines() if " monolithic_eager " in line]
    assert [row[0] for row in rows] == ["1", "16", "256"]
    assert "the sizes between these: --format md" in table
    markdown = to_markdown(summary).split("#### Four clocks")[1]
    assert markdown.count("| monolithic_eager |") == len(SIZES)
    assert "| 256 | full |" in markdown and "margin is device - submit" in markdown


def test_a_run_of_before_the_four_clocks_has_no_such_table(fake_runs: ModuleType, printed: Printed) -> None:
    summary = summarize(fake_runs.make_run(fake_runs.sweep(fake_runs.h100(sizes=(1, 64)))))
    console, text = printed(160)
    print_summary(summary, console)
    assert in_service(summary.cells) == []
    assert "Four clocks" not in text() and "Four clocks" not in to_markdown(summary)


def test_the_rounds_of_three_processes_come_to_one_table(fake_runs: ModuleType, printed: Printed) -> None:
    """From samples to text: 200 us on no CPU and 63 us of waits are told apart from launch gaps."""
    at = fake_runs.point("split_eager", 1)
    clocks = {"submit_cpu_s": 400e-6, "latency_s": 700e-6, "sustained_s": 630e-6, "warm_device_s": 100e-6}
    series = {name: fake_runs.samples(seconds, n=20) for name, seconds in clocks.items()}
    rows = [fake_runs.timing(at, 110e-6, 600e-6, n=20, **series) for _ in range(3)]
    timings = [row.model_copy(update={"process": process}) for process, row in enumerate(rows)]
    waits = fake_runs.counts(at, stream_syncs=1, sync_wait_s=63e-6)
    planned = [work(row.kind, at.key, row.process) for row in (*timings, waits)]
    summary = summarize(fake_runs.make_run([*timings, waits], planned=planned))
    console, text = printed(160)
    print_summary(summary, console)
    assert "median of n=60 (3 processes), 95% CI" in text()
    (row,) = [line for line in text().split("Four clocks")[1].splitlines() if line.startswith("     1  split_eager")]
    shares = ["16%", "42%", "32%", "10%"]
    assert row.split() == ["1", "split_eager", "110.0", "700.0", "630.0", "600.0", "-490.0", "host", "6.3x", *shares]
