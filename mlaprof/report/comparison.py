"""The table of a comparison in the terminal."""

from __future__ import annotations

from collections import Counter

from rich.console import Console

from mlaprof.analysis.cells import Cell
from mlaprof.analysis.compare import VERDICTS, Comparison, Delta, Difference
from mlaprof.report import sentences
from mlaprof.report.columns import Column, print_columns
from mlaprof.report.lines import keys_by_reason, print_wrapped, styled
from mlaprof.report.style import VERDICT
from mlaprof.report.units import change, time_unit


def print_comparison(comparison: Comparison, console: Console) -> None:
    """What differs around the runs, a verdict a cell with the gravest first, and a geometric mean a way."""
    base, new = comparison.base, comparison.new
    print_wrapped(f"base {base.run_id}: {sentences.processor(base)}", console, "bold")
    print_wrapped(f"new  {new.run_id}: {sentences.processor(new)}", console, "bold")
    for difference in comparison.mismatches:
        print_wrapped(f"MISMATCH {_differs(difference)}: ratios across it mean nothing", console, "bold red")
    for difference in comparison.notes:
        print_wrapped(f"note: {_differs(difference)}", console, "bright_black")

    deltas = sorted(comparison.deltas, key=lambda delta: VERDICTS.index(delta.verdict))
    if deltas:
        _print_deltas(comparison, deltas, console)
    else:
        print_wrapped("no cell was timed in either run", console, "yellow")
    for text, keys in keys_by_reason((f"{d.verdict}: {d.reason}", d.key) for d in deltas if d.reason).items():
        print_wrapped(f"{text} ({keys})", console)
    counts = Counter(delta.verdict for delta in deltas)
    tally = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    print_wrapped(f"{tally or 'nothing compared'} at a threshold of {comparison.threshold:.1%}", console, "bold")
    if comparison.mismatches:
        print_wrapped(
            "warning: the runs are of different kinds. Measure both on one machine, one way.", console, "yellow"
        )
    if counts["AMBIGUOUS"]:
        print_wrapped(
            "warning: an ambiguous interval reaches over the threshold. Raise measure.max_samples and "
            "measure.min_time_s in both runs, or compare with a larger threshold.",
            console,
            "yellow",
        )


def _print_deltas(comparison: Comparison, deltas: list[Delta], console: Console) -> None:
    unit = time_unit(
        cell.device_s.median for delta in deltas for cell in (delta.base, delta.new) if cell and cell.device_s
    )
    means = comparison.means

    def median(cell: Cell | None) -> str:
        return unit.text(cell.device_s.median) if cell and cell.device_s else ""

    ratios = [*(delta.ratio for delta in deltas), *means.values()]
    blank = [""] * len(means)
    print_columns(
        [
            Column("verdict", 0, [*(styled(VERDICT[d.verdict], console) for d in deltas), *blank], right=False),
            Column("cell", 0, [*(d.key for d in deltas), *(f"geomean {way}" for way in means)], right=False),
            Column("new / base", 0, [f"{each.median:.3f}" if each else "" for each in ratios]),
            Column("95% CI", 1, [f"{e.ci_low:.3f} {e.ci_high:.3f}" if e else "" for e in ratios]),
            Column("change", 2, [change(each.median) if each else "" for each in ratios], right=False),
            Column(f"new {unit.name}", 3, [*(median(d.new) for d in deltas), *blank]),
            Column(f"base {unit.name}", 4, [*(median(d.base) for d in deltas), *blank]),
        ],
        console,
        last_rows=len(means),
    )


def _differs(difference: Difference) -> str:
    return f"{difference.name}: {difference.base} -> {difference.new}"
