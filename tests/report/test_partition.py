"""The pieces of a step and the dispatch tax, in the terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from mlaprof.facts import DispatchTax, NodeCounts, SegmentFacts, StepCounts
from mlaprof.records import Measurement, Outcome, Point
from mlaprof.report.partition import condensed, partitions_json, print_partitions

Printed = Callable[..., Any]

OP_1, OP_2 = "mlaprof::mla_dsa_proj", "mlaprof::mla_dsa_attn_inplace"
MIDDLE = ("aten::mm", "aten::mul.Tensor", "aten::mul.Tensor", OP_1)
PIECES = (  # of three layers
    SegmentFacts(name="piece_0", kind="captured", ops=("aten::mul.Tensor", OP_1), kernels=17),
    SegmentFacts(name="piece_1", kind="eager", ops=(OP_2,)),
    SegmentFacts(name="piece_2", kind="captured", ops=MIDDLE, kernels=20),
    SegmentFacts(name="piece_3", kind="eager", ops=(OP_2,)),
    SegmentFacts(name="piece_4", kind="captured", ops=MIDDLE, kernels=20),
    SegmentFacts(name="piece_5", kind="eager", ops=(OP_2,)),
    SegmentFacts(name="piece_6", kind="captured", ops=("aten::mm",), kernels=3),
)


def made(at: Point, kind: str, *, emulated: bool = False, **facts: object) -> Measurement:
    row = {"point": at, "kind": kind, "outcome": Outcome(status="ok"), "emulated": emulated}
    return Measurement.model_validate({**row, "recorded_at": "2026-01-02T03:04:05Z", **facts})


def counted(at: Point, *, emulated: bool = False, **changes: object) -> Measurement:
    facts = {
        "steps": 5,
        "kernels": 80,
        "kernel_launches": 20,
        "graph_launches": 4,
        "nodes": NodeCounts(kernel=60, memcpy=2),
        "complete": True,
        "allocations": 1,
        "segments": PIECES,
    }
    return made(at, "counts", emulated=emulated, counts=StepCounts.model_validate({**facts, **changes}))


def told(rows: list[Measurement], printed: Printed, width: int = 160, **options: Any) -> list[str]:
    console, text = printed(width, **options)
    print_partitions(rows, console)
    return [" ".join(line.split()) for line in text().splitlines() if line.strip()]


def test_the_segments_stand_in_order_with_what_they_hold(fake_runs: ModuleType, printed: Printed) -> None:
    """Three layers give four captured segments; a segment like an earlier one names it."""
    assert told([counted(fake_runs.point("split_piecewise", 64))], printed) == [
        "split_piecewise | v3.2-tp8 prefill, context 0, tokens 64",
        "segment kind kernels operators",
        f"piece_0 captured 17 aten::mul.Tensor, {OP_1}",
        f"piece_1 eager {OP_2}",
        f"piece_2 captured 20 aten::mm, aten::mul.Tensor x2, {OP_1}",
        f"piece_3 eager {OP_2}",
        "piece_4 captured 20 as piece_2",
        f"piece_5 eager {OP_2}",
        "piece_6 captured 3 aten::mm",
        "4 captured segments, 3 eager; 60 of 80 kernels captured (75%)",
        "a step: 4 graph launches of 62 nodes (60 kernel, 2 memcpy), 20 kernel launches, 0 synchronisations, "
        "0 D2H and 0 H2D copies, 1 allocation, 0 from the driver",
    ]


def test_a_segment_with_other_kernels_is_not_called_alike(fake_runs: ModuleType, printed: Printed) -> None:
    pieces = (PIECES[2], PIECES[4].model_copy(update={"kernels": 21}))
    lines = told([counted(fake_runs.point("breakable"), segments=pieces)], printed)
    assert not any(" as " in line for line in lines)


def test_sizes_with_the_same_pieces_share_a_table_and_others_do_not(fake_runs: ModuleType, printed: Printed) -> None:
    def of(tokens: int, boundary: str, launches: int) -> Measurement:
        at = fake_runs.point("split_piecewise", tokens, boundary=boundary)
        return counted(at, kernel_launches=launches, kernels=60 + launches)

    rows = [of(64, "index_quant", 20), of(8, "index_quant", 20), of(1, "index_quant", 18), of(64, "logits", 8)]
    titles = [line for line in told(rows, printed) if " | " in line]
    place = "v3.2-tp8 prefill, context 0, tokens"
    assert titles == [
        f"split_piecewise | {place} 64 8",
        f"split_piecewise | {place} 1",
        f"split_piecewise@logits | {place} 64",
    ]


def test_a_stop_node_and_incomplete_counts_are_warned_of(fake_runs: ModuleType, printed: Printed) -> None:
    row = counted(fake_runs.point("split_piecewise"), stop="aten::cumsum", complete=False, kernels=79)
    warnings = [line for line in told([row], printed, 400) if line.startswith("warning")]
    assert "stopped at aten::cumsum: it and everything after it stays eager" in warnings[0]
    assert "79 kernels seen, but 60 in graphs and 20 launched" in warnings[1] and "lower bounds" in warnings[1]
    agreeing = counted(fake_runs.point("split_piecewise"), complete=False)
    assert any("the profiled steps differ" in line for line in told([agreeing], printed, 400))


def test_an_eager_step_without_kernels_has_no_coverage(fake_runs: ModuleType, printed: Printed) -> None:
    row = counted(
        fake_runs.point("monolithic_eager"),
        graph_launches=0,
        kernel_launches=0,
        kernels=0,
        nodes=NodeCounts(),
        segments=(SegmentFacts(name="step", kind="eager", ops=()), SegmentFacts(name="view", kind="free", ops=())),
    )
    lines = told([row], printed)
    assert "0 captured segments, 1 eager, 1 that launch nothing; 0 of 0 kernels captured" in lines
    assert lines[-1].startswith("a step: 0 kernel launches, 0 synchronisations")
    assert "segments unknown" in " ".join(told([counted(fake_runs.point("full"), segments=())], printed))
    assert json.loads(partitions_json([row]))["partitions"][0]["coverage"] is None


def test_emulated_pieces_say_so_once(fake_runs: ModuleType, printed: Printed) -> None:
    rows = [counted(fake_runs.point("full", tokens), emulated=True, kernel_launches=tokens) for tokens in (1, 8)]
    lines = told(rows, printed, 400)
    assert sum(line.startswith("EMULATED full |") for line in lines) == 2
    assert sum("emulated on the CPU" in line for line in lines) == 1


def test_what_was_not_counted_is_told_with_its_reason(fake_runs: ModuleType, printed: Printed) -> None:
    at = fake_runs.point("full", 64)
    rows = [
        fake_runs.ended(at, "skipped", "aten::item forbids [a] capture", kind="counts"),
        fake_runs.ended(at, "failed", "", kind="dispatch"),
    ]
    assert told(rows, printed) == [
        f"– SKIPPED aten::item forbids [a] capture ({at.key})",  # noqa: RUF001
        f"✗ FAILED nothing was counted ({at.key})",
    ]
    found = json.loads(partitions_json(rows))
    assert found["partitions"][0]["reason"] == "aten::item forbids [a] capture"
    assert found["partitions"][0]["counts"] is None and found["dispatch_tax"][0]["tax"] is None


def test_the_dispatch_tax_is_told_for_a_call_and_for_a_step(fake_runs: ModuleType, printed: Printed) -> None:
    tax = DispatchTax(bare_s=0.5e-6, define_s=2.5e-6, custom_op_s=7.5e-6, calls=2000, ops_per_step=6)
    row = made(fake_runs.point("split_eager"), "dispatch", dispatch=tax)
    assert told([row, row], printed) == [
        "What calling an operator that does nothing costs the host, median of 2000 calls",
        "called through us a call above bare a step of 6 operators",
        "bare Python function 0.500",
        "torch.library define and impl, as here 2.500 2.000 12.00 us",
        "torch.library.custom_op, as TensorRT-LLM 7.500 7.000 42.00 us",
    ]


def test_json_tells_every_point_with_all_its_counts(fake_runs: ModuleType) -> None:
    at = fake_runs.point("split_piecewise", 64, boundary="cache_update")
    found = json.loads(partitions_json([counted(at, stream_syncs=1, event_syncs=2)]))
    (row,) = found["partitions"]
    assert (row["way"], row["mode"], row["boundary"]) == (
        "split_piecewise@cache_update",
        "split_piecewise",
        "cache_update",
    )
    assert (row["captured_segments"], row["eager_segments"], row["coverage"], row["syncs"]) == (4, 3, 0.75, 3)
    assert [segment["name"] for segment in row["counts"]["segments"]] == [piece.name for piece in PIECES]
    assert found["dispatch_tax"] == []


@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_or_ascii_terminal_keeps_every_operator(fake_runs: ModuleType, printed: Printed, width: int) -> None:
    tax = DispatchTax(bare_s=0.5e-6, define_s=2.5e-6, custom_op_s=7.5e-6, calls=2000, ops_per_step=6)
    rows = [counted(fake_runs.point()), made(fake_runs.point(), "dispatch", dispatch=tax)]
    console, text = printed(width, encoding="ascii")
    print_partitions(rows, console)
    assert text().isascii() and "..." not in text()
    assert max(map(len, text().splitlines())) <= width
    assert OP_2 in "".join(text().split())


def test_repeated_operators_are_condensed_in_the_order_of_their_first_call() -> None:
    assert condensed(("b", "a", "b", "b")) == "b x3, a"
    assert condensed(()) == ""
