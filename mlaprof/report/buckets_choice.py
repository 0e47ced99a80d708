"""What to capture: the list in the engine's keys, what it is worth beside other lists, and JSON of all of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from mlaprof.analysis.cells import Summary
from mlaprof.report.columns import Column, print_columns
from mlaprof.report.lines import print_line, print_wrapped
from mlaprof.report.units import Unit, percent, seconds, significant, size, time_unit
from mlaprof.sizing.check import Checked
from mlaprof.sizing.choose import Baseline, Choice
from mlaprof.sizing.engines import Engine, config_text
from mlaprof.sizing.score import Expected

SHOWN_SIZES = 12  # of many, in the table of buckets


def print_choice(choice: Choice, summary: Summary, engines: Sequence[Engine], console: Console) -> None:
    """The list, where its steps go, other lists on the same trace, and lines for an engine's configuration."""
    chosen, costs = choice.chosen, choice.costs
    print_wrapped(f"\n{headline(choice, summary)}", console, "bold")
    for line in conditions(choice):
        print_wrapped(line, console, "bright_black")
    print_wrapped("\nOther lists on this trace", console, "bold")
    print_columns(_list_columns(choice), console, instead=", or use --format json")
    print_wrapped(
        "all predicted; 'best at its memory' is the best list that costs no more memory than the one in the row",
        console,
        "bright_black",
    )
    if chosen.sizes:
        print_wrapped("\nWhere the steps go", console, "bold")
        print_columns(_bucket_columns(choice), console, instead=", or use --format json")
        print_line(f"capture {' '.join(map(str, chosen.sizes))}", console)
        print_wrapped(fallback_sentence(choice), console)
        for engine in engines:
            print_wrapped(f"\n{engine}", console, "bold")
            text = config_text(engine, chosen.sizes, breakable=costs.way.startswith("breakable"))
            console.print(Text(text), soft_wrap=True)  # not wrapped, its indents kept: it is to be pasted
    else:
        print_wrapped("capture nothing: no list is expected to be faster than running eagerly", console)


def headline(choice: Choice, summary: Summary) -> str:
    """`EMULATED 12 sizes up to 2048 tokens: 1.234 ms a step, predicted ...`."""
    chosen, stamp = choice.chosen, "EMULATED " if choice.costs.emulated else ""
    sizes = f"{len(chosen.sizes)} size{'s' * (len(chosen.sizes) != 1)} up to {chosen.fallback} tokens"
    what = sizes if chosen.sizes else "nothing captured"
    return f"{stamp}{choice.steps.name}: {what}, {_step(chosen)} a step predicted | {summary.processor}"


def conditions(choice: Choice) -> list[str]:
    """What the numbers rest on, a sentence a line."""
    steps, costs = choice.steps, choice.costs
    said = [
        f"{costs.way} beside {costs.eager_way}, {costs.clock_name}, "
        + (f"{costs.layers} layers scaled from {costs.measured_layers}" if costs.layers != costs.measured_layers
           else f"{costs.layers} layer{'s' * (costs.layers != 1)}"),
        f"{steps.count} steps, {steps.tokens.size} token counts from {steps.tokens[0]} to {steps.largest}"
        + (f"; {steps.decode_only} steps of generations alone left out" if steps.decode_only else "")
        + (f"; from requests by {steps.model}" if steps.model else ""),
        f"{choice.candidates} candidate sizes"
        + ("" if choice.grain == 1 else f", counts of the trace in multiples of {choice.grain}"),
    ]  # fmt: skip
    if costs.padded_cells:
        said.append(f"a padded step shows {percent(costs.padding_share)} of its growth, by {costs.padded_cells} cells")
    else:
        said.append("a padded step counts as one of the padded size, an upper bound: the run measured none")
    spread = costs.capture.spread_bytes() if costs.capture else None
    if spread:
        said.append(
            f"memory: hold {costs.capture.hold}, pool of the largest size scaled in tokens; a further size added "
            f"{size(spread[0])} to {size(spread[1])}, its mean is taken"
            if costs.capture
            else ""
        )
    elif costs.capture is None or costs.capture.bytes is None:
        said.append("memory unknown: the run has no ledger; sweep with --set measure.memory=true")
    return said


def fallback_sentence(choice: Choice) -> str:
    """Above which size steps run eagerly, and how many do."""
    chosen = choice.chosen
    above = f"{percent(chosen.eager_share)} of the steps" if chosen.eager_share else "none of the steps"
    return f"above {chosen.fallback} tokens a step runs eagerly: {above}"


def print_check(checked: Checked, console: Console) -> None:
    """Predicted beside measured, a row a token count that was run under the chosen list."""
    rows = checked.rows
    unit = time_unit([each.measured_s for each in rows] or [1.0])
    print_wrapped("\nMeasured under the chosen list", console, "bold")
    print_columns(
        [
            Column("tokens", 0, [str(each.num_tokens) for each in rows]),
            Column("padded to", 0, [str(each.padded) if each.padded else "eager" for each in rows]),
            Column("share of steps", 1, [percent(each.share) for each in rows]),
            Column(f"predicted {unit.name}", 0, [unit.text(each.predicted_s) for each in rows]),
            Column(f"measured {unit.name}", 0, [unit.text(each.measured_s) for each in rows]),
            Column("off", 0, [_off(each.predicted_s / each.measured_s) for each in rows]),
        ],
        console,
    )
    for sentence in check_sentences(checked):
        print_wrapped(sentence, console)


def check_sentences(checked: Checked) -> list[str]:
    """How far the prediction was off: the step over the trace, memory, seconds of capture."""
    emulated = " (emulated)" if checked.emulated else ""
    said = [
        f"expected step{emulated}: predicted {seconds(checked.predicted_s)}, measured {seconds(checked.measured_s)}, "
        f"off by {_off(checked.predicted_s / checked.measured_s)}"
    ]
    for name, predicted, measured, text in (
        ("graph memory", checked.predicted_bytes, checked.measured_bytes, size),
        ("capture time", checked.predicted_capture_s, checked.measured_capture_s, seconds),
    ):
        if predicted is not None and measured:
            said.append(
                f"{name}: predicted {text(predicted)}, measured {text(measured)}, off by {_off(predicted / measured)}"
            )
    if checked.failed:
        said.append(f"not measured: {', '.join(checked.failed)}")
    return said


def choice_json(choice: Choice, summary: Summary, engines: Sequence[Engine], checked: Checked | None = None) -> str:
    """Everything as JSON: seconds, bytes, tokens. `measured` is null without --measure."""
    costs, steps = choice.costs, choice.steps
    found: dict[str, Any] = {
        "run": summary.run_id,
        "processor": summary.processor,
        "emulated": costs.emulated,
        "way": costs.way,
        "eager_way": costs.eager_way,
        "clock": costs.clock,
        "clock_name": costs.clock_name,
        "layers": costs.layers,
        "measured_layers": costs.measured_layers,
        "padding_share": costs.padding_share,
        "padded_cells": costs.padded_cells,
        "trace": {
            "name": steps.name,
            "steps": steps.count,
            "decode_only_steps": steps.decode_only,
            "token_counts": int(steps.tokens.size),
            "smallest": int(steps.tokens[0]),
            "largest": steps.largest,
            "model": steps.model or None,
        },
        "limits": asdict(choice.limits),
        "candidates": choice.candidates,
        "candidate_grain": choice.grain,
        **_list_object(choice.chosen),
        "eager_step_s": choice.eager.step_s,
        "baselines": {each.name: _baseline_object(each) for each in choice.baselines},
        "front": [
            {"memory_bytes": each.memory_bytes, "expected_step_s": each.step_s, "num_sizes": len(each.sizes)}
            for each in choice.front
        ],
        "config": {engine: config_text(engine, choice.chosen.sizes, breakable=costs.way.startswith("breakable"))
                   for engine in engines},
        "measured": check_object(checked) if checked else None,
    }  # fmt: skip
    return json.dumps(found, indent=1)


def check_object(checked: Checked) -> dict[str, Any]:
    return asdict(checked)


def _list_object(found: Expected) -> dict[str, Any]:
    return {
        "sizes": list(found.sizes),
        "expected_step_s": found.step_s,
        "expected_step_low_s": found.low_s,
        "expected_step_high_s": found.high_s,
        "memory_bytes": found.memory_bytes,
        "capture_s": found.capture_s,
        "fallback": found.fallback,
        "eager_share": found.eager_share,
        "mean_padding_tokens": found.padded_tokens,
    }


def _baseline_object(baseline: Baseline) -> dict[str, Any]:
    equal = baseline.at_equal_memory
    return {**_list_object(baseline.found), "at_equal_memory": _list_object(equal) if equal else None}


def _list_columns(choice: Choice) -> list[Column]:
    rows = [("chosen", choice.chosen, None), ("nothing captured", choice.eager, None)]
    rows += [(each.name, each.found, each.at_equal_memory) for each in choice.baselines]  # type: ignore[misc]
    unit = time_unit([found.step_s for _, found, _ in rows])
    return [
        Column("list", 0, [name for name, _, _ in rows], right=False),
        Column("sizes", 0, [str(len(found.sizes)) for _, found, _ in rows]),
        Column("largest", 1, [str(found.fallback) for _, found, _ in rows]),
        Column(f"step {unit.name}", 0, [unit.text(found.step_s) for _, found, _ in rows]),
        Column("interval", 2, [_interval(found, unit) for _, found, _ in rows]),
        Column("over chosen", 0, [f"{found.step_s / choice.chosen.step_s:.3f}x" for _, found, _ in rows]),
        Column("memory", 0, ["" if f.memory_bytes is None else size(f.memory_bytes) for _, f, _ in rows]),
        Column("capture", 1, [seconds(f.capture_s) if f.capture_s else "" for _, f, _ in rows]),
        Column("eager steps", 3, [percent(found.eager_share) for _, found, _ in rows]),
        Column("best at its memory", 0, [_equal(found, equal, unit) for _, found, equal in rows]),
    ]


def _equal(found: Expected, equal: Expected | None, unit: Unit) -> str:
    return f"{unit.text(equal.step_s)} ({found.step_s / equal.step_s:.3f}x)" if equal else ""


def _bucket_columns(choice: Choice) -> list[Column]:
    """A row a size, or of many sizes the ones with the most steps: what is run at it, and what its padding costs."""
    steps, costs, rows = choice.steps, choice.costs, []
    for least, most in zip((0, *choice.chosen.sizes), choice.chosen.sizes, strict=False):
        inside = (steps.tokens > least) & (steps.tokens <= most)
        share = float(steps.weights[inside].sum())
        own = float(steps.weights[inside] @ steps.tokens[inside]) / share if share else 0.0
        waste = 0.0
        if share:
            here = costs.graph.at(steps.tokens[inside])
            there = costs.graph.at(steps.tokens[inside] * 0 + most)
            waste = costs.padding_share * float(steps.weights[inside] @ (there - here)) / share
        rows.append((most, share, own, waste))
    shown = sorted(sorted(rows, key=lambda row: -row[1])[:SHOWN_SIZES])
    unit = time_unit([row[3] for row in shown])
    more = [""] * len(shown)
    if len(shown) < len(rows):
        more[-1] = f"and {len(rows) - len(shown)} sizes of fewer steps"
    return [
        Column("size", 0, [str(row[0]) for row in shown]),
        Column("share of steps", 0, [f"{row[1]:.1%}" for row in shown]),
        Column("mean tokens", 0, [significant(row[2]) if row[1] else "" for row in shown]),
        Column("padding", 0, [f"{1 - row[2] / row[0]:.1%}" if row[1] else "" for row in shown]),
        Column(f"padding {unit.name}", 1, [unit.text(row[3]) if row[1] else "" for row in shown]),
        Column("", 2, more, right=False),
    ]


def _step(found: Expected) -> str:
    unit = time_unit([found.step_s])
    return f"{unit.text(found.step_s)} {unit.name} ({_interval(found, unit)})"


def _interval(found: Expected, unit: Unit) -> str:
    return f"{unit.text(found.low_s)} to {unit.text(found.high_s)}"


def _off(ratio: float) -> str:
    """Predicted over measured: `+3.2%` is too high."""
    return f"{100 * (ratio - 1):+.1f}%"
