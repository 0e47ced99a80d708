from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from mlaprof.analysis.compare import compare
from mlaprof.report.comparison import print_comparison

Printed = Callable[..., Any]


def test_a_comparison_lists_the_gravest_first(fake_runs: ModuleType, printed: Printed) -> None:
    def run(factor: float, broken: bool) -> Any:
        last = fake_runs.point("full", 64)
        return fake_runs.make_run(
            [
                fake_runs.timing(fake_runs.point("full", 1), 1e-4),
                fake_runs.timing(fake_runs.point("full", 8), 1e-4 * factor),
                fake_runs.ended(last, "failed", "IMA [rank 0]") if broken else fake_runs.timing(last, 1e-4),
            ],
            run_id="new" if broken else "base",
        )

    console, text = printed(120)
    print_comparison(compare(run(1.0, False), run(1.2, True)), console)
    out = text()
    assert out.index("✗ FAILED") < out.index("▲ SLOWER") < out.index("= SAME") < out.index("geomean full")
    assert "1.200" in out and "1.20x slower" in out and "IMA [rank 0]" in out
    assert "1 FAILED, 1 SLOWER, 1 SAME at a threshold of 1.0%" in out


def test_a_mismatch_is_said_on_top(fake_runs: ModuleType, printed: Printed) -> None:
    at = fake_runs.point()
    other = fake_runs.H100.model_copy(update={"name": "NVIDIA H200", "driver": "590.0"})
    base = fake_runs.make_run([fake_runs.timing(at, 1e-4)])
    new = fake_runs.make_run([fake_runs.timing(at, 1e-4)], gpus=(other,))
    console, text = printed(120)
    print_comparison(compare(base, new), console)
    lines = text().splitlines()
    assert lines[2].startswith("MISMATCH processor: NVIDIA H100 80GB HBM3 -> NVIDIA H200")
    assert "note: driver: 580.1 -> 590.0" in lines


@pytest.mark.parametrize("width", [80, 50])
def test_a_comparison_fits_a_narrow_terminal(fake_runs: ModuleType, printed: Printed, width: int) -> None:
    run = fake_runs.make_run(fake_runs.sweep(fake_runs.h100(sizes=(1, 4096))))
    console, text = printed(width)
    print_comparison(compare(run, run), console)
    assert max(len(line) for line in text().splitlines()) <= width


def test_comparing_nothing_says_so(fake_runs: ModuleType, printed: Printed) -> None:
    run = fake_runs.make_run([])
    console, text = printed()
    print_comparison(compare(run, run), console)
    assert "no cell was timed" in text()
