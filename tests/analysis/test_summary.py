from __future__ import annotations

from types import ModuleType

import pytest

from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.groups import groups
from mlaprof.analysis.summary import summarize
from mlaprof.errors import RunFileError


def only(summary: Summary) -> Cell:
    (cell,) = summary.cells
    return cell


def test_one_cell_a_key_in_plan_order_with_all_kinds_merged(fake_runs: ModuleType) -> None:
    """The timing, memory and compile measurements of a Point are one row; later rows never reorder the plan."""
    big, small = fake_runs.point("full", 128), fake_runs.point("full", 1)
    rows = [
        fake_runs.timing(big, 2e-4),
        fake_runs.timing(small, 1e-4),
        fake_runs.memory(small, 3.0),
        fake_runs.memory(big, 2.0),
    ]
    summary = summarize(fake_runs.make_run(rows))
    assert [cell.key for cell in summary.cells] == [big.key, small.key]
    assert summary.cells[0].device_s and summary.cells[0].memory
    assert summary.cells[0].memory.graph_pool_bytes == 2 * 2**20
    assert summary.cells[0].device_s.median == pytest.approx(2e-4, rel=1e-6)
    assert summary.cells[0].graph and summary.cells[0].checks
    assert summary.processor == "NVIDIA H100 80GB HBM3"


def test_the_last_measurement_of_a_kind_counts(fake_runs: ModuleType) -> None:
    """A resumed run may hold a failure and the later success."""
    at = fake_runs.point()
    run = fake_runs.make_run([fake_runs.ended(at, "failed", "CUDA error"), fake_runs.timing(at, 1e-4)])
    assert only(summarize(run)).outcome == "ok"
    assert only(summarize(run)).reason == ""


@pytest.mark.parametrize("status", ["incorrect", "failed", "skipped"])
def test_a_cell_that_is_not_ok_never_shows_a_latency(fake_runs: ModuleType, status: str) -> None:
    """Even when the record carries samples."""
    at = fake_runs.point()
    good = fake_runs.timing(at, 1e-4)
    bad = fake_runs.ended(at, status, "shape [3, 5]", stage="verify")
    cell = only(summarize(fake_runs.make_run([bad.model_copy(update={"timing": good.timing})])))
    assert cell.outcome == status
    assert (cell.stage, cell.reason) == ("verify", "shape [3, 5]")
    assert cell.device_s is cell.submit_s is cell.speedup is cell.tiles_speedup is cell.sm_clock_hz is None
    assert not cell.timed


def test_a_planned_cell_without_measurements_is_missing(fake_runs: ModuleType) -> None:
    keys = ["a/b/decode/t7/ctx4096/split_eager/sparse_attn=n64.w4", "v3.2/mixed/t8192/ctx0/full"]
    summary = summarize(fake_runs.make_run([], planned=[f"timing {key}" for key in keys]))
    assert [cell.outcome for cell in summary.cells] == ["missing", "missing"]
    first = summary.cells[0]
    assert (first.preset, first.phase, first.num_tokens, first.context_len) == ("a/b", "decode", 7, 4096)
    assert (first.mode, first.tiles) == ("split_eager", "sparse_attn=n64.w4")
    assert summary.findings[0].kind == "missing"


def test_memory_does_not_stand_in_for_a_timing_that_is_missing(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    run = fake_runs.make_run([fake_runs.memory(at, 1.0)], planned=[f"timing {at.key}", f"memory {at.key}"])
    cell = only(summarize(run))
    assert cell.outcome == "missing" and cell.memory is not None


def test_a_failed_memory_job_is_a_note_not_a_failed_timing(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    run = fake_runs.make_run([fake_runs.timing(at, 1e-4), fake_runs.ended(at, "failed", "OOM", kind="memory")])
    cell = only(summarize(run))
    assert cell.outcome == "ok" and cell.timed
    assert cell.notes == ("memory failed: OOM",)
    assert {finding.kind for finding in summarize(run).findings} == {"partial"}


def test_compile_facts_alone_make_a_compiled_cell(fake_runs: ModuleType) -> None:
    at = fake_runs.point(tiles=(fake_runs.tile(block_n=64, num_warps=4),))
    cell = only(summarize(fake_runs.make_run([fake_runs.compiled(at, registers=99)])))
    assert (cell.outcome, cell.device_s, cell.resources[0].registers) == ("compiled", None, 99)
    assert cell.reason == ""


def test_speed_ups_are_over_the_baseline_and_over_the_default_tiles(fake_runs: ModuleType) -> None:
    choice = fake_runs.tile(block_n=64, num_warps=4)
    rows = [
        fake_runs.timing(fake_runs.point("monolithic_eager"), 300e-6),
        fake_runs.timing(fake_runs.point("full"), 200e-6),
        fake_runs.timing(fake_runs.point("full", tiles=(choice,)), 100e-6),
    ]
    baseline, full, tiled = summarize(fake_runs.make_run(rows)).cells
    assert baseline.speedup and (baseline.speedup.median, baseline.speedup.ci_high) == (1.0, 1.0)
    assert full.speedup and full.speedup.median == pytest.approx(1.5, rel=1e-6)
    assert full.speedup.ci_low < 1.5 < full.speedup.ci_high
    assert full.tiles_speedup is None
    assert tiled.speedup and tiled.speedup.median == pytest.approx(3.0, rel=1e-6)
    assert tiled.tiles_speedup and tiled.tiles_speedup.median == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize(
    "baseline",
    [
        pytest.param({"cache": "warm"}, id="another cache state"),
        pytest.param({"clock": "perf_counter"}, id="another clock"),
        pytest.param({"device_s": (0.0,) * 50}, id="unresolved"),
    ],
)
def test_there_is_no_speed_up_between_things_that_do_not_compare(fake_runs: ModuleType, baseline: dict) -> None:
    rows = [
        fake_runs.timing(fake_runs.point("monolithic_eager"), 300e-6, **baseline),
        fake_runs.timing(fake_runs.point("full"), 200e-6),
    ]
    assert summarize(fake_runs.make_run(rows)).cells[1].speedup is None


def test_a_speed_up_never_crosses_cells(fake_runs: ModuleType) -> None:
    rows = [
        fake_runs.timing(fake_runs.point("monolithic_eager", 64), 3e-4),
        fake_runs.timing(fake_runs.point("full", 65), 2e-4),
        fake_runs.timing(fake_runs.point("full", 64, context_len=1), 2e-4),
        fake_runs.timing(fake_runs.point("full", 64, phase="decode"), 2e-4),
    ]
    assert [cell.speedup for cell in summarize(fake_runs.make_run(rows)).cells[1:]] == [None, None, None]


@pytest.mark.parametrize(
    ("device_s", "submit_s", "changes", "bound"),
    [
        pytest.param(1e-4, 7.3e-4, {}, "host", id="host slower"),
        pytest.param(1e-4, 2e-5, {}, "device", id="host faster"),
        pytest.param(1e-4, 1e-4, {}, "device", id="a tie"),
        pytest.param(1e-4, 7.3e-4, {"emulated": True}, None, id="emulated"),
        pytest.param(1e-4, 7.3e-4, {"unfilled": 50}, None, id="the step waits for the device itself"),
        pytest.param(1e-4, 7.3e-4, {"unfilled": 2}, "host", id="two hiccups of the host"),
        pytest.param(1e-4, 7.3e-4, {"submit_s": ()}, None, id="no submit time"),
        pytest.param(0.0, 7.3e-4, {}, None, id="unresolved"),
    ],
)
def test_a_cell_is_bound_by_the_slower_of_host_and_device(
    fake_runs: ModuleType, device_s: float, submit_s: float, changes: dict, bound: str | None
) -> None:
    """Only where the two clocks measured different things."""
    summary = summarize(fake_runs.make_run([fake_runs.timing(fake_runs.point(), device_s, submit_s, **changes)]))
    cell = only(summary)
    assert cell.bound == bound
    assert cell.submit_ratio == (None if bound is None else pytest.approx(submit_s / device_s, rel=1e-6))
    assert ("host_bound" in {finding.kind for finding in summary.findings}) == (bound == "host")


def test_a_cell_without_a_latency_has_no_bound(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    bad = fake_runs.ended(at, "incorrect", "differs").model_copy(
        update={"timing": fake_runs.timing(at, 1e-4, 1e-3).timing}
    )
    summary = summarize(fake_runs.make_run([bad]))
    assert only(summary).bound is only(summary).submit_ratio is only(summary).submit_speedup is None
    assert {finding.kind for finding in summary.findings} == {"incorrect"}


def test_the_speed_up_of_submit_time_is_its_own_number(fake_runs: ModuleType) -> None:
    """Device and submit time are compared with the baseline apart, each with its own interval."""
    rows = [
        fake_runs.timing(fake_runs.point("monolithic_eager"), 300e-6, 600e-6),
        fake_runs.timing(fake_runs.point("full"), 200e-6, 20e-6),
    ]
    baseline, full = summarize(fake_runs.make_run(rows)).cells
    assert baseline.submit_speedup and (baseline.submit_speedup.ci_low, baseline.submit_speedup.ci_high) == (1.0, 1.0)
    assert full.submit_s and full.submit_s.median == pytest.approx(20e-6, rel=1e-6)
    assert full.submit_speedup and full.submit_speedup.median == pytest.approx(30.0, rel=1e-6)
    assert full.submit_speedup.ci_low < 30.0 < full.submit_speedup.ci_high
    assert full.speedup and full.speedup.median == pytest.approx(1.5, rel=1e-6)


@pytest.mark.parametrize(
    ("baseline", "emulated"),
    [
        pytest.param({}, True, id="emulated"),
        pytest.param({"cache": "warm"}, False, id="another cache state"),
        pytest.param({"submit_s": ()}, False, id="no submit time"),
        pytest.param({"submit_s": (0.0,) * 50}, False, id="unresolved"),
    ],
)
def test_there_is_no_speed_up_of_submit_times_that_do_not_compare(
    fake_runs: ModuleType, baseline: dict, emulated: bool
) -> None:
    rows = [
        fake_runs.timing(fake_runs.point("monolithic_eager"), 300e-6, emulated=emulated, **baseline),
        fake_runs.timing(fake_runs.point("full"), 200e-6, emulated=emulated),
    ]
    assert summarize(fake_runs.make_run(rows)).cells[1].submit_speedup is None


def test_the_geometric_mean_of_a_mode_is_over_its_token_counts(fake_runs: ModuleType) -> None:
    rows = []
    for tokens, factor in ((1, 2.0), (8, 4.0), (64, 1.0)):
        rows += [
            fake_runs.timing(fake_runs.point("monolithic_eager", tokens), 1e-3),
            fake_runs.timing(fake_runs.point("full", tokens), 1e-3 / factor),
        ]
    (mean,) = summarize(fake_runs.make_run(rows)).means
    assert mean.mode == "full"
    assert mean.speedup.median == pytest.approx(2.0, rel=1e-6)
    assert mean.speedup.n == 3


def test_a_throttled_cell_names_its_reasons(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    rounds = (0x4,) * 49 + (0x40,)
    summary = summarize(fake_runs.make_run([fake_runs.timing(at, 1e-4, clock_event_reasons=rounds)]))
    assert only(summary).throttled and only(summary).power_capped == 0.98
    assert only(summary).clock_events == ("SwPowerCap", "HwThermalSlowdown")
    assert [finding.kind for finding in summary.findings] == ["throttled", "power_capped"]


def test_a_power_cap_is_a_regime_and_no_throttling(fake_runs: ModuleType) -> None:
    summary = summarize(fake_runs.make_run([fake_runs.timing(fake_runs.point(), 1e-4, clock_event_reasons=(4,) * 50)]))
    assert only(summary).clock_events == ("SwPowerCap",) and not only(summary).throttled
    assert only(summary).power_capped == 1.0
    assert [finding.kind for finding in summary.findings] == ["power_capped"]


@pytest.mark.parametrize("stayed", [True, False])
def test_where_void_rounds_were_measured_again_only_what_stayed_down_is_throttled(
    fake_runs: ModuleType, stayed: bool
) -> None:
    """A round in which all arms were held down alike is kept, and is no ground for doubt."""
    facts = {"clock_event_reasons": (0x40,) * 50, "throttled": stayed, "stop": "interval", "dropped_rounds": 7}
    summary = summarize(fake_runs.make_run([fake_runs.timing(fake_runs.point(), 1e-4, **facts)]))
    assert only(summary).throttled is stayed and only(summary).dropped_rounds == 7
    assert [finding.kind for finding in summary.findings] == ["throttled"] * stayed


def test_other_processes_on_the_gpu_are_told(fake_runs: ModuleType) -> None:
    summary = summarize(fake_runs.make_run([fake_runs.timing(fake_runs.point(), 1e-4, other_processes=2)]))
    assert only(summary).other_processes == 2
    assert [finding.kind for finding in summary.findings] == ["shared_gpu"]


def test_a_wide_interval_is_a_finding(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    noisy = fake_runs.samples(1e-4, n=30, spread=0.5)
    summary = summarize(fake_runs.make_run([fake_runs.timing(at, 1e-4, device_s=noisy)]))
    assert [finding.kind for finding in summary.findings] == ["noisy"]


def test_emulation_is_said_of_the_cell_and_of_the_run(fake_runs: ModuleType) -> None:
    run = fake_runs.make_run([fake_runs.timing(fake_runs.point(), 1e-3, emulated=True)], device="cpu")
    summary = summarize(run)
    assert only(summary).emulated and summary.emulated
    assert summary.processor == "AMD EPYC 9554"
    assert [finding.kind for finding in summary.findings] == ["emulated"]


def test_groups_sort_by_tokens_and_mode_and_keep_the_order_of_tiles(fake_runs: ModuleType) -> None:
    """n128 comes before n64 when the study says so."""
    tiles = (fake_runs.tile(block_n=128), fake_runs.tile(block_n=64))
    machine = fake_runs.h100(sizes=(1, 16), modes=("full", "monolithic_eager"), tiles=tiles)
    (group,) = groups(summarize(fake_runs.make_run(fake_runs.sweep(machine))))
    assert [(cell.num_tokens, cell.mode, cell.tiles) for cell in group.cells[:4]] == [
        (1, "monolithic_eager", ""),
        (1, "full", ""),
        (1, "full", "sparse_attn=n128"),
        (1, "full", "sparse_attn=n64"),
    ]


def test_an_empty_run_summarizes_to_nothing(fake_runs: ModuleType) -> None:
    summary = summarize(fake_runs.make_run([]))
    assert summary.cells == summary.means == summary.findings == ()


def test_a_planned_key_that_is_none_is_refused(fake_runs: ModuleType) -> None:
    with pytest.raises(RunFileError, match="expected preset/phase/tN"):
        summarize(fake_runs.make_run([], planned=["timing nonsense"]))


def test_a_boundary_is_part_of_a_cell_and_of_its_mean(fake_runs: ModuleType) -> None:
    """Read from a Point or, where nothing was measured, from the key; each way has a mean of its own."""
    rows = fake_runs.complete(fake_runs.h100(sizes=(1, 64), modes=("monolithic_eager", "breakable")))
    missing = "v3.2-tp8/prefill/t9/ctx0/breakable@logits"
    planned = [*(f"{row.kind} {row.point.key}" for row in rows), f"timing {missing}"]
    summary = summarize(fake_runs.make_run(rows, planned=planned))
    assert [(mean.way, mean.boundary, mean.speedup.n) for mean in summary.means] == [
        ("breakable@proj", "proj", 2),
        ("breakable", "index_quant", 2),
        ("breakable@cache_update", "cache_update", 2),
        ("breakable@logits", "logits", 2),
    ]
    last = summary.cells[-1]
    assert (last.key, last.mode, last.boundary, last.way) == (missing, "breakable", "logits", "breakable@logits")
    (group,) = groups(summary)
    assert [cell.way for cell in group.cells if cell.num_tokens == 64] == [
        "monolithic_eager",
        "breakable@proj",
        "breakable",
        "breakable@cache_update",
        "breakable@logits",
    ]


def test_tiles_are_compared_with_the_default_at_the_same_boundary(fake_runs: ModuleType) -> None:
    choice = fake_runs.tile(block_n=64)
    rows = [
        fake_runs.timing(fake_runs.point("breakable"), 100e-6),
        fake_runs.timing(fake_runs.point("breakable", boundary="logits"), 90e-6),
        fake_runs.timing(fake_runs.point("breakable", boundary="logits", tiles=(choice,)), 45e-6),
    ]
    tiled = summarize(fake_runs.make_run(rows)).cells[-1]
    assert tiled.tiles_speedup and tiled.tiles_speedup.median == pytest.approx(2.0, rel=1e-6)


def test_counts_and_gate_belong_to_the_cell(fake_runs: ModuleType) -> None:
    """Also where the counts alone were measured."""
    at = fake_runs.point()
    both = only(summarize(fake_runs.make_run([fake_runs.captured(fake_runs.timing(at, 1e-4)), fake_runs.counts(at)])))
    assert both.counts and both.gate and both.coverage == pytest.approx(36 / 56)
    alone = only(summarize(fake_runs.make_run([fake_runs.counts(at)])))
    assert alone.outcome == "ok" and alone.counts and not alone.timed
