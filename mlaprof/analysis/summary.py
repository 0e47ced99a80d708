"""A Run as one row a Point: estimates, speed-ups and what went wrong, all computed, never stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

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
from mlaprof.facts import StepCounts, Timing
from mlaprof.machine.nvml import POWER_CAP, THROTTLE_REASONS, event_names
from mlaprof.records import Manifest, Run
from mlaprof.study import BASELINE, Boundary, BudgetSpec, Mode, Phase


def summarize(run: Run) -> Summary:
    """One Cell a Point key, in plan order. Raises RunFileError on a planned line, its key or a budget that is none."""
    manifest = run.manifest
    budget = _sound_budget(manifest)
    seen, twins = collect(run)
    arms, twin_arms = _arms(seen), _arms(twins)

    on_cpu = manifest.device == "cpu"
    troubles = twin_trouble(twins, seen)
    by_key = {
        key: _cell(key, each, arms, budget, emulated=on_cpu, twin_trouble=troubles.get(key, ""))
        for key, each in seen.items()
    }
    cells = [replace(cell, break_even=paid) if (paid := break_even(cell, by_key)) else cell for cell in by_key.values()]
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


def _sound_budget(manifest: Manifest) -> BudgetSpec:
    """The budget, where all is sound that a run file says as text that only a reader of runs understands."""
    try:
        for line in manifest.planned:
            identity(parts(line)[2])
        return stored_budget(manifest.study_yaml)
    except ValueError as error:
        raise RunFileError(
            f"damaged run: {' '.join(str(error).split())[:200]}",
            where=f"run {manifest.run_id}",
            hint="restore it from a copy, or sweep again",
        ) from error


def _arms(seen: Mapping[str, Seen]) -> dict[str, Arm]:
    return {key: arm for key, each in seen.items() if (arm := arm_of(key, each.timings))}


def _cell(
    key: str, seen: Seen, arms: Mapping[str, Arm], budget: BudgetSpec, *, emulated: bool, twin_trouble: str
) -> Cell:
    who = of_point(seen.first.point) if seen.first else identity(key)
    leading, arm = seen.leading, arms.get(key)
    outcome: CellStatus = leading.outcome.status if leading else "missing"
    unsampled = outcome == "ok" and leading is not None and leading.kind == "timing" and arm is None
    counts = next((each.counts for each in seen.of("counts") if each.counts), None)
    emulated = leading.emulated if leading else emulated
    place = f"{who.preset}/{who.phase}/t{who.num_tokens}/ctx{who.context_len}"
    timed = (
        {
            **_times(arm, counts, emulated=emulated),
            **_ratios(
                arm,
                arms.get(f"{place}/{BASELINE}"),
                arms.get(f"{place}/{who.way}") if who.tiles else None,
                emulated=emulated,
            ),
            "ranks": rank_spread(each.ranks for each in seen.timings.values()),
        }
        if arm
        else {}
    )
    return Cell(
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
        emulated=emulated,
        stage="" if outcome in ("ok", "compiled", "missing") or leading is None else leading.outcome.stage,
        reason=seen.reason,
        fault="" if leading is None else leading.outcome.fault,
        notes=(*seen.notes, "the timing holds no samples") if unsampled else seen.notes,
        memory=next((each.memory for each in seen.of("memory", "timing") if each.memory), None),
        graph=next((each.graph for each in seen.of("timing", "memory", "counts") if each.graph), None),
        counts=counts,
        breaches=breaches(counts, who.mode, budget),
        gate=next((each.gate for each in seen.of("timing") if each.gate), None),
        resources=next((each.resources for each in seen.of("timing", "compile") if each.resources), ()),
        checks=next((each.checks for each in seen.of("timing", "memory") if each.checks), ()),
        twin_trouble=twin_trouble,
        **timed,
    )


def _times(arm: Arm, counts: StepCounts | None, *, emulated: bool) -> dict[str, Any]:
    """Fields of a Cell: what its timings say, those of all processes together."""
    timings = tuple(arm.timings.values())
    first = timings[0]
    events = [mask for each in timings for mask in each.clock_event_reasons]
    seen_events = 0
    for mask in events:
        seen_events |= mask
    sustained_s, warm_device_s = arm.sustained_s, arm.estimate("warm_device_s")
    return {
        "device_s": arm.device_s,
        "submit_s": arm.submit_s,
        "latency_s": arm.estimate("latency_s"),
        "sustained_s": sustained_s,
        "warm_device_s": warm_device_s,
        "budget": None if emulated else _budget(sustained_s, warm_device_s, counts, timings),
        "processes": len(timings),
        "cache": first.cache,
        "clock": first.clock,
        "first_call_s": median(each.first_call_s for each in timings),
        "sm_clock_hz": _median(timings, "sm_clock_hz"),
        "power_w": _median(timings, "power_w"),
        "temperature_c": _median(timings, "temperature_c"),
        "clock_events": event_names(seen_events),
        "throttled": any(_throttled(each) for each in timings),
        "power_capped": sum(bool(mask & POWER_CAP) for mask in events) / len(events) if events else 0.0,
        "dropped_rounds": sum(each.dropped_rounds for each in timings),
        "other_processes": max(each.other_processes for each in timings),
        "gpus": tuple(dict.fromkeys(each.gpu for each in timings if each.gpu)),
        "cpu_wait": max((each.cpu_wait for each in timings if each.cpu_wait is not None), default=None),
        "unfilled": sum(each.unfilled for each in timings),
    }


def _median(timings: tuple[Timing, ...], series: str) -> float | None:
    samples = [sample for each in timings for sample in getattr(each, series)]
    return median(samples) if samples else None


def _throttled(timing: Timing) -> bool:
    """The clocks stayed down; where void rounds were not yet measured again, any round with them down says so."""
    if timing.stop is not None:
        return timing.throttled
    return any(mask & THROTTLE_REASONS for mask in timing.clock_event_reasons)


def _budget(
    sustained_s: Estimate | None, warm_device_s: Estimate | None, counts: StepCounts | None, timings: tuple[Timing, ...]
) -> StepBudget | None:
    """Sync waits are 0 where nothing counted them."""
    if sustained_s is None or warm_device_s is None:
        return None
    stalls = [
        wall - on_cpu
        for each in timings
        if len(each.submit_s) == len(each.submit_cpu_s)
        for wall, on_cpu in zip(each.submit_s, each.submit_cpu_s, strict=True)
    ]
    waits = counts.sync_wait_s if counts and counts.syncs else None
    return step_budget(sustained_s.median, warm_device_s.median, median(stalls) if stalls else 0.0, waits or 0.0)


def _ratios(arm: Arm, baseline: Arm | None, default: Arm | None, *, emulated: bool) -> dict[str, Estimate | None]:
    """Fields of a Cell: its speed-ups."""
    return {
        "speedup": speedup(baseline, arm),
        "submit_speedup": None if emulated else speedup(baseline, arm, "submit_s"),
        "step_speedup": service_speedup(baseline, arm),
        "tiles_speedup": speedup(default, arm),
    }


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
