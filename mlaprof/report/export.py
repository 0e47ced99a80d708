"""A summary for other programs and for pasting: JSON, CSV in long form, Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict

from mlaprof.analysis.cells import Summary
from mlaprof.analysis.groups import Group, groups
from mlaprof.records import Run
from mlaprof.report import sentences
from mlaprof.report.capture_tables import (
    BOUNDARY_TITLE,
    BREAKABLE_TITLE,
    CAPTURE_TITLE,
    LEDGER_TITLE,
    boundary_columns,
    breakable_columns,
    capture_columns,
    ledger_columns,
)
from mlaprof.report.cells_table import cell_columns, legend
from mlaprof.report.clocks_table import clocks_columns, clocks_remarks, clocks_title
from mlaprof.report.columns import markdown
from mlaprof.report.objects import CSV_HEADER, cell_object, finite, flat, ledger_object
from mlaprof.report.style import STATUS


def to_json(summary: Summary) -> str:
    """A JSON array, one object a cell. Seconds, bytes, hertz; what is not known is null."""
    return json.dumps(finite([cell_object(cell) for cell in summary.cells]), indent=2, allow_nan=False)


def summary_json(run: Run, summary: Summary) -> str:
    """One JSON object: where a run comes from, what it comes to, and its cells."""
    manifest = run.manifest
    return json.dumps(
        finite(
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
                "over_budget": summary.over_budget,
                "floor": asdict(summary.floor) if summary.floor else None,
                "piecewise_vs_breakable": [asdict(each) for each in summary.piecewise_vs_breakable],
                "boundary_prices": [asdict(each) for each in summary.boundary_prices],
                "ledgers": [
                    {
                        "preset": group.preset,
                        "phase": group.phase,
                        "context_len": group.context_len,
                        "way": way,
                        **ledger_object(ledger),
                    }
                    for group in groups(summary)
                    for way, ledger in group.ledgers.items()
                ],
                "cells": [cell_object(cell) for cell in summary.cells],
            }
        ),
        indent=2,
        allow_nan=False,
    )


def to_csv(summary: Summary) -> str:
    """Long form, a row a cell, a header line first; an empty field is not known. Seconds, bytes, hertz."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    rows = [flat(cell) for cell in summary.cells]
    writer.writerow(CSV_HEADER)
    writer.writerows([["" if row[name] is None else row[name] for name in CSV_HEADER] for row in rows])
    return out.getvalue()


def to_markdown(summary: Summary) -> str:
    """Headings and tables that paste into a pull request: what the terminal shows, and what each capture cost."""
    parts = [f"## {summary.run_id}", f"{sentences.processor(summary)}, {summary.created_at}"]
    if summary.command:
        parts.append(f"`{' '.join(summary.command)}`")
    parts += [part for group in groups(summary) for part in _section(summary, group)]
    for outcome, sentence in sentences.troubles(summary):
        parts.append("- " + " ".join((f"{STATUS[outcome].word} " if outcome else "").split() + sentence.split()))
    parts += [f"- **{sentences.heading(each)}:** {sentences.finding(each, summary)}" for each in summary.findings]
    return "\n\n".join(parts) + "\n"


def _section(summary: Summary, group: Group) -> Iterator[str]:
    stamp = "EMULATED " if any(cell.emulated and cell.timed for cell in group.cells) else ""
    yield f"### {stamp}{group.preset} {sentences.placed(group.phase, group.context_len)}"
    yield sentences.conditions(summary, group.cells)
    yield markdown(cell_columns(group.cells, group.means, floor=summary.floor, every_row=True))
    if remark := legend(group, summary.floor):
        yield remark
    for title, columns, remarks in (
        (clocks_title(group.cells), clocks_columns(group.cells, every_row=True), clocks_remarks(group.cells)),
        (BREAKABLE_TITLE, breakable_columns(group, floor=summary.floor), ()),
        (
            BOUNDARY_TITLE,
            boundary_columns(group.boundary_prices, floor=summary.floor),
            sentences.unpriced(group.boundary_prices),
        ),
        (LEDGER_TITLE, ledger_columns(group.ledgers), sentences.residuals(group.ledgers)),
        (CAPTURE_TITLE, capture_columns(group.ledgers), ()),
    ):
        if columns:
            yield f"#### {title}"
            yield markdown(columns)
        yield from remarks
