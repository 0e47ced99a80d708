"""The A/A floor of a run: what it comes to, what it rests on, and that a twin is nowhere else."""

from __future__ import annotations

import json
import math
from types import ModuleType

import pytest

from mlaprof.analysis.cells import Floor
from mlaprof.analysis.groups import groups
from mlaprof.analysis.summary import summarize
from mlaprof.facts import Timing
from mlaprof.records import Measurement, Run


def pair(fake_runs: ModuleType, tokens: int, log_ratio: float, **changes: object) -> list[Measurement]:
    """A baseline and its twin whose medians differ by log_ratio."""
    baseline = fake_runs.timing(fake_runs.point("monolithic_eager", tokens), 100e-6)
    at = fake_runs.point("monolithic_eager", tokens, twin=True)
    return [baseline, fake_runs.timing(at, 100e-6 * math.exp(log_ratio), **changes)]


def planted(fake_runs: ModuleType, log_ratios: list[float]) -> Run:
    rows = [row for number, each in enumerate(log_ratios) for row in pair(fake_runs, number + 1, each)]
    return fake_runs.make_run(rows)


@pytest.mark.parametrize(
    ("log_ratios", "floor"),
    [
        ([0.02], 0.02),
        ([-0.02], 0.02),
        ([0.001, -0.002], 0.005),
        ([0.0] * 20 + [0.5], 0.005),
        ([number / 1000 for number in range(101)], 0.095),
        ([-number / 1000 for number in range(21)], 0.019),
        ([0.0, 0.1], 0.095),
    ],
    ids=["one cell", "sign", "least", "one of 21", "percentile", "negative", "between two"],
)
def test_the_floor_is_the_95th_percentile_and_half_a_percent_at_least(
    fake_runs: ModuleType, log_ratios: list[float], floor: float
) -> None:
    """Of the absolute log ratio of the medians, over the cells."""
    found = summarize(planted(fake_runs, log_ratios)).floor
    assert found == Floor(pytest.approx(floor, abs=1e-9), len(log_ratios))


def of_processes(fake_runs: ModuleType, levels: list[float], twin_levels: list[float], tokens: int = 8) -> Run:
    rows = pair(fake_runs, tokens, 0.0)
    tiled = fake_runs.timing(fake_runs.point("full", tokens, tiles=(fake_runs.tile(block_n=64),)), 1e-4)
    return fake_runs.make_run(
        [
            fake_runs.in_process(each, process, factor)
            for each, factors in ((rows[0], levels), (rows[1], twin_levels), (tiled, [1.0, 3.0, 9.0]))
            for process, factor in enumerate(factors)
        ]
    )


def test_what_all_arms_of_a_process_share_is_no_noise_in_a_run(fake_runs: ModuleType) -> None:
    """Rounds are paired: processes 5 % apart leave the in-run floor at its least, and are the floor between them."""
    found = summarize(of_processes(fake_runs, [1.0, 1.0, 1.05], [1.0, 1.0, 1.05])).floor
    assert found == Floor(0.005, 1, between=pytest.approx(math.log(1.05)))


def test_the_floor_between_processes_has_no_least_value(fake_runs: ModuleType) -> None:
    """It is the percentile over arms with default tiles and pairs of processes: here of six, two by 0.1 %."""
    found = summarize(of_processes(fake_runs, [1.0, 1.0, 1.001], [1.0, 1.0, 1.0])).floor
    assert found is not None and found.between == pytest.approx(math.log(1.001), rel=1e-6)
    still = summarize(of_processes(fake_runs, [1.0] * 3, [1.0] * 3)).floor
    assert still is not None and still.between == pytest.approx(0.0, abs=1e-12)


def test_a_twin_that_differs_in_every_process_is_the_floor_in_the_run(fake_runs: ModuleType) -> None:
    found = summarize(of_processes(fake_runs, [1.0, 1.0, 1.0], [1.02, 1.02, 1.02])).floor
    assert found is not None and found.ratio == pytest.approx(math.log(1.02), rel=1e-6)


def test_one_process_says_nothing_of_others(fake_runs: ModuleType) -> None:
    found = summarize(planted(fake_runs, [0.01, 0.02])).floor
    assert found is not None and found.between is None


def test_a_twin_is_held_against_the_baseline_of_its_own_process(fake_runs: ModuleType) -> None:
    """That the baseline failed in another process does not explain it."""
    baseline, twin = (each.point for each in pair(fake_runs, 8, 0.0))
    rows = [
        fake_runs.ended(baseline, "failed", "no memory"),
        fake_runs.ended(twin, "failed", "no memory"),
        fake_runs.timing(baseline, 1e-4).model_copy(update={"process": 1}),
        fake_runs.ended(twin, "failed", "a bad address").model_copy(update={"process": 1}),
    ]
    (cell,) = summarize(fake_runs.make_run(rows)).cells
    assert cell.twin_trouble == "failed at measure: a bad address"


def test_a_run_without_twins_has_no_floor(fake_runs: ModuleType) -> None:
    assert summarize(fake_runs.make_run(fake_runs.sweep(fake_runs.h100()))).floor is None


@pytest.mark.parametrize("lost", ["baseline", "twin", "clock", "unresolved"])
def test_a_pair_that_cannot_be_compared_is_not_counted(fake_runs: ModuleType, lost: str) -> None:
    """The floor says how many pairs it rests on."""
    baseline, twin = pair(fake_runs, 8, 0.3)
    rows = {
        "baseline": [fake_runs.ended(baseline.point, "failed", "out of memory"), twin],
        "twin": [baseline, fake_runs.ended(twin.point, "failed", "out of memory")],
        "clock": pair(fake_runs, 8, 0.3, clock="perf_counter"),
        "unresolved": pair(fake_runs, 8, 0.3, device_s=(0.0,) * 50),
    }[lost]
    assert summarize(fake_runs.make_run(rows)).floor is None
    assert summarize(fake_runs.make_run([*rows, *pair(fake_runs, 64, 0.01)])).floor == Floor(pytest.approx(0.01), 1)


def test_the_last_timing_of_a_twin_counts(fake_runs: ModuleType) -> None:
    """A resumed run holds a cell's later timings in the place of the earlier ones."""
    baseline, first = pair(fake_runs, 8, 0.3)
    _, second = pair(fake_runs, 8, 0.01)
    assert summarize(fake_runs.make_run([baseline, first, second])).floor == Floor(pytest.approx(0.01), 1)


def test_a_twin_changes_nothing_but_the_floor(fake_runs: ModuleType) -> None:
    """No cell, no mean, no speed-up, no finding comes from one."""
    rows = fake_runs.sweep(fake_runs.h100(sizes=(1, 8)))
    without = summarize(fake_runs.make_run(rows))
    with_twins = summarize(fake_runs.make_run([*rows, *(pair(fake_runs, tokens, 0.1)[1] for tokens in (1, 8))]))
    assert with_twins.floor is not None and with_twins.floor.cells == 2
    for part in ("cells", "means", "findings", "piecewise_vs_breakable", "boundary_prices"):
        assert getattr(with_twins, part) == getattr(without, part)


@pytest.mark.parametrize("way", ["monolithic_eager", "breakable@logits"])
@pytest.mark.parametrize("preset", ["v3.2-tp8", "odd/aa"])
def test_a_planned_twin_is_no_cell_and_no_tiles(fake_runs: ModuleType, way: str, preset: str) -> None:
    """Known by its key alone, before anything is measured."""
    mode, _, boundary = way.partition("@")
    at = fake_runs.point(mode, 7, preset=preset, boundary=boundary or "index_quant")
    tiled = at.model_copy(update={"tiles": (fake_runs.tile(block_n=64, num_warps=4),)})
    keys = [at.key, at.model_copy(update={"twin": True}).key, tiled.key]
    summary = summarize(fake_runs.make_run([], planned=[f"timing {key}" for key in keys]))
    assert [(cell.key, cell.tiles) for cell in summary.cells] == [
        (at.key, ""),
        (tiled.key, "sparse_attn=n64.w4"),
    ]
    assert {(cell.preset, cell.way) for cell in summary.cells} == {(preset, way)}


@pytest.mark.parametrize("status", ["failed", "incorrect"])
def test_a_twin_that_goes_wrong_is_told_of_its_baseline(fake_runs: ModuleType, status: str) -> None:
    """One step, run twice in one process, with two ends: no number over it can be believed."""
    baseline, twin = pair(fake_runs, 8, 0.0)
    bad = fake_runs.ended(twin.point, status, "differing bytes 3, limit 0", stage="verify")
    summary = summarize(fake_runs.make_run([baseline, bad, *pair(fake_runs, 64, 0.0)]))
    (finding,) = [each for each in summary.findings if each.kind == "irreproducible"]
    assert finding.keys == (baseline.point.key,)
    assert [cell.twin_trouble for cell in summary.cells] == [f"{status} at verify: differing bytes 3, limit 0", ""]
    assert [cell.outcome for cell in summary.cells] == ["ok", "ok"]


def test_a_twin_that_fails_as_its_baseline_does_is_not_told_twice(fake_runs: ModuleType) -> None:
    """Both fail where the layer cannot be built, or the sampling of the cell breaks."""
    baseline, twin = pair(fake_runs, 8, 0.0)
    rows = [fake_runs.ended(each.point, "failed", "no memory", stage="build") for each in (baseline, twin)]
    assert [each.kind for each in summarize(fake_runs.make_run(rows)).findings] == ["failed"]


def test_a_twin_that_cannot_be_captured_is_no_trouble(fake_runs: ModuleType) -> None:
    """It is skipped with its baseline."""
    points = [fake_runs.point("full", 8), fake_runs.point("full", 8, twin=True)]
    rows = [fake_runs.ended(at, "skipped", "a host read", stage="capture") for at in points]
    summary = summarize(fake_runs.make_run(rows))
    assert (summary.findings, summary.floor, len(summary.cells)) == ((), None, 1)


def test_the_groups_of_a_page_hold_no_twin(fake_runs: ModuleType) -> None:
    """Tables and figures draw from these."""
    (group,) = groups(summarize(planted(fake_runs, [0.0, 0.01])))
    assert [cell.key.endswith("/aa") for cell in group.cells] == [False, False]


def test_a_point_of_an_older_record_is_no_twin(fake_runs: ModuleType) -> None:
    record = json.loads(fake_runs.timing(fake_runs.point(), 1e-4).model_dump_json())
    del record["point"]["twin"]
    read = Measurement.model_validate(record)
    assert not read.point.twin and isinstance(read.timing, Timing)
