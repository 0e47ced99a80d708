"""A run of tuning in words and tables: each target's decision and evidence, its course, what each field is worth."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

from rich.console import Console

from mlaprof.analysis.stats import Estimate
from mlaprof.kernels.tiles import label
from mlaprof.records import KernelMeasurement, Manifest
from mlaprof.report.columns import Column, markdown, print_columns
from mlaprof.report.lines import print_wrapped
from mlaprof.report.units import plus_minus, seconds, time_unit
from mlaprof.study import TileChoice
from mlaprof.tuning.candidates import form_of
from mlaprof.tuning.finals import Decision, Finalist
from mlaprof.tuning.summary import Effect, Spent, Step, TargetSummary

TOP = 10
EVALUATION = (
    "kind", "kernel", "shape", "launch", "form", "tiles", "process", "status", "stage", "reason", "emulated",
    "device_s", "samples", "first_device_s", "number", "origin", "at_s", "compile_s", "check_s", "measure_s",
    "registers", "stack_bytes", "shared_bytes", "worst_check",
)  # fmt: skip
LEGEND = (
    "vs default: speed over the launcher's own choice, paired round by round over two fresh processes, 95 % interval; "
    "above 1 is faster. = : not known to differ from the fastest"
)


def print_tuning(summaries: Sequence[TargetSummary], manifest: Manifest, console: Console) -> None:
    """Every target of a run."""
    processor = manifest.environment.processor(manifest.device)
    for summary in summaries:
        stamp = "EMULATED " if summary.decision.emulated else ""
        print_wrapped(f"\n{stamp}{summary.search.label} | {processor}", console, "bold")
        for line in target_lines(summary):
            print_wrapped(line, console)
        if summary.decision.finalists:
            print_columns(finalist_columns(summary.decision), console)
    if any(summary.decision.finalists for summary in summaries):
        print_wrapped(f"\n{LEGEND}", console, "bright_black")


def target_lines(summary: TargetSummary) -> list[str]:
    """What a target came to: decision, space, time, failures, course, fields."""
    lines = [
        decision_line(summary.decision),
        f"space {summary.legal} legal of {summary.declared} declared, {summary.tried} tried ({summary.coverage:.0%}), "
        f"{summary.evaluations} launched" + (" or compiled" if summary.decision.verdict == "not-measured" else ""),
        spent_line(summary.spent),
    ]
    if summary.total_s is not None:
        lines.append(f"{summary.total_s:.1f} s in all, finalists in two fresh processes included")
    if summary.failures:
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.failures.items()))
        lines.append(f"without a time of their own: {counted}")
    if summary.course:
        lines.append(course_line(summary.course))
    if summary.effects:
        lines.append(effects_line(summary.effects))
    return lines


def decision_line(decision: Decision) -> str:
    """`tuned sparse_attn@hopper_decode h16.w4.x8: 1.08x [1.07, 1.09] ...` or why the default stays."""
    if decision.verdict == "not-measured":
        return f"not measured: {decision.reason}"
    gain = f"{_ratio(decision.gain)} the default" if decision.gain else "no gain"
    found = choice_text(decision.chosen) if decision.chosen else "nothing else"
    floor = f"A/A floor {decision.floor:.1%}"
    return f"{decision.verdict}: {found}, {gain} ({floor}): {decision.reason}"


def choice_text(choice: TileChoice) -> str:
    """`sparse_attn@hopper_decode h16.w4.x8`"""
    return f"{choice.kernel} {label(choice.kernel, choice.values)}"


def spent_line(spent: Spent) -> str:
    """Where the wall time of the search went; compiling went on beside it."""
    return (
        f"search {spent.wall_s:.1f} s: {spent.starting_s:.1f} starting, {spent.check_s:.1f} checking, "
        f"{spent.measure_s:.1f} measuring, {spent.waiting_s:.1f} idle for compilers, {spent.other_s:.1f} else; "
        f"{spent.compile_s:.1f} s of compiling beside it"
    )


def course_line(course: Sequence[Step]) -> str:
    """`best 12.1 us after 3 (4.2 s), 11.5 us after 17 (9.0 s)`"""
    shown = course if len(course) <= 6 else (course[0], *course[-5:])
    told = ", ".join(f"{seconds(each.best_device_s)} after {each.evaluations} ({each.at_s:.1f} s)" for each in shown)
    return f"best {told}"


def effects_line(effects: Sequence[Effect]) -> str:
    """Each field by the spread of its values' best times, among those tried."""
    told = ", ".join(f"{each.field} {each.ratio:.2f}x" for each in effects)
    return f"worst over best value of each field, by its fastest configuration tried: {told}"


def finalist_columns(decision: Decision) -> list[Column]:
    """The top ten with intervals, ties marked."""
    found: Sequence[Finalist] = decision.finalists[:TOP]
    times = [each.device_s for each in found if each.device_s]
    unit = time_unit(each.median for each in times)
    return [
        Column("tiles", 0, [choice_text(each.choice) for each in found], right=False),
        Column(unit.name, 0, [unit.text(each.device_s.median) if each.device_s else "" for each in found]),
        Column("±", 3, [plus_minus(each.device_s, "") if each.device_s else "" for each in found]),
        Column("vs default", 0, [_ratio(each.gain) if each.gain else "" for each in found]),
        Column("", 2, ["=" if each.tied and number else "" for number, each in enumerate(found)], right=False),
        Column("is", 1, [_role(decision, each) for each in found], right=False),
    ]


def tuning_markdown(summaries: Sequence[TargetSummary], manifest: Manifest) -> str:
    """The same for a ticket."""
    parts = [f"Tuning on {manifest.environment.processor(manifest.device)}, run {manifest.run_id}"]
    for summary in summaries:
        parts.append(f"### {'EMULATED ' if summary.decision.emulated else ''}{summary.search.label}")
        parts.append("\n".join(f"- {line}" for line in target_lines(summary)))
        if summary.decision.finalists:
            parts.append(markdown(finalist_columns(summary.decision)))
    return "\n\n".join([*parts, LEGEND]) + "\n"


def tuning_json(summaries: Sequence[TargetSummary], manifest: Manifest) -> str:
    """Every number of it."""
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
            "targets": [_target(summary) for summary in summaries],
        },
        indent=1,
        allow_nan=False,
    )


def evaluations_csv(rows: Sequence[KernelMeasurement]) -> str:
    """A row a configuration of every search, and a row a finalist and process."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=EVALUATION, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_evaluation(row) for row in rows)
    return text.getvalue()


def _evaluation(row: KernelMeasurement) -> dict[str, object]:
    search, found, timing = row.search, row.resources, row.timing
    return {
        "kind": row.kind,
        "kernel": row.point.kernel,
        "shape": row.point.shape_label,
        "launch": row.point.launch,
        "form": form_of(row.point) if row.point.tiles else "",
        "tiles": ",".join(f"{name}={value}" for name, value in (row.point.tiles or {}).items()),
        "process": row.process,
        "status": row.outcome.status,
        "stage": row.outcome.stage,
        "reason": row.outcome.reason.splitlines()[0] if row.outcome.reason else "",
        "emulated": row.emulated,
        "device_s": median(timing.device_s) if timing and timing.device_s else None,
        "samples": len(timing.device_s) if timing else 0,
        "first_device_s": search.first_device_s if search else None,
        "number": search.number if search else None,
        "origin": search.origin if search else "",
        "at_s": search.at_s if search else None,
        "compile_s": search.compile_s if search else None,
        "check_s": search.check_s if search else None,
        "measure_s": search.measure_s if search else None,
        "registers": found.registers if found else None,
        "stack_bytes": found.stack_bytes if found else None,
        "shared_bytes": found.shared_bytes if found else None,
        "worst_check": max((each.value / each.limit for each in row.checks if each.limit), default=None),
    }


def _target(summary: TargetSummary) -> dict[str, object]:
    decision = summary.decision
    return {
        "kernel": decision.target.kernel,
        "shape": decision.target.shape,
        "launch": decision.target.launch,
        "emulated": decision.emulated,
        "space_size": summary.declared,
        "legal": summary.legal,
        "tried": summary.tried,
        "evaluations": summary.evaluations,
        "search_wall_s": summary.wall_s,
        "wall_s": summary.total_s,
        "spent": asdict(summary.spent),
        "failures": dict(summary.failures),
        "decision": decision.verdict,
        "reason": decision.reason,
        "chosen": _values(decision.chosen),
        "default": _values(decision.default),
        "deployed": _values(decision.deployed),
        "gain": _interval(decision.gain),
        "gain_ci_fresh_process": _interval(decision.confirmed),
        "gain_over_deployed": _interval(decision.over_deployed),
        "floor": decision.floor,
        "device_s": _interval(decision.device_s),
        "default_device_s": _interval(decision.default_device_s),
        "course": [asdict(each) for each in summary.course],
        "effects": [{"field": each.field, "ratio": each.ratio, "best_s": dict(each.best)} for each in summary.effects],
        "finalists": [
            {"tiles": _values(each.choice), "device_s": _interval(each.device_s), "gain": _interval(each.gain),
             "tied": each.tied}
            for each in decision.finalists
        ],
    }  # fmt: skip


def _role(decision: Decision, finalist: Finalist) -> str:
    roles = (("default", decision.default), ("deployed", decision.deployed))
    return ", ".join(name for name, choice in roles if choice == finalist.choice)


def _values(choice: TileChoice | None) -> dict[str, object] | None:
    return None if choice is None else {"form": choice.kernel, **choice.values}


def _interval(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else asdict(estimate)


def _ratio(estimate: Estimate | None) -> str:
    return f"{estimate.median:.3f}x [{estimate.ci_low:.3f}, {estimate.ci_high:.3f}]" if estimate else ""
