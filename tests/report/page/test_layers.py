"""The page of a run of the layer: its order, its verdict, and what it says where a run has nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mlaprof import store
from mlaprof.analysis.compare import compare
from mlaprof.analysis.headline import headlines
from mlaprof.analysis.summary import summarize
from mlaprof.cli import door
from mlaprof.report.page import layers
from mlaprof.report.page.parts import Sheet, Words
from mlaprof.report.page.verdict import EMULATED, interval, verdict

ORDER = [
    "verdict", "budget", "split", "latency", "memory", "capture", "tiles", "roofline", "depth", "cells", "environment",
    "command", "failures",
]  # fmt: skip


@pytest.fixture(scope="module")
def measured(checkout: Path):
    return store.load(checkout / "results" / "reference" / "layer-h100" / "v3.2-tp8-prefill.mlaprof")


def section(page, anchor):
    return next(each for each in page.sections if each.anchor == anchor)


def words(page, anchor):
    return " ".join(part.text for part in section(page, anchor).parts if isinstance(part, Words))


def sheets(page, anchor):
    return [part for part in section(page, anchor).parts if isinstance(part, Sheet)]


def test_a_page_answers_in_the_order_in_which_a_reader_asks(paged, measured):
    assert [each.anchor for each in paged(measured).sections] == ORDER


def test_the_verdict_is_one_sentence_with_the_number_and_its_interval(measured):
    summary = summarize(measured)
    found = headlines(summary)[0]
    told = verdict(summary)
    assert interval(found.mean) in told and interval(found.device) in told and "\n" not in told
    assert told.startswith(
        "split_piecewise runs a prefill step (context 0) 1.81x faster [1.70x, 2.04x] than monolithic_eager"
    )
    assert told.count(". ") == 0 and told.endswith(".")


def test_few_bursts_are_told_beside_the_number_and_enough_are_not_warned_of(paged, measured, fake_runs):
    assert "in service (n=2 a cell)" in verdict(summarize(measured))
    assert "hardly more than their range" in words(paged(measured), "verdict")
    rows = [fake_runs.timing(fake_runs.point(mode, 1), 1e-4, 1e-3) for mode in ("monolithic_eager", "split_piecewise")]
    assert "hardly more than their range" not in words(paged(fake_runs.make_run(rows)), "verdict")


def test_what_may_be_no_difference_is_not_called_one(fake_runs):
    rows = [fake_runs.timing(fake_runs.point(mode, 64), 1e-3, 1e-4) for mode in ("monolithic_eager", "split_piecewise")]
    assert "not measurably faster or slower" in verdict(summarize(fake_runs.make_run(rows)))


def test_a_slower_way_is_called_slower_with_the_interval_the_same_way_round(fake_runs):
    slow = fake_runs.timing(fake_runs.point("split_piecewise", 64), 2e-3, 1e-4)
    eager = fake_runs.timing(fake_runs.point("monolithic_eager", 64), 1e-3, 1e-4)
    told = verdict(summarize(fake_runs.make_run([eager, slow])))
    middle, low, high = map(float, re.search(r"([\d.]+)x slower \[([\d.]+)x, ([\d.]+)x\]", told).groups())
    assert low <= middle <= high and middle == pytest.approx(2, rel=0.01)


def test_a_run_without_the_baseline_says_that_nothing_can_be_told(fake_runs):
    told = verdict(summarize(fake_runs.make_run([fake_runs.timing(fake_runs.point("full", 1), 1e-4)])))
    assert told.startswith("No speed-up can be told") and "sweep with -a mode=" in told


def test_an_emulated_run_says_so_on_top_and_extrapolates_nothing(paged, fake_runs):
    page = paged(fake_runs.make_run(fake_runs.sweep(fake_runs.laptop(sizes=(1, 16))), device="cpu"))
    assert page.stamp == EMULATED and page.stamp.startswith("EMULATED") and page.verdict.startswith("EMULATED")
    assert not sheets(page, "depth")


def test_what_a_run_lacks_says_the_command_that_gets_it(paged, fake_runs):
    """And each of them is a command with options that there are."""
    commands = door_commands()
    page = paged(fake_runs.make_run([fake_runs.timing(fake_runs.point("full", 1), 1e-4)]))
    lacking = [
        part for each in page.sections for part in each.parts if isinstance(part, Words) and part.kind == "missing"
    ]
    assert {each.anchor for each in page.sections for part in each.parts if part in lacking} >= {
        "budget", "split", "memory", "capture", "tiles", "roofline",
    }  # fmt: skip
    for part in lacking:
        for line in re.findall(r"`mlaprof ([^`]+)`", part.text):
            name, *rest = line.split()
            assert name in commands, line
            assert {each for each in rest if each.startswith("--")} <= commands[name], line


def door_commands():
    import typer

    found = typer.main.get_command(door.app).commands
    return {name: {option for each in command.params for option in each.opts} for name, command in found.items()}


def test_the_depth_names_its_assumption_and_the_layers_of_the_model(paged, measured):
    page = paged(measured)
    assert words(page, "depth").startswith("Assumption:") and "61 layers are 30.5 times" in words(page, "depth")
    (sheet,) = sheets(page, "depth")
    assert len(sheet.columns[0].cells) == 30
    assert "20 layers are 10 times" in words(paged(measured, layers=20), "depth")


def test_the_page_has_every_cell_once_with_its_strip(paged, measured):
    (sheet,) = sheets(paged(measured), "cells")
    assert len(sheet.columns[0].cells) == len(sheet.strips) == 30 and all(sheet.strips)


def test_every_cell_without_a_time_is_named_with_its_reason(paged, checkout):
    run = store.load(checkout / "results" / "reference" / "planted" / "new.mlaprof")
    (sheet,) = sheets(paged(run), "failures")
    rows = list(zip(*(map(str, column.cells) for column in sheet.columns), strict=True))
    assert {(row[0].rpartition("/")[2], row[1].split()[1]) for row in rows} == {
        ("full", "INCORRECT"),
        ("breakable", "FAILED"),
    }
    assert all(row[3] for row in rows)


def test_beside_a_base_run_the_verdict_is_what_changed(paged, checkout):
    base, new = (
        store.load(checkout / "results" / "reference" / "planted" / f"{each}.mlaprof") for each in ("base", "new")
    )
    comparison = compare(base, new)
    page = paged(new, comparison=comparison)
    assert page.sections[0].anchor == "against" and "1 SLOWER" in page.verdict and base.manifest.run_id in page.verdict
    slower = next(delta for delta in comparison.deltas if delta.verdict == "SLOWER")
    assert (
        f"new / base {slower.ratio.median:.3f} [{slower.ratio.ci_low:.3f}, {slower.ratio.ci_high:.3f}]" in page.verdict
    )


def test_no_section_has_an_empty_table(paged, measured, fake_runs):
    for run in (measured, fake_runs.make_run([fake_runs.timing(fake_runs.point("full", 1), 1e-4)])):
        for each in paged(run).sections:
            assert each.parts, each.anchor
            assert all(part.columns for part in each.parts if isinstance(part, Sheet)), each.anchor


def test_the_figures_of_a_page_are_those_of_plot():
    from mlaprof.report.figures.write import FIGURES, TITLES

    assert TITLES.keys() == FIGURES.keys()
    assert all(f'"{name}"' in Path(layers.__file__).read_text() for name in FIGURES)
