"""A summary for other programs and for pasting: JSON, CSV in long form, Markdown."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from typing import Any

from mlaprof.analysis.cells import BASELINE, Cell, Group, Summary, groups
from mlaprof.analysis.stats import Estimate
from mlaprof.records import Record, Run
from mlaprof.report import sentences
from mlaprof.report.style import STATUS
from mlaprof.report.units import faster, plus_minus, size, time_unit
from mlaprof.study import BOUNDED_MODES

ESTIMATES = ("device_s", "submit_s", "speedup", "submit_speedup", "tiles_speedup")
MEMORY = (
    "weights_bytes",
    "caches_bytes",
    "buffers_bytes",
    "graph_pool_bytes",
    "allocator_peak_bytes",
    "host_peak_bytes",
    "nvml_process_bytes",
)
GRAPH = ("captured_segments", "eager_segments", "graph_launches", "graph_nodes", "capture_s", "padded_tokens")


def to_json(summary: Summary) -> str:
    """A JSON array, one object a cell. Seconds, bytes, hertz; what is not known is null."""
    return json.dumps([cell_object(cell) for cell in summary.cells], indent=2, allow_nan=False)


def summary_json(run: Run, summary: Summary) -> str:
    """One JSON object: where a run comes from, its geometric means and its cells."""
    manifest = run.manifest
    return json.dumps(
        {
            "run_id": manifest.run_id,
            "created_at": manifest.created_at,
            "mlaprof_version": manifest.mlaprof_version,
            "schema_version": manifest.schema_version,
            "command": list(manifest.command),
            "device": manifest.device,
            "processor": summary.processor,
            "emulated": summary.emulated,
            "study_yaml": manifest.study_yaml,
            "environment": manifest.environment.model_dump(mode="json"),
            "findings": [sentences.finding(found, summary) for found in summary.findings],
            "geomean_speedup": [asdict(mean) for mean in summary.means],
            "cells": [cell_object(cell) for cell in summary.cells],
        },
        indent=2,
        allow_nan=False,
    )


def cell_object(cell: Cell) -> dict[str, Any]:
    """One cell as plain JSON values."""
    return {
        "key": cell.key,
        "preset": cell.preset,
        "phase": cell.phase,
        "num_tokens": cell.num_tokens,
        "context_len": cell.context_len,
        "mode": cell.mode,
        "boundary": cell.boundary if cell.mode in BOUNDED_MODES else None,
        "way": cell.way,
        "tiles": cell.tiles,
        "outcome": cell.outcome,
        "stage": cell.stage,
        "reason": cell.reason,
        "notes": list(cell.notes),
        "emulated": cell.emulated,
        **{name: _estimate(getattr(cell, name)) for name in ESTIMATES},
        "bound": cell.bound,
        "unfilled": cell.unfilled,
        "cache": cell.cache,
        "clock": cell.clock,
        "first_call_s": cell.first_call_s,
        "memory": _named(cell.memory),
        "graph": _named(cell.graph),
        "resources": [_named(each) for each in cell.resources],
        "checks": [
            {
                "name": check.name,
                # JSON has no NaN and no infinity; a check with one has failed.
                "value": _finite(check.value),
                "limit": _finite(check.limit),
                "passed": check.passed,
            }
            for check in cell.checks
        ],
        "sm_clock_hz": cell.sm_clock_hz,
        "power_w": cell.power_w,
        "temperature_c": cell.temperature_c,
        "clock_events": list(cell.clock_events),
        "throttled": cell.throttled,
    }


def to_csv(summary: Summary) -> str:
    """Long form, a row a cell, a header line first; an empty field is not known. Seconds, bytes, hertz."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    rows = [_flat(cell) for cell in summary.cells]
    writer.writerow(CSV_HEADER)
    writer.writerows([["" if row[name] is None else row[name] for name in CSV_HEADER] for row in rows])
    return out.getvalue()


def to_markdown(summary: Summary) -> str:
    """Headings and tables that paste into a pull request."""
    parts = [f"## {summary.run_id}", f"{sentences.processor(summary)}, {summary.created_at}"]
    if summary.command:
        parts.append(f"`{' '.join(summary.command)}`")
    parts += [_section(summary, group) for group in groups(summary)]
    parts += [f"- **warning:** {sentences.finding(found, summary)}" for found in summary.findings]
    return "\n\n".join(parts) + "\n"


def _section(summary: Summary, group: Group) -> str:
    times = time_unit(e.median for cell in group.cells for e in (cell.device_s, cell.submit_s) if e)
    stamp = "EMULATED " if any(cell.emulated and cell.timed for cell in group.cells) else ""
    header = (
        "tokens",
        "mode",
        "tiles",
        "outcome",
        f"device {times.name}",
        f"submit {times.name}",
        "bound",
        "speed-up",
        "graph pool",
    )

    def row(cell: Cell) -> tuple[str, ...]:
        device = f"{times.text(cell.device_s.median)} {plus_minus(cell.device_s)}" if cell.device_s else ""
        submit = times.text(cell.submit_s.median) if cell.submit_s else ""
        outcome = STATUS[cell.outcome].word + (f": {cell.reason}" if cell.reason else "")
        pool = size(cell.memory.graph_pool_bytes) if cell.memory else ""
        speedup = _speedup(cell.speedup, baseline=cell.mode == BASELINE and not cell.tiles)
        return (
            str(cell.num_tokens),
            cell.way,
            cell.tiles or "default",
            outcome,
            device,
            submit,
            sentences.bound(cell),
            speedup,
            pool,
        )

    means = [
        ("geomean", mean.way, mean.tiles or "default", "", "", "", "", _speedup(mean.speedup), "")
        for mean in group.means
    ]
    rows = [_markdown_row(each) for each in (header, *(row(cell) for cell in group.cells), *means)]
    rule = "|---:|---|---|---|---:|---:|---|---:|---:|"
    title = f"### {stamp}{group.preset} {sentences.placed(group.phase, group.context_len)}"
    conditions = sentences.conditions(summary, group.cells)
    return f"{title}\n\n{conditions}\n\n" + "\n".join([rows[0], rule, *rows[1:]])


def _markdown_row(fields: tuple[str, ...]) -> str:
    escaped = (" ".join(field.replace("\\", "\\\\").replace("|", "\\|").split()) for field in fields)
    return f"| {' | '.join(escaped)} |"


def _speedup(speedup: Estimate | None, *, baseline: bool = False) -> str:
    if baseline and speedup:
        return "baseline"
    return f"{faster(speedup.median)} {plus_minus(speedup)}" if speedup else ""


def _flat(cell: Cell) -> dict[str, Any]:
    """CSV column -> value. The dictionary of the JSON object, with what it nests spread out."""
    row: dict[str, Any] = {name: value for name, value in cell_object(cell).items() if name in _PLAIN}
    row["notes"] = "; ".join(cell.notes)
    row["clock_events"] = "+".join(cell.clock_events)
    row["checks_passed"] = all(check.passed for check in cell.checks) if cell.checks else None
    for name in ESTIMATES:
        estimate: Estimate | None = getattr(cell, name)
        for part in ("median", "ci_low", "ci_high", "n"):
            row[f"{name}_{part}"] = getattr(estimate, part) if estimate else None
    for name in MEMORY:
        row[name] = getattr(cell.memory, name) if cell.memory else None
    for name in GRAPH:
        row[name] = getattr(cell.graph, name) if cell.graph else None
    return row


_PLAIN = (
    *("key", "preset", "phase", "num_tokens", "context_len", "mode", "tiles", "outcome", "stage", "reason", "notes"),
    *(
        "emulated",
        "bound",
        "unfilled",
        "cache",
        "clock",
        "first_call_s",
        "sm_clock_hz",
        "power_w",
        "temperature_c",
        "clock_events",
    ),
    "throttled",
)
CSV_HEADER: tuple[str, ...] = (
    *_PLAIN,
    "checks_passed",
    *(f"{name}_{part}" for name in ESTIMATES for part in ("median", "ci_low", "ci_high", "n")),
    *MEMORY,
    *GRAPH,
)


def _estimate(value: Estimate | None) -> dict[str, float | int] | None:
    return asdict(value) if value else None


def _named(record: Record | None) -> dict[str, Any] | None:
    return record.model_dump(mode="json") if record else None


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
