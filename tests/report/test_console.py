from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from mlaprof.analysis.cells import Summary
from mlaprof.analysis.summary import summarize
from mlaprof.facts import Check
from mlaprof.report.console import print_summary

Printed = Callable[..., Any]


@pytest.fixture
def h100(fake_runs: ModuleType) -> Summary:
    return summarize(fake_runs.make_run(fake_runs.sweep(fake_runs.h100(sizes=(1, 64, 4096)))))


def test_a_wide_table_shows_every_column_and_the_mean_last(h100: Summary, printed: Printed) -> None:
    console, text = printed(160)
    print_summary(h100, console)
    out = text()
    for title in ("tokens", "mode", "status", "device us", "±CI", "speed-up", "submit us", "pool MiB", "SM MHz"):
        assert title in out
    assert "NVIDIA H100 80GB HBM3" in out and "cold L2, median of n=50, 95% CI" in out
    assert "prefill, context 0" in out and "EMULATED" not in out
    assert out.index("4096  ") < out.index("geomean")
    assert out.count("baseline") == 3
    assert "too narrow" not in out


def test_the_bound_stands_beside_the_submit_time(h100: Summary, printed: Printed) -> None:
    """Device and submit time of monolithic_eager at 64 tokens are 142.8 and 610.1 us."""
    console, text = printed(160)
    print_summary(h100, console)
    lines = text().splitlines()
    (header,) = [line for line in lines if "submit us" in line]
    assert header.split("submit us")[1].split()[0] == "bound"
    at_64 = next(row for row, line in enumerate(lines) if line.split()[:2] == ["64", "monolithic_eager"])
    assert " 610.1  host 4.3x " in lines[at_64]
    (full,) = [line for line in lines[at_64:] if line.split()[:1] == ["full"]][:1]
    assert " 21.06  device " in full


def test_the_warning_of_host_bound_cells_says_how_many_how_far_and_what_next(
    h100: Summary, printed: Printed, fake_runs: ModuleType
) -> None:
    """All but full at 1 token, nor breakable at 64, none at 4096; split_eager at one token is the furthest."""
    console, text = printed(1000)
    print_summary(h100, console)
    (warning,) = [line for line in text().splitlines() if "host-bound" in line]
    machine = fake_runs.h100()
    furthest = machine.submit_s("split_eager", 1) / machine.device_s("split_eager", 1)
    assert warning.startswith("warning: 9 cells are host-bound")
    assert f"up to {furthest:.1f}x its device time (v3.2-tp8/prefill/t1/ctx0/split_eager)" in warning
    assert "at least its submit time" in warning and "mlaprof plot RUN" in warning
    assert warning.rstrip().endswith("capture more of the step to submit it faster.")


def test_one_host_bound_cell_is_singular(fake_runs: ModuleType, printed: Printed) -> None:
    console, text = printed(1000)
    print_summary(summarize(fake_runs.make_run([fake_runs.timing(fake_runs.point(), 1e-5, 1e-3)])), console)
    assert "warning: 1 cell is host-bound" in text() and "host 100x" in text()


@pytest.mark.parametrize("unfilled,warned", [(0, False), (2, False), (50, True)], ids="{} unfilled".format)
def test_a_step_that_synchronises_itself_is_told(
    fake_runs: ModuleType, printed: Printed, unfilled: int, warned: bool
) -> None:
    """A few samples that the host was late for are hiccups; most of them are a wait inside the step."""
    console, text = printed(1000)
    measured = fake_runs.timing(fake_runs.point(), 1e-4, 7.3e-4, unfilled=unfilled)
    print_summary(summarize(fake_runs.make_run([measured])), console)
    assert ("warning: 1 cell with a step that waits for the device itself" in text()) == warned


def test_an_emulated_run_has_no_bound(fake_runs: ModuleType, printed: Printed) -> None:
    console, text = printed(160)
    print_summary(summarize(fake_runs.make_run(fake_runs.sweep(fake_runs.laptop()), device="cpu")), console)
    assert "submit" in text() and "bound" not in text()


@pytest.mark.parametrize("width", [80, 60, 40])
def test_a_narrow_terminal_loses_whole_columns_and_says_which(h100: Summary, printed: Printed, width: int) -> None:
    """No line is longer than the terminal, no mode's name is cut, and memory keeps a table."""
    console, text = printed(width)
    print_summary(h100, console)
    lines = text().splitlines()
    assert max(map(len, lines)) <= width
    assert any("too narrow for:" in line for line in lines)
    if width == 80:
        assert any("monolithic_piecewise" in line and "ok" in line and "faster" in line for line in lines)
        assert any(line.startswith("Memory at the largest size") for line in lines)
        assert any("monolithic_eager" in line and "host 4.3x" in line for line in lines)  # goes after submit


def test_an_ascii_terminal_gets_ascii(h100: Summary, printed: Printed) -> None:
    console, text = printed(160, encoding="ascii")
    print_summary(h100, console)
    assert text().isascii() and "+ ok" in text() and "+-CI" in text()


def test_without_a_terminal_there_are_no_escape_codes(h100: Summary, printed: Printed) -> None:
    plain, plain_text = printed(120)
    print_summary(h100, plain)
    assert "\x1b" not in plain_text()
    colour, colour_text = printed(120, terminal=True)
    print_summary(h100, colour)
    assert "\x1b" in colour_text()


def test_emulated_stands_in_the_title_and_the_warning_says_what_to_do(fake_runs: ModuleType, printed: Printed) -> None:
    console, text = printed(120)
    run = fake_runs.make_run(fake_runs.sweep(fake_runs.laptop()), device="cpu")
    print_summary(summarize(run), console)
    assert "EMULATED v3.2-tp8 prefill, context 0 | AMD EPYC 9554" in text()
    assert "--device cuda" in text()


def test_an_incorrect_cell_prints_no_latency_but_its_check(fake_runs: ModuleType, printed: Printed) -> None:
    at = fake_runs.point("full", 64)
    wrong = fake_runs.ended(at, "incorrect", "replay differs", stage="verify").model_copy(
        update={
            "timing": fake_runs.timing(at, 123.4e-6).timing,
            "checks": (Check(name="replay equals eager", value=float("nan"), limit=0.0),),
        }
    )
    console, text = printed(200)
    print_summary(summarize(fake_runs.make_run([wrong])), console)
    assert "123.4" not in text()
    assert "≠ INCORRECT at verify: replay differs [replay equals eager nan > 0]" in text()
    assert "show RUN --format json" in text()


@pytest.mark.parametrize("reason", ["shape [3, 5]", "[red]x[/red]", "[/]", "a :boom: b", "[link=x]"])
def test_brackets_in_a_reason_survive(fake_runs: ModuleType, printed: Printed, reason: str) -> None:
    """Rich's markup would eat them, or raise."""
    console, text = printed(200)
    rows = [fake_runs.ended(fake_runs.point("full", n), "failed", reason, stage="capture") for n in range(1, 7)]
    print_summary(summarize(fake_runs.make_run(rows)), console)
    assert f"✗ FAILED at capture: {reason} (" in text()
    assert "and 3 more)" in text()
    assert text().count(reason) == 1


def test_notes_of_a_good_cell_are_listed(fake_runs: ModuleType, printed: Printed) -> None:
    at = fake_runs.point()
    console, text = printed(200)
    rows = [fake_runs.timing(at, 1e-4), fake_runs.ended(at, "failed", "OOM [2]", kind="memory")]
    print_summary(summarize(fake_runs.make_run(rows)), console)
    assert f"note: memory failed: OOM [2] ({at.key})" in text()


def test_compile_facts_have_a_table_of_their_own(fake_runs: ModuleType, printed: Printed) -> None:
    choice = fake_runs.tile(block_n=64, num_warps=4)
    rows = [fake_runs.compiled(fake_runs.point("full", n, tiles=(choice,)), registers=168) for n in (1, 8)]
    console, text = printed(80)
    print_summary(summarize(fake_runs.make_run(rows, device="cpu")), console)
    assert "2 cells were compiled, not timed" in text()
    (line,) = [line for line in text().splitlines() if line.startswith("sparse_attn")]
    assert line.split() == ["sparse_attn", "n64.w4", "168", "96.00", "KiB", "0", "2"]


def test_an_unclear_speed_up_is_marked(fake_runs: ModuleType, printed: Printed) -> None:
    rows = [
        fake_runs.timing(fake_runs.point("monolithic_eager"), 1e-4),
        fake_runs.timing(fake_runs.point("full"), 1e-4),
    ]
    console, text = printed(120)
    print_summary(summarize(fake_runs.make_run(rows)), console)
    assert "~1.00x" in text() and "includes 1.0" in text()


def with_twins(fake_runs: ModuleType, twin_s: float, full_s: float = 99.4e-6) -> Summary:
    """A baseline of 100 us and its twin, beside full."""
    rows = [
        fake_runs.timing(fake_runs.point("monolithic_eager"), 100e-6),
        fake_runs.timing(fake_runs.point("monolithic_eager", twin=True), twin_s),
        fake_runs.timing(fake_runs.point("full"), full_s),
    ]
    return summarize(fake_runs.make_run(rows))


@pytest.mark.parametrize(
    ("twin_s", "shown", "conditions"),
    [(100.1e-6, "1.01x faster", "A/A floor 0.5% (n=1)"), (101e-6, "~1.01x", "A/A floor 1.0% (n=1)")],
    ids=["above the floor", "below the floor"],
)
def test_a_speed_up_below_the_floor_is_unclear(
    fake_runs: ModuleType, printed: Printed, twin_s: float, shown: str, conditions: str
) -> None:
    """0.6 % faster with an interval far from 1.0: told where the run can see so little, marked where it cannot."""
    console, text = printed(160)
    print_summary(with_twins(fake_runs, twin_s), console)
    lines = text().splitlines()
    (cell,) = [line for line in lines if line.split()[:1] == ["full"]]
    (mean,) = [line for line in lines if "geomean" in line]
    assert shown in cell and shown in mean
    assert f"95% CI, {conditions}" in text()
    legend = "~ the interval of the speed-up includes 1.0, or device times differ by less than the A/A floor of 1.0%"
    assert (legend in lines) == shown.startswith("~")
    assert text().count("monolithic_eager") == 1 and "/aa" not in text()


def test_the_baseline_is_no_speed_up_to_be_unclear(fake_runs: ModuleType, printed: Printed) -> None:
    """Its 1.0 is by definition: alone it needs no legend, whatever the floor."""
    console, text = printed(160)
    print_summary(with_twins(fake_runs, 101e-6, full_s=50e-6), console)
    assert "baseline" in text() and "2.00x faster" in text() and "~" not in text()


def test_a_run_without_twins_says_so(h100: Summary, printed: Printed) -> None:
    console, text = printed(160)
    print_summary(h100, console)
    assert "95% CI, no A/A floor" in text()


def test_a_baseline_that_is_not_reproducible_is_a_warning(fake_runs: ModuleType, printed: Printed) -> None:
    """With how its twin ended, and what to do."""
    baseline = fake_runs.point("monolithic_eager")
    bad = fake_runs.ended(fake_runs.point("monolithic_eager", twin=True), "incorrect", "bytes [3]", stage="verify")
    console, text = printed(1000)
    print_summary(summarize(fake_runs.make_run([fake_runs.timing(baseline, 1e-4), bad])), console)
    (warning,) = [line for line in text().splitlines() if "reproducible" in line]
    assert warning.startswith("warning: 1 baseline is not reproducible: ")
    assert f"incorrect at verify: bytes [3] ({baseline.key})" in warning
    assert warning.rstrip().endswith("and sweep again.")


def test_an_empty_run_prints_nothing_and_raises_nothing(fake_runs: ModuleType, printed: Printed) -> None:
    console, text = printed()
    print_summary(summarize(fake_runs.make_run([])), console)
    assert text() == ""
