from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from mlaprof.analysis.cells import Floor
from mlaprof.analysis.compare import Comparison, compare
from mlaprof.analysis.limits import Limit
from mlaprof.report.comparison import comparison_json, print_comparison

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
    assert lines[3] == "DIFFERENT driver: 580.1 -> 590.0"


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


def two_cells(fake_runs: ModuleType, spread: float = 0.002, **options: Any) -> Comparison:
    """A slower cell, and one that is ambiguous where the spread is wide."""

    def run(name: str, factor: float, seed: int) -> Any:
        wide = fake_runs.samples(1e-4, n=30, spread=spread, seed=seed)
        rows = [
            fake_runs.timing(fake_runs.point("full", 8), 2e-4 * factor),
            fake_runs.timing(fake_runs.point("full", 16), 1e-4, device_s=wide),
        ]
        return fake_runs.make_run(rows, run_id=name)

    return compare(run("base", 1.0, 1), run("new", 1.1, 2), **options)


def test_the_floors_and_the_threshold_that_decided_are_told(fake_runs: ModuleType, printed: Printed) -> None:
    """A floor that was not measured is said to be assumed; one above the threshold decides, and both are printed."""
    found = two_cells(fake_runs, threshold=0.001)
    console, text = printed(160)
    print_comparison(found, console)
    out = text()
    unseen = "not measured, 0.5% assumed, 1 process: differences between processes are not seen"
    assert f"noise floor: base {unseen}; new {unseen}" in " ".join(out.split())
    assert "1 SLOWER, 1 AMBIGUOUS at a threshold of 0.5%, the noise floor (0.1% was asked)" in out

    limit = Limit(0.0125, 0.0062)
    measured = replace(
        found,
        new=replace(found.new, floor=Floor(0.0062, 12)),
        deltas=tuple(replace(delta, limit=limit) for delta in found.deltas),
        threshold=0.0125,
    )
    console, text = printed(160)
    print_comparison(measured, console)
    assert "new 0.62% of 12 A/A pairs" in text()
    console, text = printed(160)
    print_comparison(measured, console)
    assert "1 SLOWER, 1 AMBIGUOUS at a threshold of 1.25%" in text()


def test_an_ambiguous_cell_is_told_with_the_rounds_that_would_settle_it(
    fake_runs: ModuleType, printed: Printed
) -> None:
    found = two_cells(fake_runs, spread=0.1)
    rounds = found.deltas[1].rounds
    console, text = printed(160)
    print_comparison(found, console)
    out = text()
    assert "to settle" in out and f"{rounds} rounds" in out and "p (BH)" in out and "<0.001" in out
    assert (
        rounds
        and f"About {rounds} rounds (measure.min_samples and measure.max_samples) in each run would settle 1 of 1"
        in " ".join(out.split())
    )


def test_what_more_rounds_cannot_settle_is_not_sent_for_more(fake_runs: ModuleType, printed: Printed) -> None:
    at = fake_runs.point()
    base = fake_runs.make_run([fake_runs.timing(at, 1e-4)])
    new = fake_runs.make_run([fake_runs.timing(at, 2e-4, clock_event_reasons=(0x40,) * 50)])
    console, text = printed(160)
    print_comparison(compare(base, new), console)
    out = " ".join(text().split())
    assert "THROTTLED: the clocks stayed down in new" in out and "1 THROTTLED at a threshold" in out
    assert "of a throttled cell no change can be told" in out and "rounds" not in out.split("1 THROTTLED at")[1]


def test_an_allowed_machine_is_still_said_on_top(fake_runs: ModuleType, printed: Printed) -> None:
    at = fake_runs.point()
    other = fake_runs.H100.model_copy(update={"name": "NVIDIA H200"})
    base = fake_runs.make_run([fake_runs.timing(at, 1e-4)])
    new = fake_runs.make_run([fake_runs.timing(at, 1e-4)], gpus=(other,))
    console, text = printed(160)
    print_comparison(compare(base, new, cross_machine=True), console)
    assert text().splitlines()[2].startswith("CROSS-MACHINE processor: NVIDIA H100 80GB HBM3 -> NVIDIA H200")


def test_json_holds_a_row_a_cell_and_a_mean_a_way(fake_runs: ModuleType) -> None:
    found = json.loads(comparison_json(two_cells(fake_runs, spread=0.1)))
    slower, ambiguous = found["cells"]
    assert slower["key"] == "v3.2-tp8/prefill/t8/ctx0/full" and slower["verdict"] == "SLOWER"
    assert slower["ci_low"] < slower["ratio"] < slower["ci_high"] and slower["ratio"] == pytest.approx(1.1)
    assert slower["p_adjusted"] < 1e-6 and slower["floor"] == 0.005 and slower["rounds_to_settle"] is None
    assert (slower["rounds"], ambiguous["rounds"]) == (50, 30)
    assert ambiguous["verdict"] == "AMBIGUOUS" and ambiguous["rounds_to_settle"] > 30
    assert [(mean["way"], mean["cells"]) for mean in found["geomean"]] == [("full", 2)]
    assert (found["base"], found["new"], found["limit"]) == ("base", "new", 0.01)
    assert found["floors"]["new"].items() >= {"ratio": 0.005, "pairs": 0, "between": None}.items()
    assert (slower["limit"], slower["processes_to_settle"]) == (0.01, None)
    assert slower["paired"] is False and slower["processes"] == {"base": 1, "new": 1}


def test_json_of_what_was_not_timed_twice_has_nulls(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    base, new = fake_runs.make_run([fake_runs.timing(at, 1e-4)]), fake_runs.make_run([])
    (cell,) = json.loads(comparison_json(compare(base, new)))["cells"]
    assert (cell["verdict"], cell["reason"]) == ("MISSING", "not in the new run")
    assert cell["ratio"] is cell["ci_low"] is cell["p_adjusted"] is cell["new_s"] is None
    assert cell["base_s"] == pytest.approx(1e-4)


def of_processes(fake_runs: ModuleType, name: str, factor: float, levels: tuple[float, ...]) -> Any:
    """A run of a baseline with its twin and of `full`, in processes that lie apart by these levels."""
    rows = []
    for process, level in enumerate(levels):
        for mode, times in (("monolithic_eager", 2.0), ("full", 1.0)):
            measured = fake_runs.timing(fake_runs.point(mode), 1e-4 * times * factor * level).model_copy(
                update={"process": process}
            )
            rows.append(measured)
        twin = rows[-2].point.model_copy(update={"twin": True})
        rows.append(rows[-2].model_copy(update={"point": twin}))
    return fake_runs.make_run(rows, run_id=name)


def test_of_processes_that_lie_apart_more_settle_and_no_more_rounds(fake_runs: ModuleType, printed: Printed) -> None:
    """Longer processes would lie apart as much, so nobody is sent for more rounds."""
    apart = (0.97, 1.0, 1.03)
    found = compare(of_processes(fake_runs, "base", 1.0, apart), of_processes(fake_runs, "new", 1.03, apart))
    console, text = printed(200)
    print_comparison(found, console)
    out = " ".join(text().split())
    assert found.limit == 0.01 and "2 AMBIGUOUS at a threshold of 1.0%" in out
    assert "between its 3 processes; new" in out
    assert "processes (measure.processes) in each run would settle" in out and "measure.min_samples" not in out


def test_a_run_of_one_process_is_said_to_see_no_difference_between_processes(
    fake_runs: ModuleType, printed: Printed
) -> None:
    """The other run's is taken for its own."""
    base = of_processes(fake_runs, "base", 1.0, (0.999, 1.0, 1.001))
    new = of_processes(fake_runs, "new", 1.001, (1.0,))
    found = compare(base, new)
    console, text = printed(200)
    print_comparison(found, console)
    assert "1 process: differences between processes are not seen" in text()
    (cell, _) = json.loads(comparison_json(found))["cells"]
    assert cell["processes"] == {"base": 3, "new": 1}
    assert cell["ci_high"] - cell["ci_low"] > 0.005  # rounds alone would say 0.001


def test_what_most_often_explains_a_change_stands_before_other_notes(fake_runs: ModuleType, printed: Printed) -> None:
    at = fake_runs.point()
    base = fake_runs.make_run([fake_runs.timing(at, 1e-4)])
    gpu = fake_runs.H100.model_copy(update={"uuid": "GPU-9", "driver": "590.0", "power_limit_w": 500.0})
    changes = {
        "python": "3.11.1",
        "packages": {"torch": "2.13.0", "triton": "3.7.0"},
        "kernel_source_sha256": "cd" * 32,
    }
    new = fake_runs.make_run([fake_runs.timing(at, 1e-4)], gpus=(gpu,), **changes)
    console, text = printed(120)
    print_comparison(compare(base, new), console)
    names = [line.partition(":")[0] for line in text().splitlines()[2:9]]
    assert names[:5] == [f"DIFFERENT {name}" for name in ("GPU uuid", "driver", "torch", "triton", "kernel source")]
    assert names[5:] == ["note", "note"]
