from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from mlaprof.analysis.running import RunningCell
from mlaprof.analysis.stats import Estimate
from mlaprof.facts import DispatchTax, NodeCounts, StepCounts
from mlaprof.records import Started
from mlaprof.report.progress import BOARD_ROWS, finished_line, progress, standing

Printed = Callable[..., Any]


def test_without_a_terminal_every_measurement_is_one_line(fake_runs: ModuleType, printed: Printed) -> None:
    """Key, status, median; lines are never wrapped, whatever the width."""
    at = fake_runs.point("full", 64)
    small = fake_runs.point("full", 32)
    tile = fake_runs.point("full", 64, tiles=(fake_runs.tile(block_n=64, num_warps=4),))
    console, text = printed(30)
    with progress(12, console) as show:
        show(Started(kind="timing", key=at.key, stage="build"))
        show(fake_runs.timing(at, 123.4e-6))
        show(fake_runs.memory(at, 12.0))
        show(fake_runs.compiled(tile, registers=168))
        show(fake_runs.ended(small, "failed", "CUDA error:\n  [3, 5]", stage="capture"))
    assert text().splitlines() == [
        f"[ 1/12] ✓ ok timing {at.key} 123.4 us",
        f"[ 2/12] ✓ ok memory {at.key} graph pool 12.00 MiB",
        f"[ 3/12] ○ compiled compile {tile.key} sparse_attn 168 registers 96.00 KiB shared",
        f"[ 4/12] ✗ FAILED timing {small.key} capture: CUDA error: [3, 5]",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_measured_again_counts_once(fake_runs: ModuleType, printed: Printed, terminal: bool) -> None:
    """As after a lost host."""
    at, other = fake_runs.point("full", 64), fake_runs.point("full", 32)
    console, text = printed(120, terminal=terminal)
    with progress(2, console) as show:
        for point in (at, at, other):
            show(fake_runs.timing(point, 1e-4))
    assert re.findall(r"(\d)/2", text())[-1] == "2" and "3/2" not in text()


def test_compile_facts_of_one_configuration_are_told_once(fake_runs: ModuleType, printed: Printed) -> None:
    """They are the same for every cell; the counter goes on, and a last line says how many were silent."""
    console, text = printed(120)
    with progress(5, console) as show:
        for tokens in (8, 1):
            for block_n in (16, 64):
                at = fake_runs.point("full", tokens, tiles=(fake_runs.tile(block_n=block_n),))
                show(fake_runs.compiled(at, registers=block_n))
        show(fake_runs.timing(fake_runs.point("full", 8), 1e-4))
    numbers = [line.split("]")[0] for line in text().splitlines()]
    assert numbers == ["[1/5", "[2/5", "[5/5", "[5/5"]
    assert text().endswith("[5/5] 2 more cells compiled with the same tiles and facts\n")


def test_a_terminal_gets_a_bar_and_keeps_the_failures(fake_runs: ModuleType, printed: Printed) -> None:
    at = fake_runs.point("full", 64)
    console, text = printed(120, terminal=True)
    with progress(2, console) as show:
        show(Started(kind="timing", key=at.key, stage="capture"))
        show(fake_runs.timing(at, 1e-4))
        show(fake_runs.ended(fake_runs.point("full", 32), "failed", "IMA [3]", stage="capture"))
    assert "FAILED" in text() and "IMA [3]" in text() and "2/2" in text()


def test_a_narrow_terminal_keeps_the_count_and_the_time_left(fake_runs: ModuleType, printed: Printed) -> None:
    """The Point under way gives way to them."""
    console, text = printed(50, terminal=True)
    with progress(100, console) as show:
        show(Started(kind="timing", key=fake_runs.point("monolithic_piecewise").key, stage="capture"))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text())
    assert re.search(r"  0/100 left -:--:-- +timing v3\.2\S*…", plain)


def test_an_interrupt_passes_and_leaves_the_terminal_usable(fake_runs: ModuleType, printed: Printed) -> None:
    console, text = printed(120, terminal=True)
    with pytest.raises(KeyboardInterrupt), progress(2, console) as show:
        show(fake_runs.timing(fake_runs.point(), 1e-4))
        raise KeyboardInterrupt
    assert text().rindex("\x1b[?25h") > text().rindex("\x1b[?25l")  # the cursor is back


def test_of_several_processes_the_line_says_which(fake_runs: ModuleType) -> None:
    """From the second on: of one process nothing needs to be said."""
    row = fake_runs.timing(fake_runs.point("full", 64), 123.4e-6)
    second = row.model_copy(update={"process": 1})
    assert finished_line(row).plain.startswith("✓ ok timing v3.2-tp8/")
    assert finished_line(second).plain == f"✓ ok timing#2 {row.point.key} 123.4 us"


def test_counts_and_the_dispatch_tax_are_told_in_brief(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    nodes = NodeCounts(kernel=60)
    counts = StepCounts(steps=5, kernels=80, kernel_launches=20, graph_launches=3, nodes=nodes, complete=True)
    row = fake_runs.ended(at, "ok", "", kind="counts").model_copy(update={"counts": counts})
    assert finished_line(row).plain == f"✓ ok counts {at.key} 20 kernel + 3 graph launches, 0 syncs"
    lacking = row.model_copy(update={"counts": counts.model_copy(update={"complete": False, "device_syncs": 2})})
    assert finished_line(lacking).plain.endswith("2 syncs, incomplete")
    tax = DispatchTax(bare_s=1e-6, define_s=3e-6, custom_op_s=8e-6, calls=9, ops_per_step=2)
    taxed = fake_runs.ended(at, "ok", "", kind="dispatch").model_copy(update={"dispatch": tax})
    assert finished_line(taxed).plain.endswith("2.000 us an operator above its function")


def test_an_emulated_time_says_so(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    assert finished_line(fake_runs.timing(at, 2e-3, emulated=True)).plain.endswith("2.000 ms emulated")
    assert finished_line(fake_runs.timing(at, 2e-3), ascii_only=True).plain.isascii()


def running_cell(**changes: Any) -> RunningCell:
    fields = {
        "key": "v3.2-tp8/prefill/t64/ctx0/full",
        "emulated": False,
        "processes": 2,
        "planned": 3,
        "device_s": Estimate(123.4e-6, 123.0e-6, 123.8e-6, 60),
        "speedup": Estimate(1.12, 1.11, 1.13, 60),
        "verdict": "FASTER",
        "left_s": 100.0,
    }
    return RunningCell(**{**fields, **changes})


def test_a_line_ends_with_what_is_known_of_its_cell(fake_runs: ModuleType, printed: Printed) -> None:
    """Median with interval, speed-up with verdict, time left; nothing where there is no time."""
    row = fake_runs.timing(fake_runs.point("full", 64), 123e-6)
    console, text = printed(200)
    with progress(9, console) as show:
        show(row, running_cell())
        show(row, running_cell(speedup=None, verdict=None, left_s=0.0))
        show(row, running_cell(device_s=None, speedup=None, verdict="FAILED"))
    assert [line.partition(" | ")[2] for line in text().splitlines()] == [
        "so far 123.4 us ±0.3% (2/3 processes), 1.12x faster ±0.9% FASTER, done in 0:01:40",
        "so far 123.4 us ±0.3% (2/3 processes)",
        "",
    ]
    assert standing(running_cell(), ascii_only=True).isascii()


def test_a_terminal_shows_the_cells_told_of_last(fake_runs: ModuleType, printed: Printed) -> None:
    """Each once, as it stands, on no more rows than there is room for."""
    console, text = printed(160, terminal=True)
    row = fake_runs.timing(fake_runs.point("full", 64), 123e-6)
    with progress(99, console) as show:
        for number in range(BOARD_ROWS + 4):
            show(row, running_cell(key=f"cell/t{number}/full"))
        show(row, running_cell(key="cell/t9/full", processes=3))
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text().split("so far")[-1])
    assert re.findall(r"cell/t(\d+)/full +(\d)/3", last)[-2:] == [(str(BOARD_ROWS + 3), "2"), ("9", "3")]
    assert "123.4 us ±0.3%" in last and "1.12x faster ±0.9%" in last and "FASTER" in last and "0:01:40" in last
    assert len(re.findall(r"cell/t9/full", last)) == 1 and "cell/t0/full" not in last


@pytest.mark.parametrize("emulated", [True, False])
def test_a_narrow_board_keeps_the_figures_and_the_end_of_the_key(
    fake_runs: ModuleType, printed: Printed, emulated: bool
) -> None:
    """80 columns hold all of them; an emulated board says so above its times."""
    console, text = printed(80, terminal=True)
    with progress(9, console) as show:
        key = "v3.2-tp8/prefill/t64/ctx0/monolithic_piecewise"
        show(fake_runs.timing(fake_runs.point(), 1e-4), running_cell(key=key, emulated=emulated))
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text()).split("so far")[-1]
    assert re.search(r"…\S*thic_piecewise +2/3 +123\.4 us ±0\.3% +1\.12x faster ±0\.9% +▼ FASTER +0:01:40", last)
    assert ("EMULATED so far" in text()) is emulated
