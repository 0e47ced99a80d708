"""A comparison as a table in the terminal, and as JSON for other programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.compare import Comparison, Delta
from mlaprof.analysis.differences import WEIGHTY, Difference
from mlaprof.analysis.limits import in_run_floor
from mlaprof.analysis.stats import Estimate
from mlaprof.analysis.verdicts import VERDICTS
from mlaprof.report import sentences
from mlaprof.report.columns import Column, print_columns
from mlaprof.report.lines import keys_by_reason, print_wrapped
from mlaprof.report.style import VERDICT
from mlaprof.report.units import change, time_unit


def print_comparison(comparison: Comparison, console: Console) -> None:
    """What differs around the runs, a verdict a cell with the gravest first, and a geometric mean a way."""
    base, new = comparison.base, comparison.new
    print_wrapped(f"base {_name(base, comparison.base_way)}: {sentences.processor(base)}", console, "bold")
    print_wrapped(f"new  {_name(new, comparison.new_way)}: {sentences.processor(new)}", console, "bold")
    for difference in comparison.mismatches:
        print_wrapped(f"MISMATCH {_differs(difference)}: ratios across it mean nothing", console, "bold red")
    for difference in comparison.crossed:
        print_wrapped(f"CROSS-MACHINE {_differs(difference)}: ratios are of the machines, too", console, "bold yellow")
    for difference in comparison.notes:
        if difference.name in WEIGHTY:
            print_wrapped(f"DIFFERENT {_differs(difference)}", console, "yellow")
        else:
            print_wrapped(f"note: {_differs(difference)}", console, "bright_black")
    print_wrapped(_floors(comparison), console)
    for name in comparison.quick:
        print_wrapped(f"{name} is a quick run: it reports, it does not gate", console, "yellow")
    if comparison.again:
        print_wrapped(f"what was slower is measured again in run {comparison.again}", console)

    columns = delta_columns(comparison, ascii_only=console.options.ascii_only)
    if columns:
        print_columns(columns, console, last_rows=len(comparison.means))
    else:
        print_wrapped("no cell was timed in either run", console, "yellow")
    for reason in delta_reasons(comparison):
        print_wrapped(reason, console)
    _print_tally(comparison, console)


def comparison_json(comparison: Comparison) -> str:
    """One JSON object: the runs, what differs, the cells in the base's plan order, and a geometric mean a way.

    Ratios are new / base of the device medians, or of rounds where `paired`, seconds; what is not known is null.
    limit: the largest of a cell, the threshold or the floor; floor: the larger one of the runs'.
    """
    sides = (("base", comparison.base), ("new", comparison.new))
    return json.dumps(
        {
            "base": comparison.base.run_id,
            "new": comparison.new.run_id,
            "base_way": comparison.base_way,
            "new_way": comparison.new_way,
            "threshold": comparison.threshold,
            "limit": comparison.limit,
            "floors": {
                name: {
                    "ratio": in_run_floor(summary.floor),
                    "pairs": summary.floor.cells if summary.floor else 0,
                    "between": summary.floor.between if summary.floor else None,
                    "processes": _processes(summary),
                }
                for name, summary in sides
            },
            "quick": list(comparison.quick),
            "again": comparison.again,
            **{
                name: [{"name": each.name, "base": each.base, "new": each.new} for each in differences]
                for name, differences in (
                    ("mismatches", comparison.mismatches),
                    ("crossed", comparison.crossed),
                    ("notes", comparison.notes),
                )
            },
            "cells": [_cell_object(delta) for delta in comparison.deltas],
            "geomean": [{"way": way, **_ratio_object(mean), "cells": mean.n} for way, mean in comparison.means.items()],
        },
        indent=2,
        allow_nan=False,
    )


def _cell_object(delta: Delta) -> dict[str, object]:
    limit = delta.limit
    return {
        "key": delta.key,
        **_ratio_object(delta.ratio),
        "verdict": delta.verdict,
        "p_adjusted": delta.p_holm,
        "floor": limit.floor if limit else None,
        "limit": limit.value if limit else None,
        "paired": delta.paired,
        "processes": dict(zip(("base", "new"), delta.processes, strict=True)) if delta.processes else None,
        "reason": delta.reason,
        "p": delta.p,
        "p_bh": delta.p_bh,
        "rounds": delta.ratio.n if delta.ratio else None,
        "rounds_to_settle": delta.rounds,
        "processes_to_settle": delta.more,
        "base_s": delta.base.device_s.median if delta.base and delta.base.device_s else None,
        "new_s": delta.new.device_s.median if delta.new and delta.new.device_s else None,
    }


def _ratio_object(ratio: Estimate | None) -> dict[str, float | None]:
    return {
        "ratio": ratio.median if ratio else None,
        "ci_low": ratio.ci_low if ratio else None,
        "ci_high": ratio.ci_high if ratio else None,
    }


def delta_columns(comparison: Comparison, *, ascii_only: bool = False) -> list[Column]:
    """A row a cell, the gravest verdict first, then a row a mean; empty where no cell was timed in either run."""
    deltas = _gravest_first(comparison)
    if not deltas:
        return []
    unit = time_unit(
        cell.device_s.median for delta in deltas for cell in (delta.base, delta.new) if cell and cell.device_s
    )
    means = comparison.means

    def median(cell: Cell | None) -> str:
        return unit.text(cell.device_s.median) if cell and cell.device_s else ""

    ratios = [*(delta.ratio for delta in deltas), *means.values()]
    blank = [""] * len(means)
    verdicts = [Text(VERDICT[d.verdict].text(ascii_only), style=VERDICT[d.verdict].colour) for d in deltas]
    return [
        Column("verdict", 0, [*verdicts, *blank], right=False),
        Column("cell", 0, [*(d.key for d in deltas), *(f"geomean {way}" for way in means)], right=False),
        Column("new / base", 0, [f"{each.median:.3f}" if each else "" for each in ratios]),
        Column("95% CI", 1, [f"{e.ci_low:.3f} {e.ci_high:.3f}" if e else "" for e in ratios]),
        Column("change", 2, [change(each.median) if each else "" for each in ratios], right=False),
        Column("p (BH)", 6, [*(_p(d.p_bh) for d in deltas), *blank]),
        Column("to settle", 5, [*(_to_settle(d) for d in deltas), *blank]),
        Column(f"new {unit.name}", 3, [*(median(d.new) for d in deltas), *blank]),
        Column(f"base {unit.name}", 4, [*(median(d.base) for d in deltas), *blank]),
    ]


def delta_reasons(comparison: Comparison) -> Iterator[str]:
    """One line a reason: the verdict, why, and of which cells."""
    reasons = ((f"{delta.verdict}: {delta.reason}", delta.key) for delta in _gravest_first(comparison) if delta.reason)
    for text, keys in keys_by_reason(reasons).items():
        yield f"{text} ({keys})"


def surroundings(comparison: Comparison) -> Iterator[str]:
    """What differs around the two runs, and the noise that both showed."""
    for kind, differences in (("MISMATCH", comparison.mismatches), ("CROSS-MACHINE", comparison.crossed)):
        yield from (f"{kind} {_differs(each)}" for each in differences)
    for each in comparison.notes:
        yield f"{'DIFFERENT' if each.name in WEIGHTY else 'note:'} {_differs(each)}"
    yield _floors(comparison)
    yield from (f"{name} is a quick run: it reports, it does not gate" for name in comparison.quick)


def tally(comparison: Comparison) -> str:
    """`2 SLOWER, 14 SAME at a threshold of 1.0%`"""
    counts = Counter(delta.verdict for delta in comparison.deltas)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return f"{told or 'nothing compared'} at a threshold of {_threshold(comparison)}"


def _gravest_first(comparison: Comparison) -> list[Delta]:
    return sorted(comparison.deltas, key=lambda delta: VERDICTS.index(delta.verdict))


def _print_tally(comparison: Comparison, console: Console) -> None:
    counts = Counter(delta.verdict for delta in comparison.deltas)
    print_wrapped(tally(comparison), console, "bold")
    unsettled = [delta for delta in comparison.deltas if delta.rounds or delta.more]
    if unsettled:
        print_wrapped(
            f"warning: an ambiguous interval reaches over the threshold. {_what_settles(unsettled)} would settle "
            f"{len(unsettled)} of {counts['AMBIGUOUS']}; or compare with a larger threshold.",
            console,
            "yellow",
        )
    elif counts["AMBIGUOUS"]:
        print_wrapped(
            "warning: more rounds would not settle what is ambiguous. Measure again where a reason is given, "
            "otherwise compare with another threshold.",
            console,
            "yellow",
        )
    if counts["THROTTLED"]:
        print_wrapped(
            "warning: of a throttled cell no change can be told. Let the GPU cool, look at what else heats it with "
            "nvidia-smi -q -d PERFORMANCE, and measure again.",
            console,
            "yellow",
        )


def _threshold(comparison: Comparison) -> str:
    """`1.0%`; with what raised it, where that is a noise floor."""
    if comparison.limit <= comparison.threshold:
        return _percent(comparison.threshold)
    return f"{_percent(comparison.limit)}, the noise floor ({_percent(comparison.threshold)} was asked)"


def _to_settle(delta: Delta) -> str:
    return f"{delta.more} processes" if delta.more else f"{delta.rounds} rounds" if delta.rounds else ""


def _what_settles(unsettled: list[Delta]) -> str:
    """What each run needs for the most demanding one; where processes differ, longer ones would differ as much."""
    rounds, more = (
        max((each or 0 for each in needs), default=0)
        for needs in ([delta.rounds for delta in unsettled], [delta.more for delta in unsettled])
    )
    asked = [
        f"{more} processes (measure.processes)" if more else "",
        f"{rounds} rounds (measure.min_samples and measure.max_samples)" if rounds else "",
    ]
    return f"About {' and '.join(each for each in asked if each)} in each run"


def _name(summary: Summary, way: str | None) -> str:
    return summary.run_id if way is None else f"{summary.run_id}:{way}"


def _processes(summary: Summary) -> int:
    return max((cell.processes for cell in summary.cells), default=0)


def _floors(comparison: Comparison) -> str:
    """The line that says what noise the two runs showed, and what of it was not measured."""
    judged = [delta for delta in comparison.deltas if delta.ratio]
    if comparison.base_way is not None and judged and all(delta.paired for delta in judged):
        return f"noise floor: {_floor(comparison.new)}; paired by round, so what processes differ by cancels"
    sides = (("base", comparison.base), ("new", comparison.new))
    return "noise floor: " + "; ".join(f"{name} {_floor(summary)}, {_between(summary)}" for name, summary in sides)


def _floor(summary: Summary) -> str:
    if summary.floor is None:
        return f"not measured, {_percent(in_run_floor(None))} assumed"
    return f"{_percent(summary.floor.ratio)} of {summary.floor.cells} A/A pairs"


def _between(summary: Summary) -> str:
    if summary.floor is not None and summary.floor.between is not None:
        return f"{_percent(summary.floor.between)} between its {_processes(summary)} processes"
    if _processes(summary) > 1:
        return f"not measured between its {_processes(summary)} processes"
    return "1 process: differences between processes are not seen"


def _percent(ratio: float) -> str:
    """`1.0%`, with a second digit where one would hide something: `0.25%`."""
    return f"{ratio:.1%}" if abs(ratio - round(ratio, 3)) < 5e-5 else f"{ratio:.2%}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value >= 0.001 else "<0.001"


def _differs(difference: Difference) -> str:
    return f"{difference.name}: {difference.base} -> {difference.new}"
