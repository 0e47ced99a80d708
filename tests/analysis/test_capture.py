"""Break-even, breakable beside piecewise, and the price of each boundary."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.groups import groups
from mlaprof.analysis.summary import summarize


def cells_of(fake_runs: ModuleType, rows: list[Any]) -> dict[str, Cell]:
    return {cell.way: cell for cell in summarize(fake_runs.make_run(rows)).cells if not cell.tiles}


def eager_and(fake_runs: ModuleType, mode: str, device_s: float, submit_s: float, **graph: object) -> list[Any]:
    """split_eager with a step of 400 us in service, monolithic_eager with 300, and `mode`."""
    return [
        fake_runs.timing(fake_runs.point("monolithic_eager"), 100e-6, 300e-6),
        fake_runs.timing(fake_runs.point("split_eager"), 100e-6, 400e-6),
        fake_runs.captured(fake_runs.timing(fake_runs.point(mode), device_s, submit_s), **graph),
    ]


@pytest.mark.parametrize(
    ("mode", "over", "replays"),
    [
        pytest.param("full", "split_eager", 1000, id="full is the split form"),
        pytest.param("breakable", "split_eager", 1000, id="breakable"),
        pytest.param("split_piecewise", "split_eager", 1000, id="split"),
        pytest.param("monolithic_piecewise", "monolithic_eager", 500, id="monolithic"),
    ],
)
def test_capture_is_paid_by_what_a_replay_saves_in_service(
    fake_runs: ModuleType, mode: str, over: str, replays: float
) -> None:
    """0.1 s of capture, instantiation and first replay; tracing and warm-ups are left out."""
    step = {"split_eager": 300e-6, "monolithic_eager": 100e-6}[over]
    cell = cells_of(fake_runs, eager_and(fake_runs, mode, 90e-6, step))[mode]
    assert cell.break_even and cell.break_even.over == over
    assert cell.break_even.replays == pytest.approx(replays, rel=1e-5)


def test_without_the_split_form_in_the_run_the_monolithic_one_is_named(fake_runs: ModuleType) -> None:
    rows = [row for row in eager_and(fake_runs, "full", 90e-6, 200e-6) if row.point.mode != "split_eager"]
    full = cells_of(fake_runs, rows)["full"]
    assert full.break_even and full.break_even.over == "monolithic_eager"
    assert full.break_even.replays == pytest.approx(1000, rel=1e-5)


@pytest.mark.parametrize(
    ("device_s", "submit_s", "graph"),
    [
        pytest.param(500e-6, 20e-6, {}, id="slower"),
        pytest.param(400e-6, 20e-6, {}, id="not clearly faster"),
        pytest.param(90e-6, 20e-6, {"instantiate_s": None, "first_replay_s": None}, id="cost not told apart"),
        pytest.param(90e-6, 20e-6, {"capture_s": 0.0, "instantiate_s": 0.0, "first_replay_s": 0.0}, id="no capture"),
    ],
)
def test_there_is_no_break_even_to_tell(
    fake_runs: ModuleType, device_s: float, submit_s: float, graph: dict[str, Any]
) -> None:
    cells = cells_of(fake_runs, eager_and(fake_runs, "full", device_s, submit_s, **graph))
    assert cells["full"].break_even is cells["split_eager"].break_even is None


def test_an_emulated_capture_has_no_break_even(fake_runs: ModuleType) -> None:
    rows = fake_runs.complete(fake_runs.laptop(sizes=(8,)))
    assert not any(cell.break_even for cell in summarize(fake_runs.make_run(rows, device="cpu")).cells)


def pair(fake_runs: ModuleType, **breakable: Any) -> Summary:
    rows = [
        fake_runs.timing(fake_runs.point("split_piecewise"), 110e-6, 180e-6),
        fake_runs.timing(fake_runs.point("breakable"), 100e-6, 90e-6, **breakable),
        fake_runs.timing(fake_runs.point("breakable", boundary="logits"), 90e-6, 80e-6),
    ]
    return summarize(fake_runs.make_run(rows))


def test_breakable_is_compared_with_split_piecewise_at_its_own_boundary(fake_runs: ModuleType) -> None:
    """Above 1 breakable is faster; breakable@logits has no rival in this run."""
    (found,) = pair(fake_runs).piecewise_vs_breakable
    assert (found.num_tokens, found.boundary, found.tiles) == (64, "index_quant", "")
    assert found.device and found.device.median == pytest.approx(1.1, rel=1e-6)
    assert found.device.ci_low < 1.1 < found.device.ci_high
    assert found.submit and found.submit.median == pytest.approx(2.0, rel=1e-6)


def test_what_does_not_compare_is_not_beside_each_other(fake_runs: ModuleType) -> None:
    assert pair(fake_runs, cache="warm").piecewise_vs_breakable == ()


def test_an_emulated_pair_has_no_submit_time_apart(fake_runs: ModuleType) -> None:
    rows = fake_runs.complete(fake_runs.laptop(sizes=(8,)), ("index_quant", "logits"))
    summary = summarize(fake_runs.make_run(rows, device="cpu"))
    assert [each.submit for each in summary.piecewise_vs_breakable] == [None, None]
    assert all(each.device and each.submit is each.submit_change_s is None for each in summary.boundary_prices)


MOVES = {
    ("proj", "index_quant", "cache_update", "logits"): [
        ("index_quant", "proj"),
        ("index_quant", "cache_update"),
        ("index_quant", "logits"),
        ("cache_update", "logits"),
    ],
    ("proj", "cache_update", "logits"): [("proj", "cache_update"), ("cache_update", "logits")],
    ("index_quant", "logits"): [("index_quant", "logits")],
    ("index_quant",): [],
    ("logits",): [],
}


@pytest.mark.parametrize("boundaries", MOVES, ids="+".join)
def test_moves_go_from_the_boundary_of_the_pr_and_along_the_chain(
    fake_runs: ModuleType, boundaries: tuple[str, ...]
) -> None:
    rows = fake_runs.complete(fake_runs.h100(sizes=(64,), modes=("breakable", "full")), boundaries)
    prices = summarize(fake_runs.make_run(rows)).boundary_prices
    assert [(each.start, each.end) for each in prices] == MOVES[boundaries]
    assert {each.mode for each in prices} <= {"breakable"}


def test_a_move_is_priced_in_time_launches_nodes_and_memory(fake_runs: ModuleType) -> None:
    """Planted: 12 us of device time, 36 us of submit time and 16 kernels go into the graphs."""
    machine = fake_runs.h100(sizes=(64,), modes=("breakable",))
    (price,) = summarize(fake_runs.make_run(fake_runs.complete(machine, ("index_quant", "logits")))).boundary_prices
    before, submit = machine.device_s("breakable", 64), machine.submit_s("breakable", 64)
    assert price.device and price.device.median == pytest.approx(before / (before - 12e-6), rel=1e-5)
    assert price.device_change_s == pytest.approx(-12e-6, rel=1e-4)
    assert price.submit and price.submit.median == pytest.approx(submit / (submit - 36e-6), rel=1e-5)
    assert price.submit_change_s == pytest.approx(-36e-6, rel=1e-4)
    assert (price.eager_kernels, price.graph_nodes, price.pool_bytes) == (-16, 16, 2**20)


def test_a_part_that_one_side_lacks_has_no_price(fake_runs: ModuleType) -> None:
    rows = [
        fake_runs.timing(fake_runs.point("breakable"), 1e-4),
        fake_runs.timing(fake_runs.point("breakable", boundary="logits"), 9e-5),
        fake_runs.counts(fake_runs.point("breakable")),
        fake_runs.memory(fake_runs.point("breakable", boundary="logits"), 1.0),
    ]
    (price,) = summarize(fake_runs.make_run(rows)).boundary_prices
    assert price.device and price.eager_kernels is price.pool_bytes is None


def test_a_boundary_that_cannot_be_captured_carries_its_reason(fake_runs: ModuleType) -> None:
    """And a step that no boundary can capture is no matter of boundaries."""
    skipped = {"status": "skipped", "reason": "aten::nonzero", "stage": "plan"}
    rows = [
        fake_runs.timing(fake_runs.point("breakable"), 1e-4),
        fake_runs.ended(fake_runs.point("breakable", boundary="logits"), **skipped),
        fake_runs.ended(fake_runs.point("breakable", 9), **skipped),
        fake_runs.ended(fake_runs.point("breakable", 9, boundary="logits"), **skipped),
    ]
    (price,) = summarize(fake_runs.make_run(rows)).boundary_prices
    assert (price.num_tokens, price.end) == (64, "logits")
    assert price.reason == "breakable@logits skipped: aten::nonzero"
    assert price.device is price.device_change_s is price.eager_kernels is None


def test_a_group_holds_its_own_prices_by_tokens(fake_runs: ModuleType) -> None:
    machine = fake_runs.h100(sizes=(1, 64), modes=("split_piecewise", "breakable"))
    (group,) = groups(summarize(fake_runs.make_run(fake_runs.complete(machine, ("index_quant", "logits")))))
    assert [each.num_tokens for each in group.boundary_prices] == [1, 1, 64, 64]
    assert [each.num_tokens for each in group.piecewise_vs_breakable] == [1, 1, 64, 64]
    assert list(group.ledgers) == [
        "split_piecewise",
        "split_piecewise@logits",
        "breakable",
        "breakable@logits",
    ]
