"""A run of single kernels as tables, JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby

from rich.console import Console
from rich.text import Text

from mlaprof.analysis.kernels import KernelCell, KernelSummary
from mlaprof.records import Manifest
from mlaprof.report.columns import Column, markdown, print_columns
from mlaprof.report.lines import print_wrapped, styled
from mlaprof.report.style import STATUS
from mlaprof.report.units import plus_minus, significant, time_unit

SHOWN_SHAPES = 3  # of those that one reason is about
LEGEND = (
    "roofline: the least time by the ceilings of this run over the time taken; of gathered rows every gather counts, "
    "so the L2 may lift it above 100%. vs best other: speed over the fastest other provider of the same shape, paired "
    "round by round; above 1 is faster"
)


def print_kernels(summary: KernelSummary, manifest: Manifest, console: Console) -> None:
    """A table a kernel, what the own kernels come to beside their peers, and what was not timed."""
    processor = manifest.environment.processor(manifest.device)
    for kernel, members in groupby(summary.cells, key=lambda cell: cell.kernel):
        cells = list(members)
        timed = [cell for cell in cells if cell.device_s]
        stamp = "EMULATED " if any(cell.emulated for cell in timed) else ""
        title = " | ".join(part for part in (kernel, _constants(timed), processor) if part)
        print_wrapped(f"\n{stamp}{title}", console, "bold")
        if timed:
            print_columns(kernel_columns(timed), console, instead=", or use --format csv")
        for status, text in troubles(cells):
            line = styled(STATUS[status], console)
            line.append_text(Text(f" {text}", style="default"))
            console.print(line)
    if any(cell.device_s for cell in summary.cells):
        print_wrapped(f"\n{LEGEND}", console, "bright_black")
    if text := ceilings(summary):
        print_wrapped(text, console)
    for mean in summary.means:
        interval = plus_minus(mean.versus)
        print_wrapped(
            f"{mean.kernel}: own kernel {mean.versus.median:.2f}x {interval} the best other provider in the geometric "
            f"mean of {_shapes(mean.shapes)}; least {mean.least:.2f}x at {mean.least_shape}",
            console,
            "bold",
        )


def kernel_columns(cells: Sequence[KernelCell]) -> list[Column]:
    """A row a timed cell; the sizes that differ among them, where they change."""
    unit = time_unit(cell.device_s.median for cell in cells if cell.device_s)
    first = [not row or cells[row - 1].shape != cell.shape for row, cell in enumerate(cells)]
    return [
        *(
            Column(axis, 0, [str(cell.axes[axis]) if new else "" for cell, new in zip(cells, first, strict=True)])
            for axis in _varying(cells)
        ),
        Column("provider", 0, [cell.way for cell in cells], right=False),
        Column(unit.name, 0, [unit.text(cell.device_s.median) if cell.device_s else "" for cell in cells]),
        Column("±", 5, [plus_minus(cell.device_s, "") if cell.device_s else "" for cell in cells]),
        Column("TFLOP/s", 3, [significant(cell.flop_rate / 1e12) if cell.flop_rate else "" for cell in cells]),
        Column("GB/s", 4, [f"{cell.byte_rate / 1e9:.0f}" if cell.byte_rate else "" for cell in cells]),
        Column("roofline", 2, [f"{cell.roofline:.0%}" if cell.roofline else "" for cell in cells]),
        Column("vs best other", 1, [_versus(cell) for cell in cells]),
        Column("other", 6, [cell.versus_provider for cell in cells], right=False),
    ]


def kernels_json(summary: KernelSummary, manifest: Manifest) -> str:
    """One JSON object: where the run comes from, its ceilings, cells and means. Seconds, bytes, FLOP."""
    return json.dumps(
        {
            "run_id": manifest.run_id,
            "created_at": manifest.created_at,
            "mlaprof_version": manifest.mlaprof_version,
            "command": list(manifest.command),
            "device": manifest.device,
            "processor": manifest.environment.processor(manifest.device),
            "environment": manifest.environment.model_dump(mode="json"),
            "study_yaml": manifest.study_yaml,
            "copy_rate": summary.copy_rate,
            "product_rates": dict(summary.product_rates),
            "cells": [_cell(cell) for cell in summary.cells],
            "geomean": [asdict(mean) for mean in summary.means],
        },
        indent=1,
        allow_nan=False,
    )


def kernels_csv(summary: KernelSummary) -> str:
    """A row a cell."""
    rows = [_flat(cell) for cell in summary.cells]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["kernel"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def kernels_markdown(summary: KernelSummary, manifest: Manifest) -> str:
    """A table a kernel, for a ticket."""
    parts = [f"Single kernels on {manifest.environment.processor(manifest.device)}, run {manifest.run_id}"]
    for kernel, members in groupby(summary.cells, key=lambda cell: cell.kernel):
        cells = list(members)
        timed = [cell for cell in cells if cell.device_s]
        parts.append(" | ".join(part for part in (f"### {kernel}", _constants(timed)) if part))
        if timed:
            parts.append(markdown(kernel_columns(timed)))
        parts += [f"- {STATUS[status].word}: {text}" for status, text in troubles(cells)]
    return "\n\n".join([*parts, ceilings(summary), LEGEND]) + "\n"


def ceilings(summary: KernelSummary) -> str:
    """The measured ceilings in one sentence; empty without."""
    parts = [f"{rate / 1e12:.0f} TFLOP/s {precision}" for precision, rate in sorted(summary.product_rates.items())]
    if summary.copy_rate:
        parts.insert(0, f"copy {summary.copy_rate / 1e9:.0f} GB/s read and written")
    return f"ceilings of this run: {', '.join(parts)}" if parts else ""


def _versus(cell: KernelCell) -> str:
    return f"{cell.versus.median:.2f}x" if cell.versus else ""


def _shapes(count: int) -> str:
    return "1 shape" if count == 1 else f"{count} shapes"


def _varying(cells: Sequence[KernelCell]) -> list[str]:
    """The axes of more than one size; the first where none is."""
    axes = list(cells[0].axes)
    return [axis for axis in axes if len({cell.axes[axis] for cell in cells}) > 1] or axes[:1]


def _constants(cells: Sequence[KernelCell]) -> str:
    """The sizes that all cells share, `k=2048, next_n=1`."""
    if not cells:
        return ""
    shown = _varying(cells)
    return ", ".join(f"{axis}={size}" for axis, size in cells[0].axes.items() if axis not in shown)


def troubles(cells: Sequence[KernelCell]) -> list[tuple[str, str]]:
    """(status, `provider at these shapes: reason`) of what was not timed, the same reason once."""
    shapes = {cell.shape for cell in cells}
    found: dict[tuple[str, str, str], list[str]] = {}
    for cell in cells:
        if cell.outcome.status != "ok":
            key = cell.outcome.status, cell.way, cell.outcome.cause.split("\n")[0]
            found.setdefault(key, []).append(cell.shape)
    told = []
    for (status, way, reason), where in found.items():
        more = f" and {len(where) - SHOWN_SHAPES} more" if len(where) > SHOWN_SHAPES else ""
        places = "" if len(where) == len(shapes) else f" at {'; '.join(where[:SHOWN_SHAPES])}{more}"
        told.append((status, f"{way}{places}: {reason}"))
    return told


def _cell(cell: KernelCell) -> dict[str, object]:
    fields = asdict(cell)
    fields["outcome"] = cell.outcome.model_dump()
    return fields


def _flat(cell: KernelCell) -> dict[str, object]:
    time, versus = cell.device_s, cell.versus
    return {
        "kernel": cell.kernel,
        "shape": cell.shape,
        "way": cell.way,
        "provider": cell.provider,
        "version": cell.version,
        "status": cell.outcome.status,
        "reason": cell.outcome.reason,
        "emulated": cell.emulated,
        "device_s": time.median if time else None,
        "device_s_low": time.ci_low if time else None,
        "device_s_high": time.ci_high if time else None,
        "processes": cell.processes,
        "flop_rate": cell.flop_rate,
        "byte_rate": cell.byte_rate,
        "roofline": cell.roofline,
        "versus": versus.median if versus else None,
        "versus_low": versus.ci_low if versus else None,
        "versus_high": versus.ci_high if versus else None,
        "versus_provider": cell.versus_provider,
    }
