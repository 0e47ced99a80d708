"""The finalists of a search: what fresh processes measure beside the default, and what follows from it.

The first process chooses, the second confirms: of many configurations the one that looks best has had luck, and a
gain counts only where it is seen again by a process that had no part in choosing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from mlaprof.analysis.arms import Arm, arm_of, speedup
from mlaprof.analysis.floor import LEAST_FLOOR
from mlaprof.analysis.stats import Estimate
from mlaprof.records import Device, KernelJob, KernelMeasurement, KernelPoint
from mlaprof.study import MeasureSpec, TileChoice, TuneTarget
from mlaprof.tuning.candidates import form_of, point_of, provider_of

MOST = 8  # of the search's best
PROCESSES = 2  # one that chooses, one that confirms
LEAST_GAIN = 0.01  # what is not worth a configuration of its own
TIE = 1.0  # a speed-up whose interval holds this is none

Verdict = Literal["tuned", "keep-default", "not-measured"]


@dataclass(frozen=True)
class Finalist:
    """One configuration beside the default: speed over it, above 1 is faster; None where the two have no rounds."""

    choice: TileChoice
    device_s: Estimate | None
    gain: Estimate | None
    tied: bool  # with the fastest finalist: their own ratio is not known to differ from 1


@dataclass(frozen=True)
class Decision:
    """What tuning a target came to, and why."""

    target: TuneTarget
    verdict: Verdict
    reason: str
    chosen: TileChoice | None  # the best found, whether it is accepted or not
    default: TileChoice
    deployed: TileChoice | None
    gain: Estimate | None  # of the best over the default, both processes
    confirmed: Estimate | None  # the same by the second process alone
    over_deployed: Estimate | None
    device_s: Estimate | None
    default_device_s: Estimate | None
    floor: float
    finalists: tuple[Finalist, ...]  # fastest first
    evaluations: int
    emulated: bool


def default_point(target: TuneTarget, default: TileChoice, *, twin: bool = False) -> KernelPoint:
    """The launcher's own choice, asked for as a layer does: by naming no tiles."""
    provider = provider_of(default.kernel)
    return KernelPoint(
        kernel=target.kernel, shape=target.shape, provider=provider, launch=target.launch, tiles=None, twin=twin
    )


def final_points(
    target: TuneTarget, rows: Iterable[KernelMeasurement], default: TileChoice, deployed: TileChoice | None
) -> tuple[KernelPoint, ...]:
    """The default, its A/A twin, the deployed configuration and the search's best; nothing where none has a time."""
    timed = {each.point.key: each for each in rows if each.timing is not None and each.outcome.usable}
    ranked = sorted(timed.values(), key=lambda each: median(each.timing.device_s if each.timing else ()))
    if not ranked:
        return ()
    chosen = [each.point for each in ranked[:MOST]]
    if deployed is not None:
        chosen.insert(0, point_of(target, deployed))
    points = (default_point(target, default), default_point(target, default, twin=True), *chosen)
    return tuple({point.key: point for point in points}.values())


def final_jobs(points: Sequence[KernelPoint], device: Device, measure: MeasureSpec, seed: int) -> tuple[KernelJob, ...]:
    """A job a process; the second has inputs of its own, so that every finalist is proven on two."""
    return tuple(
        KernelJob(process=process, device=device, seed=seed + process, measure=measure, points=tuple(points))
        for process in range(PROCESSES)
    )


def decide(
    target: TuneTarget,
    searched: Sequence[KernelMeasurement],
    finals: Sequence[KernelMeasurement],
    default: TileChoice,
    deployed: TileChoice | None,
) -> Decision:
    """What the rows of a target say; the same for the same rows."""
    arms = _arms(finals)
    baseline, twin = (arms.get(default_point(target, default, twin=each).key) for each in (False, True))
    keys = {each.point.key: each.point for each in finals if each.point.tiles is not None}
    finalists = {key: arm for key in keys if (arm := arms.get(key)) is not None}
    evaluations = sum(1 for each in searched if each.search is not None and each.search.check_s > 0)
    emulated = any(each.emulated for each in (*searched, *finals))

    def decision(verdict: Verdict, reason: str, best: str | None = None, floor: float = 0.0) -> Decision:
        arm = finalists.get(best or "")
        ours = None if deployed is None else finalists.get(point_of(target, deployed).key)
        return Decision(
            target=target,
            verdict=verdict,
            reason=reason,
            chosen=_choice(keys[best]) if best else None,
            default=default,
            deployed=deployed,
            gain=speedup(baseline, arm),
            confirmed=speedup(_of(baseline, 1), _of(arm, 1)),
            over_deployed=speedup(ours, arm),
            device_s=arm.device_s if arm else None,
            default_device_s=baseline.device_s if baseline else None,
            floor=floor,
            finalists=_ranked(finalists, keys, baseline),
            evaluations=evaluations,
            emulated=emulated,
        )

    if baseline is None:
        return decision("not-measured", _why_not(searched, finals, target, default))
    floor = _floor(baseline, twin)
    if floor is None:
        return decision("not-measured", "the default's twin was not timed, so that no gain can be told from noise")
    least = 1.0 + max(LEAST_GAIN, floor)
    first = {key: arm for key, arm in finalists.items() if 0 in arm.timings}
    if not first:
        return decision("keep-default", "no other configuration ran", floor=floor)
    best = min(first, key=lambda key: median(first[key].timings[0].device_s))
    if deployed is not None and (ours := point_of(target, deployed).key) in first and ours != best:
        over = speedup(finalists[ours], finalists[best])
        if over is None or over.ci_low <= least:
            best = ours  # what is deployed stays, unless it is beaten beyond noise itself
    if keys[best].tiles == default.values and form_of(keys[best]) == default.kernel:
        return decision("keep-default", "the default is the fastest found", best, floor)
    chose = speedup(_of(baseline, 0), _of(finalists[best], 0))
    confirmed = speedup(_of(baseline, 1), _of(finalists[best], 1))
    if confirmed is None or chose is None:
        return decision("keep-default", "the fresh process could not measure it", best, floor)
    for who, found in (("the process that chose it", chose), ("the fresh process", confirmed)):
        if found.ci_low <= least:
            why = f"in {who} the gain is {found.median:.3f}x, at least {found.ci_low:.3f}x, not beyond {least:.3f}x"
            return decision("keep-default", why, best, floor)
    return decision("tuned", f"at least {confirmed.ci_low:.3f}x in a fresh process, beyond {least:.3f}x", best, floor)


def _arms(finals: Iterable[KernelMeasurement]) -> dict[str, Arm]:
    grouped: dict[str, dict[int, KernelMeasurement]] = {}
    for each in finals:
        grouped.setdefault(each.point.key, {})[each.process] = each
    found = {key: arm_of(key, timings) for key, timings in grouped.items()}
    return {key: arm for key, arm in found.items() if arm is not None}


def _of(arm: Arm | None, process: int) -> Arm | None:
    """The arm as one process saw it."""
    if arm is None or process not in arm.timings:
        return None
    return Arm(f"{arm.key}#{process}", {process: arm.timings[process]})


def _floor(baseline: Arm, twin: Arm | None) -> float | None:
    """What the default and its twin differed by in the worse process, at least LEAST_FLOOR; None without a twin."""
    ratios = [speedup(_of(baseline, process), _of(twin, process)) for process in baseline.timings]
    known = [abs(math.log(ratio.median)) for ratio in ratios if ratio is not None]
    return max(LEAST_FLOOR, *known) if known else None


def _ranked(finalists: dict[str, Arm], keys: dict[str, KernelPoint], baseline: Arm | None) -> tuple[Finalist, ...]:
    order = sorted(finalists, key=lambda key: finalists[key].device_s.median)
    found = []
    for key in order:
        arm = finalists[key]
        apart = speedup(finalists[order[0]], arm)
        tied = apart is not None and apart.ci_low <= TIE <= apart.ci_high
        found.append(Finalist(_choice(keys[key]), arm.device_s, speedup(baseline, arm), tied))
    return tuple(found)


def _choice(point: KernelPoint) -> TileChoice:
    return TileChoice(kernel=form_of(point), values=point.tiles or {})


def _why_not(
    searched: Sequence[KernelMeasurement],
    finals: Sequence[KernelMeasurement],
    target: TuneTarget,
    default: TileChoice,
) -> str:
    key = default_point(target, default).key
    ended = next((each.outcome for each in finals if each.point.key == key and not each.outcome.usable), None)
    if ended is not None:
        return f"the default was not timed: {ended.status} at {ended.stage}: {ended.reason.splitlines()[0]}"
    if any(each.outcome.status == "compiled" for each in searched):
        return "compiled only: there is no GPU here, and no time without one"
    if not finals and any(each.timing is not None for each in searched):
        return "interrupted before its finalists were measured; --resume goes on"
    return "no configuration was timed"
