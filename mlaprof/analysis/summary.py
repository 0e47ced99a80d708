"""A Run as one row a Point: estimates, speed-ups and what went wrong, all computed, never stored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from statistics import median

from mlaprof.analysis.arms import Arm, arm_of, speedup
from mlaprof.analysis.capture import boundary_prices, break_even, piecewise_vs_breakable
from mlaprof.analysis.cells import Cell, CellStatus, Summary
from mlaprof.analysis.findings import breaches, findings
from mlaprof.analysis.floor import noise_floor, twin_trouble
from mlaprof.analysis.ratios import ModeMean
from mlaprof.analysis.stats import Bootstrap, geometric_mean
from mlaprof.analysis.stored import stored_budget
from mlaprof.machine.nvml import event_names
from mlaprof.records import Kind, Measurement, Point, Run
from mlaprof.study import BASELINE, BOUNDARIES, MODES, PHASES, PR_BOUNDARY, Boundary, Mode, Phase

THROTTLE_REASONS = 0x08 | 0x20 | 0x40 | 0x80  # NVML: hardware slowdown, software or hardware thermal, power brake

_KEY = re.compile(
    rf"(?P<preset>.+)/(?P<phase>{'|'.join(PHASES)})/t(?P<num_tokens>\d+)/ctx(?P<context_len>\d+)"
    rf"/(?P<way>(?P<mode>{'|'.join(MODES)})(?:@(?P<boundary>{'|'.join(BOUNDARIES)}))?)(?:/(?P<tiles>.+?))??(?P<twin>/aa)?"
)


@dataclass(frozen=True)
class _Identity:
    """What a key says; the tiles of a Point that was never measured are known by their label alone."""

    preset: str
    phase: Phase
    num_tokens: int
    context_len: int
    mode: Mode
    boundary: Boundary
    way: str
    tiles: str


def summarize(run: Run) -> Summary:
    """One Cell a Point key, in plan order. Raises ValueError on a planned key or a budget that is not one."""
    manifest = run.manifest
    expected: dict[str, tuple[str, ...]] = {}
    for entry in manifest.planned:
        kind, _, key = entry.partition(" ")
        if not _is_twin(key):
            expected[key] = (*expected.get(key, ()), kind)
    seen: dict[str, dict[Kind, Measurement]] = {}
    twins: dict[str, Measurement] = {}
    for measurement in run.measurements:  # a later measurement of the same kind replaces an earlier one
        if measurement.point.twin:
            twins[measurement.point.key] = measurement
        else:
            seen.setdefault(measurement.point.key, {})[measurement.kind] = measurement
    arms = {key: arm for key, kinds in seen.items() if (arm := arm_of(key, kinds.get("timing")))}

    on_cpu = manifest.device == "cpu"
    cells = [
        _cell(key, seen.get(key, {}), expected.get(key, ()), arms, emulated=on_cpu)
        for key in dict.fromkeys([*expected, *seen])
    ]
    by_key = {cell.key: cell for cell in cells}
    budget = stored_budget(manifest.study_yaml)
    troubles = twin_trouble(twins.values(), {key: kinds["timing"] for key, kinds in seen.items() if "timing" in kinds})
    cells = [
        replace(
            cell,
            break_even=break_even(cell, by_key),
            breaches=breaches(cell.counts, cell.mode, budget),
            twin_trouble=troubles.get(cell.key, ""),
        )
        for cell in cells
    ]
    return Summary(
        run_id=manifest.run_id,
        created_at=manifest.created_at,
        command=manifest.command,
        device=manifest.device,
        processor=manifest.environment.processor(manifest.device),
        cells=tuple(cells),
        means=_means(cells, arms),
        findings=findings(cells, budget),
        piecewise_vs_breakable=piecewise_vs_breakable(cells, arms),
        boundary_prices=boundary_prices(cells, arms),
        floor=noise_floor(twins.values(), arms),
    )


def _is_twin(key: str) -> bool:
    found = _KEY.fullmatch(key)
    return found is not None and found["twin"] is not None


def _identity(key: str) -> _Identity:
    """The parts of a Point key. Raises ValueError on anything else."""
    found = _KEY.fullmatch(key)
    if not found:
        raise ValueError(f"key: expected preset/phase/tN/ctxN/mode[@boundary][/tiles][/aa], got {key!r}")
    return _Identity(
        preset=found["preset"],
        phase=next(phase for phase in PHASES if phase == found["phase"]),
        num_tokens=int(found["num_tokens"]),
        context_len=int(found["context_len"]),
        mode=next(mode for mode in MODES if mode == found["mode"]),
        boundary=next((each for each in BOUNDARIES if each == found["boundary"]), PR_BOUNDARY),
        way=found["way"],
        tiles=found["tiles"] or "",
    )


def _of_point(point: Point) -> _Identity:
    return _Identity(
        preset=point.preset,
        phase=point.phase,
        num_tokens=point.num_tokens,
        context_len=point.context_len,
        mode=point.mode,
        boundary=point.boundary,
        way=point.way,
        tiles=point.tiles_label,
    )


def _cell(
    key: str,
    kinds: Mapping[Kind, Measurement],
    expected: tuple[str, ...],
    arms: Mapping[str, Arm],
    *,
    emulated: bool,
) -> Cell:
    first = next(iter(kinds.values()), None)
    who = _of_point(first.point) if first else _identity(key)
    leading = _leading(kinds, expected)
    outcome: CellStatus = leading.outcome.status if leading else "missing"
    arm = arms.get(key)
    notes = [*_notes(kinds, expected, leading)]
    if outcome == "ok" and leading is kinds.get("timing") and arm is None:
        notes.append("the timing holds no samples")
    cell = Cell(
        key=key,
        preset=who.preset,
        phase=who.phase,
        num_tokens=who.num_tokens,
        context_len=who.context_len,
        mode=who.mode,
        boundary=who.boundary,
        way=who.way,
        tiles=who.tiles,
        outcome=outcome,
        emulated=leading.emulated if leading else emulated,
        stage="" if outcome in ("ok", "compiled", "missing") or leading is None else leading.outcome.stage,
        reason=leading.outcome.reason if leading else "the run ended before this was measured",
        notes=tuple(notes),
        memory=next((each.memory for each in _ordered(kinds, "memory", "timing") if each.memory), None),
        graph=next((each.graph for each in _ordered(kinds, "timing", "memory", "counts") if each.graph), None),
        counts=next((each.counts for each in _ordered(kinds, "counts") if each.counts), None),
        gate=next((each.gate for each in _ordered(kinds, "timing") if each.gate), None),
        resources=next((each.resources for each in _ordered(kinds, "timing", "compile") if each.resources), ()),
        checks=next((each.checks for each in _ordered(kinds, "timing", "memory") if each.checks), ()),
    )
    if arm is None:
        return cell
    return _with_timing(cell, arm, arms.get(f"{cell.place}/{BASELINE}"), arms.get(f"{cell.place}/{cell.way}"))


def _ordered(kinds: Mapping[Kind, Measurement], *order: Kind) -> list[Measurement]:
    return [kinds[kind] for kind in order if kind in kinds]


def _leading(kinds: Mapping[Kind, Measurement], expected: tuple[str, ...]) -> Measurement | None:
    """The measurement whose outcome is the cell's. A planned timing that is absent is not stood in for."""
    if "timing" in kinds or "timing" in expected:
        return kinds.get("timing")
    return next(iter(_ordered(kinds, "compile", "memory", "counts", "dispatch")), None)


def _notes(kinds: Mapping[Kind, Measurement], expected: tuple[str, ...], leading: Measurement | None) -> Iterable[str]:
    for kind, measurement in kinds.items():
        if measurement is not leading and measurement.outcome.status in ("failed", "incorrect", "skipped"):
            reason = f": {measurement.outcome.reason}" if measurement.outcome.reason else ""
            yield f"{kind} {measurement.outcome.status}{reason}"
    for absent in expected:
        if absent not in kinds and leading is not None:
            yield f"{absent} missing: the run ended before it was measured"


def _with_timing(cell: Cell, arm: Arm, baseline: Arm | None, default: Arm | None) -> Cell:
    timing = arm.timing
    seen_events = reduce(or_, timing.clock_event_reasons, 0)
    faster, tiles_faster = speedup(baseline, arm), speedup(default, arm)
    submit_faster = None if cell.emulated else speedup(baseline, arm, "submit_s")
    return replace(
        cell,
        device_s=arm.device_s.estimate,
        submit_s=arm.submit_s.estimate if arm.submit_s else None,
        speedup=faster.estimate if faster else None,
        submit_speedup=submit_faster.estimate if submit_faster else None,
        tiles_speedup=tiles_faster.estimate if tiles_faster and cell.tiles else None,
        cache=timing.cache,
        clock=timing.clock,
        first_call_s=timing.first_call_s,
        sm_clock_hz=median(timing.sm_clock_hz) if timing.sm_clock_hz else None,
        power_w=median(timing.power_w) if timing.power_w else None,
        temperature_c=median(timing.temperature_c) if timing.temperature_c else None,
        clock_events=event_names(seen_events),
        throttled=bool(seen_events & THROTTLE_REASONS),
        unfilled=timing.unfilled,
    )


def _means(cells: list[Cell], arms: Mapping[str, Arm]) -> tuple[ModeMean, ...]:
    groups: dict[tuple[str, Phase, int, Mode, Boundary, str, str], list[Bootstrap]] = {}
    for cell in cells:
        baseline = arms.get(f"{cell.place}/{BASELINE}")
        if not cell.timed or arms[cell.key] is baseline:
            continue
        faster = speedup(baseline, arms[cell.key])
        if faster is not None:
            group = (cell.preset, cell.phase, cell.context_len, cell.mode, cell.boundary, cell.way, cell.tiles)
            groups.setdefault(group, []).append(faster)
    return tuple(ModeMean(*group, geometric_mean(ratios).estimate) for group, ratios in groups.items())
