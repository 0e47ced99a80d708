"""A library of tuned tiles as a table, and how its entries fared when they were measured again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from mlaprof.kernels.tiles import label
from mlaprof.report.columns import Column, print_columns
from mlaprof.report.lines import print_line, print_wrapped
from mlaprof.report.units import seconds
from mlaprof.tuning.check import Check
from mlaprof.tuning.library import Entry


def print_library(folders: Mapping[Path, Mapping[Path, Sequence[Entry]]], console: Console) -> None:
    """A table a file; a line for a folder without any."""
    for folder, files in folders.items():
        if not files:
            print_line(f"{folder}: no entries", console)
        for path, entries in files.items():
            print_wrapped(f"\n{path}", console, "bold")
            print_columns(_columns(entries), console)


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """A row an entry."""
    serves = ["yes" if each.checked.current else "no: other versions" for each in checks]
    print_columns(
        [
            Column("kernel", 0, [each.checked.entry.conditions.kernel for each in checks], right=False),
            Column("shape", 1, [_shape(each.checked.entry) for each in checks], right=False),
            Column("launch", 2, [each.checked.entry.conditions.launch for each in checks], right=False),
            Column("was", 3, [f"{each.checked.entry.gain:.3f}x" for each in checks]),
            Column("is", 0, [_gain(each) for each in checks]),
            Column("verdict", 0, [each.verdict for each in checks], right=False),
            Column("serves", 2, serves, right=False),
        ],
        console,
    )
    for each in checks:
        if each.reason:
            print_wrapped(f"{_shape(each.checked.entry)}: {each.reason}", console)


def _columns(entries: Sequence[Entry]) -> list[Column]:
    return [
        Column("shape", 0, [_shape(each) for each in entries], right=False),
        Column("launch", 2, [each.conditions.launch for each in entries], right=False),
        Column("cache", 4, [each.conditions.cache for each in entries], right=False),
        Column("decision", 0, [each.decision for each in entries], right=False),
        Column("tiles", 0, [_tiles(each) for each in entries], right=False),
        Column("time", 3, [seconds(each.device_s) for each in entries]),
        Column("default", 3, [seconds(each.default_device_s) for each in entries]),
        Column("gain", 0, [f"{each.gain:.3f}x [{each.gain_low:.3f}, {each.gain_high:.3f}]" for each in entries]),
        Column("triton", 5, [each.conditions.triton for each in entries], right=False),
        Column("date", 5, [each.date for each in entries], right=False),
    ]


def _shape(entry: Entry) -> str:
    return ",".join(f"{axis}={size}" for axis, size in entry.shape.items())


def _tiles(entry: Entry) -> str:
    if entry.values is None:
        return "default"
    form = entry.form or entry.conditions.kernel
    return f"{form} {label(form, entry.values)}"


def _gain(check: Check) -> str:
    found = check.gain
    return f"{found.median:.3f}x [{found.ci_low:.3f}, {found.ci_high:.3f}]" if found else ""
