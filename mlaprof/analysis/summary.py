"""A Run as one row a Point: estimates, speed-ups and what went wrong, all computed, never stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import median

from mlaprof.analysis.arms import Arm, arm_of, service_speedup, speedup
from mlaprof.analysis.capture import boundary_prices, break_even, piecewise_vs_breakable
from mlaprof.analysis.cells import Cell, CellStatus, Summary
from mlaprof.analysis.clocks import StepBudget, step_budget
from mlaprof.analysis.findings import breaches, findings
from mlaprof.analysis.floor import noise_floor, twin_trouble
from mlaprof.analysis.keys import identity, of_point
from mlaprof.analysis.ranks import rank_spread
from mlaprof.analysis.ratios import ModeMean
from mlaprof.analysis.seen import Seen, collect, parts
from mlaprof.analysis.stats import Estimate, geometric_mean
from mlaprof.analysis.stored import stored_budget
from mlaprof.errors import RunFileError
from mlaprof.facts import Timing
from mlaprof.machine.nvml import POWER_CAP, THROTTLE_REASONS, event_names
from mlaprof.records import Manifest, Run
from mlaprof.study import BASELINE, Boundary, Mode, Phase


def summarize(run: Run) -> Summary:
    """One Cell a Point key, in plan order. Raises RunFileError on a planned line, its key or a budget that is none."""
    manifest = run.manifest
    _require_sound(manifest)
    seen, twins = collect(run)
    arms, twin_arms = _arms(seen), _arms(twins)

    on_cpu = manifest.device == "cpu"
    cells = [_cell(key, each, arms, emulated=on_cpu) for key, each in seen.items()]
    by_key = {cell.key: cell for cell in cells}
    budget = stored_budget(manifest.study_yaml)
    troubles = twin_trouble(twins, seen)
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
        means=_means(cells),
        findings=findings(cells, budget),
        piecewise_vs_breakable=piecewise_vs_breakable(cells, arms),
        boundary_prices=boundary_prices(cells, arms),
        floor=noise_floor(twin_arms, {key: arm for key, arm in arms.items() if not by_key[key].tiles}),
        forced=manifest.forced,
    )


def _require_sound(manifest: Manifest) -> None:
    """What a run file says as text that only a reader of runs understands."""
    try:
        for line in manifest.planned:
            identity(parts(line)[2])
        stored_budget(manifest.study_yaml)
    except ValueError as error:
        raise RunFileError(
            f"damaged run: {' '.join(str(error).split())[:200]}",
            where=f"run {manifest.run_id}",
            hint="restore it from a copy, or sweep again",
        ) from error


def _arms(seen: Mapping[str, Seen]) -> dict[str, Arm]:
    return {key: arm for key, each in seen.items() if (arm := arm_of(key, each.timings))}


def _cell(key: str, seen: Seen, arms: Mapping[str, Arm], *, emulated: bool) -> Cell:
    who = of_point(seen.first.point) if seen.first else identity(key)
    leading, arm = seen.leading, arms.get(key)
    outcome: CellStatus = leading.outcome.status if leading else "missing"
    unsampled = outcome == "ok" and leading is not None and leading.kind == "timing" and arm is None
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
        reason=seen.reason,
        fault="" if leading is None else leading.outcome.fault,
        notes=(*seen.notes, "the timing holds no samples") if unsampled else seen.notes,
        memory=next((each.memory for each in seen.of("memory", "timing") if each.memory), None),
        graph=next((each.graph for each in seen.of("timing", "memory", "counts") if each.graph), None),
        counts=next((each.counts for each in seen.of("counts") if each.counts), None),
        gate=next((each.gate for each in seen.of("timing") if each.gate), None),
        resources=next((each.resources for each in seen.of("timing", "compile") if each.resources), ()),
        checks=next((each.checks for each in seen.of("timing", "memory") if each.checks), ()),
    )
    if arm is None:
        return cell
    cell = replace(cell, ranks=rank_spread(each.ranks for each in seen.timings.values()))
    return _with_ratios(
        _with_timings(cell, arm), arm, arms.get(f"{cell.place}/{BASELINE}"), arms.get(f"{cell.place}/{cell.way}")
    )


def _with_timings(cell: Cell, arm: Arm) -> Cell:
    """The cell with what its timings say, those of all processes together."""
    timings = tuple(arm.timings.values())
    first = timings[0]
    events = [mask for each in timings for mask in each.clock_event_reasons]
    seen_events = 0
    for mask in events:
        seen_events |= mask
    clocked = replace(
        cell,
        device_s=arm.device_s,
        submit_s=arm.submit_s,
        latency_s=arm.estimate("latency_s"),
        sustained_s=arm.sustained_s,
        warm_device_s=arm.estimate("warm_device_s"),
        processes=len(timings),
        cache=first.cache,
        clock=first.clock,
        first_call_s=median(each.first_call_s for each in timings),
        sm_clock_hz=_median(timings, "sm_clock_hz"),
        power_w=_median(timings, "power_w"),
        temperature_c=_median(timings, "temperature_c"),
        clock_events=event_names(seen_events),
        throttled=any(_throttled(each) for each in timings),
        power_capped=sum(bool(mask & POWER_CAP) for mask in events) / len(events) if events else 0.0,
        dropped_rounds=sum(each.dropped_rounds for each in timings),
        other_processes=max(each.other_processes for each in timings),
        gpus=tuple(dict.fromkeys(each.gpu for each in timings if each.gpu)),
        cpu_wait=max((each.cpu_wait for each in timings if each.cpu_wait is not None), default=None),
        unfilled=sum(each.unfilled for each in timings),
    )
    return replace(clocked, budget=_budget(clocked, timings))


def _median(timings: tuple[Timing, ...], series: str) -> float | None:
    samples = [sample for each in timings for sample in getattr(each, series)]
    return median(samples) if samples else None


def _throttled(timing: Timing) -> bool:
    """The clocks stayed down; where void rounds were not yet measured again, any round with them down says so."""
    if timing.stop is not None:
        return timing.throttled
    return any(mask & THROTTLE_REASONS for mask in timing.clock_event_reasons)


def _budget(cell: Cell, timings: tuple[Timing, ...]) -> StepBudget | None:
    """Sync waits are 0 where nothing counted them."""
    if cell.emulated or cell.sustained_s is None or cell.warm_device_s is None:
        return None
    stalls = [
        wall - on_cpu
        for each in timings
        if len(each.submit_s) == len(each.submit_cpu_s)
        for wall, on_cpu in zip(each.submit_s, each.submit_cpu_s, strict=True)
    ]
    waits = cell.counts.sync_wait_s if cell.counts and cell.counts.syncs else None
    return step_budget(
        cell.sustained_s.median, cell.warm_device_s.median, median(stalls) if stalls else 0.0, waits or 0.0
    )


def _with_ratios(cell: Cell, arm: Arm, baseline: Arm | None, default: Arm | None) -> Cell:
    return replace(
        cell,
        speedup=speedup(baseline, arm),
        submit_speedup=None if cell.emulated else speedup(baseline, arm, "submit_s"),
        step_speedup=service_speedup(baseline, arm),
        tiles_speedup=speedup(default, arm) if cell.tiles else None,
    )


def _means(cells: list[Cell]) -> tuple[ModeMean, ...]:
    groups: dict[tuple[str, Phase, int, Mode, Boundary, str, str], list[Cell]] = {}
    for cell in cells:
        if cell.speedup is not None and cell.key != f"{cell.place}/{BASELINE}":
            group = (cell.preset, cell.phase, cell.context_len, cell.mode, cell.boundary, cell.way, cell.tiles)
            groups.setdefault(group, []).append(cell)
    return tuple(
        ModeMean(*group, geometric_mean([cell.speedup for cell in members if cell.speedup]), _step_mean(members))
        for group, members in groups.items()
    )


def _step_mean(cells: list[Cell]) -> Estimate | None:
    """None unless every cell has one: a mean over other cells would stand beside it as if it were over these."""
    known = [cell.step_speedup for cell in cells if cell.step_speedup]
    return geometric_mean(known) if known and len(known) == len(cells) else None
