"""Where the captured pieces of a step begin and end: what `mlaprof graph` prints, as tables and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlaprof.facts import DispatchTax, SegmentFacts, StepCounts
from mlaprof.records import Measurement, Point
from mlaprof.report.lines import keys_by_reason, print_wrapped, styled
from mlaprof.report.sentences import placed
from mlaprof.report.style import STATUS
from mlaprof.report.units import seconds, time_unit


def print_partitions(measurements: Sequence[Measurement], console: Console) -> None:
    """The pieces of each way of running a step with what the step asks of the driver, then the dispatch tax.

    Sizes with the same pieces and counts share a table; what has no counts is a line with its reason.
    """
    tokens: dict[tuple[str, StepCounts, bool], list[int]] = {}
    for measurement in measurements:
        if measurement.counts:
            title = _title(measurement.point)
            sizes = tokens.setdefault((title, measurement.counts, measurement.emulated), [])
            sizes.append(measurement.point.num_tokens)
    for (title, counts, emulated), sizes in tokens.items():
        stamp = "EMULATED " if emulated else ""
        _print_partition(f"{stamp}{title}, tokens {' '.join(map(str, sizes))}", counts, console)
    if any(emulated for _, _, emulated in tokens):
        print_wrapped(
            "\nCapture was emulated on the CPU: the pieces are those of a GPU; an operator counts as a kernel, a value "
            "read by the host as a synchronisation and a copy.",
            console,
            "bright_black",
        )
    for tax, emulated in dict.fromkeys((each.dispatch, each.emulated) for each in measurements if each.dispatch):
        _print_dispatch(tax, emulated, console)
    _print_without(measurements, console)


def _title(point: Point) -> str:
    way = "/".join(part for part in (point.way, point.tiles_label) if part)
    return f"{way} | {point.preset} {placed(point.phase, point.context_len)}"


def _print_partition(title: str, counts: StepCounts, console: Console) -> None:
    print_wrapped(f"\n{title}", console, "bold")
    if counts.segments:
        table = _table("segment", "kind", "kernels", "operators", right=("kernels",))
        first: dict[tuple[object, ...], str] = {}
        for segment in counts.segments:
            alike = (segment.kind, segment.kernels, segment.ops)
            again = first.setdefault(alike, segment.name) if len(segment.ops) > 1 else segment.name
            ops = condensed(segment.ops) if again == segment.name else f"as {again}"
            table.add_row(segment.name, segment.kind, "" if segment.kernels is None else str(segment.kernels), ops)
        console.print(table)
    for line in _facts(counts):
        print_wrapped(line, console)
    if counts.stop:
        print_wrapped(
            f"warning: cutting stopped at {counts.stop}: it and everything after it stays eager. "
            "Move it behind the last attention, or out of the layer.",
            console,
            "yellow",
        )
    if not counts.complete:
        print_wrapped(
            f"warning: counts incomplete: {_gap(counts)}. Read them as lower bounds.",
            console,
            "yellow",
        )


def condensed(ops: Sequence[str]) -> str:
    """`aten::mul x3, aten::add`: each operator once, in the order of its first call."""
    return ", ".join(f"{op} x{count}" if count > 1 else op for op, count in Counter(ops).items())


def _gap(counts: StepCounts) -> str:
    due = counts.nodes.kernel + counts.kernel_launches
    if counts.kernels == due:
        return "the profiled steps differ"
    return f"{counts.kernels} kernels seen, but {counts.nodes.kernel} in graphs and {counts.kernel_launches} launched"


def _facts(counts: StepCounts) -> tuple[str, str]:
    """What stands below the table: coverage, then launches, waits, copies and allocations of a step."""
    kernels = counts.nodes.kernel + counts.kernel_launches
    share = "" if counts.coverage is None else f" ({counts.coverage:.0%})"
    asked = (
        _launches(counts),
        _number(counts.syncs, "synchronisation"),
        f"{counts.d2h_copies} D2H and {counts.h2d_copies} H2D copies",
        f"{_number(counts.allocations, 'allocation')}, {counts.driver_allocations} from the driver",
    )
    return (
        f"{_segments(counts.segments)}; {counts.nodes.kernel} of {kernels} kernels captured{share}",
        f"a step: {', '.join(asked)}",
    )


def _launches(counts: StepCounts) -> str:
    """`3 graph launches of 62 nodes (60 kernel, 2 memcpy), 20 kernel launches`."""
    eager = _number(counts.kernel_launches, "kernel launch", "kernel launches")
    if not counts.graph_launches:
        return eager
    nodes = ", ".join(f"{count} {kind}" for kind, count in counts.nodes.model_dump().items() if count)
    graphs = _number(counts.graph_launches, "graph launch", "graph launches")
    return f"{graphs} of {_number(counts.nodes.total, 'node')} ({nodes}), {eager}"


def _segments(segments: Sequence[SegmentFacts]) -> str:
    if not segments:
        return "segments unknown"
    kinds = Counter(segment.kind for segment in segments)
    free = f", {kinds['free']} that launch nothing" if kinds["free"] else ""
    return f"{_number(kinds['captured'], 'captured segment')}, {kinds['eager']} eager{free}"


def _number(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def _print_dispatch(tax: DispatchTax, emulated: bool, console: Console) -> None:
    where = " with CPU tensors" if emulated else ""
    print_wrapped(
        f"\nWhat calling an operator that does nothing costs the host{where}, median of {tax.calls} calls",
        console,
        "bold",
    )
    ways = {
        "bare Python function": tax.bare_s,
        "torch.library define and impl, as here": tax.define_s,
        "torch.library.custom_op, as TensorRT-LLM": tax.custom_op_s,
    }
    unit = time_unit(ways.values())
    steps = _number(tax.ops_per_step, "operator")
    columns = (f"{unit.name} a call", "above bare", f"a step of {steps}")
    table = _table("called through", *columns, right=columns)
    for name, call_s in ways.items():
        above = call_s - tax.bare_s
        step = "" if name.startswith("bare") else seconds(above * tax.ops_per_step)
        table.add_row(name, unit.text(call_s), unit.text(above) if step else "", step)
    console.print(table)


def _print_without(measurements: Sequence[Measurement], console: Console) -> None:
    bare = [each for each in measurements if not each.counts and not each.dispatch]
    for status in dict.fromkeys(each.outcome.status for each in bare):
        pairs = ((each.outcome.cause, each.point.key) for each in bare if each.outcome.status == status)
        for reason, keys in keys_by_reason(pairs).items():
            line = styled(STATUS[status], console)
            console.print(line.append_text(Text(f" {reason or 'nothing was counted'} ({keys})", style="default")))


def partitions_json(measurements: Sequence[Measurement]) -> str:
    """One JSON object: `partitions`, an object a Point in the order given, and `dispatch_tax`. Seconds."""
    return json.dumps(
        {
            "partitions": [_partition(each) for each in measurements if each.kind != "dispatch"],
            "dispatch_tax": [_dispatch(each) for each in measurements if each.kind == "dispatch"],
        },
        indent=2,
        allow_nan=False,
    )


def _partition(measurement: Measurement) -> dict[str, Any]:
    counts = measurement.counts
    kinds = Counter(segment.kind for segment in counts.segments) if counts else Counter[str]()
    return {
        **_place(measurement),
        "captured_segments": kinds["captured"] if counts else None,
        "eager_segments": kinds["eager"] if counts else None,
        "coverage": counts.coverage if counts else None,
        "syncs": counts.syncs if counts else None,
        "counts": counts.model_dump(mode="json") if counts else None,
    }


def _dispatch(measurement: Measurement) -> dict[str, Any]:
    tax = measurement.dispatch
    return {**_place(measurement), "tax": tax.model_dump(mode="json") if tax else None}


def _place(measurement: Measurement) -> dict[str, Any]:
    point = measurement.point
    return {
        "key": point.key,
        "mode": point.mode,
        "boundary": point.boundary,
        "way": point.way,
        "num_tokens": point.num_tokens,
        "outcome": measurement.outcome.status,
        "reason": measurement.outcome.reason,
        "emulated": measurement.emulated,
    }


def _table(*columns: str, right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        last = number == len(columns) - 1
        table.add_column(name, justify="right" if name in right else "left", overflow="fold", no_wrap=not last)
    return table
