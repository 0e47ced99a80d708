"""An A/A self-test in the terminal, and as JSON for other programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console

from mlaprof.analysis.noise import STANDARD, Noise, Step
from mlaprof.analysis.stats import Estimate
from mlaprof.analysis.trials import LEAST_FOUND, MOST_FALSE, SEEN_PERCENTILE, THRESHOLD, Kind, Trials
from mlaprof.records import Device, Environment, Measurement
from mlaprof.report.columns import Column, print_columns
from mlaprof.report.lines import print_wrapped
from mlaprof.report.units import seconds
from mlaprof.study import PRESETS
from mlaprof.version import __version__

KINDS: dict[Kind, str] = {"across": "across runs", "across_eager": "across runs, eager", "within": "within a run"}


@dataclass(frozen=True)
class Made:
    """How a self-test was made."""

    command: tuple[str, ...]
    created_at: str  # UTC, ISO 8601
    device: Device
    environment: Environment

    @property
    def emulated(self) -> bool:
        return self.device == "cpu"


def print_noise(noise: Noise, made: Made, console: Console) -> None:
    """The steps and what was put into them, what the verdicts made of it, and whether that is what is promised."""
    processor = made.environment.processor(made.device)
    first = noise.steps[0]
    stamp = "EMULATED " if made.emulated else ""
    size = f"{first.processes} processes of {first.rounds} rounds"
    what = f"{first.point.preset} {first.point.phase}"
    print_wrapped(
        f"{stamp}A/A self-test: {what}, {size}, {processor}", console, "bold yellow" if made.emulated else "bold"
    )
    print_columns(_step_columns(noise, ascii_only=console.options.ascii_only), console)
    print_wrapped("\nWhat the verdicts made of it", console, "bold")
    print_columns(_trial_columns(noise.trials), console)
    for sentence in _sentences(noise, made):
        print_wrapped(sentence, console)
    for trials in noise.trials:
        for broken in _broken(trials):
            print_wrapped(
                f"NOT held {KINDS[trials.kind]}: {broken}", console, "yellow" if made.emulated else "bold red"
            )
    if noise.holds:
        print_wrapped("held: all that is promised", console, "green")
    else:
        print_wrapped(_next(noise, made), console)


def noise_json(noise: Noise, made: Made, measurements: Sequence[Measurement]) -> str:
    """One JSON object. Percents by name, else ratios and seconds; what is not known is null.

    measurements  what the noise was computed from, kept as records: samples are float32 in base64

    The figures on top are of the comparison that gates, across runs, or within one where no other was possible.
    """
    gating = noise.gating
    found = {each.share: each.slower.share for each in gating.injections}
    between = noise.floor.between
    return json.dumps(
        {
            "floor_pct": 100 * noise.floor.ratio,
            "floor_between_pct": None if between is None else 100 * between,
            "comparison": gating.kind,
            "false_verdicts": gating.false.found,
            "n": gating.false.n,
            "false_verdict_rate": gating.false.share,
            "false_verdict_rate_upper": gating.false.upper,
            "detect_1pct": found.get("0.01"),
            "detect_2pct": found.get("0.02"),
            "smallest_change_pct": 100 * gating.smallest_change,
            "holds": noise.holds,
            "promise": {"false_verdict_rate": MOST_FALSE, "detect": LEAST_FOUND},
            "emulated": made.emulated,
            "device": made.device,
            "processor": made.environment.processor(made.device),
            "command": list(made.command),
            "date": made.created_at,
            "mlaprof_version": __version__,
            "presets": {"standard": STANDARD.model_dump(mode="json"), **{k: v for k, v in PRESETS.items() if v}},
            "floor_pairs": noise.floor.cells,
            "across": _trials_object(noise.across),
            "across_eager": _trials_object(noise.across_eager),
            "within": _trials_object(noise.within),
            "points": [_step_object(step) for step in noise.steps],
            "environment": made.environment.model_dump(mode="json"),
            "measurements": [each.model_dump(mode="json") for each in measurements],
        },
        indent=2,
        allow_nan=False,
    )


def _trials_object(trials: Trials | None) -> Mapping[str, object] | None:
    if trials is None:
        return None
    return {
        "processes": trials.processes,
        "rounds": trials.rounds,
        "threshold": THRESHOLD,
        "limit": trials.limit,
        "false_verdicts": trials.false.found,
        "n": trials.false.n,
        "false_verdict_rate": trials.false.share,
        "false_verdict_rate_upper": trials.false.upper,
        "verdicts": trials.verdicts,
        "smallest_change_pct": 100 * trials.smallest_change,
        "injections": [
            {
                "share": each.share,
                "threshold": each.threshold,
                "limit": each.limit,
                "found": each.slower.found,
                "n": each.slower.n,
                "detection_rate": each.slower.share,
            }
            for each in trials.injections
        ],
        "holds": trials.holds,
    }


def _step_object(step: Step) -> Mapping[str, object]:
    return {
        "key": step.point.key,
        "device_s": step.device_s,
        "processes": step.processes,
        "rounds": step.rounds,
        "twin": asdict(step.twin),
        "added": {
            share: {"asked": float(share), "spin_s": each.spin_s, "ratio": asdict(each.ratio)}
            for share, each in step.added.items()
        },
    }


def _step_columns(noise: Noise, *, ascii_only: bool) -> list[Column]:
    shares = list(dict.fromkeys(share for step in noise.steps for share in step.added))
    sign = "+-" if ascii_only else "±"
    return [
        Column("mode", 0, [step.point.way for step in noise.steps], right=False),
        Column("tokens", 0, [str(step.point.num_tokens) for step in noise.steps]),
        Column("device", 0, [seconds(step.device_s) for step in noise.steps]),
        Column("twin", 0, [_change(step.twin, sign) for step in noise.steps]),
        *(
            Column(f"+{_percent(float(share))} is", 0, [_change(step.added[share].ratio, sign) for step in noise.steps])
            for share in shares
        ),
    ]


def _trial_columns(every: Sequence[Trials]) -> list[Column]:
    shares = list(dict.fromkeys(each.share for trials in every for each in trials.injections))
    found = {(trials.kind, each.share): each for trials in every for each in trials.injections}
    return [
        Column("comparison", 0, [KINDS[each.kind] for each in every], right=False),
        Column("wrong", 0, [f"{each.false.found} of {each.false.n}" for each in every]),
        Column("95% below", 1, [_percent(each.false.upper) for each in every]),
        *(
            Column(
                f"+{_percent(float(share))} found",
                0,
                [_percent(found[each.kind, share].slower.share) for each in every],
            )
            for share in shares
        ),
        Column("sees", 0, [f"+{100 * each.smallest_change:.2f}%" for each in every]),
    ]


def _sentences(noise: Noise, made: Made) -> Iterator[str]:
    floor, gating = noise.floor, noise.gating
    between = "" if floor.between is None else f", {100 * floor.between:.2f}% between processes"
    yield f"floor {100 * floor.ratio:.2f}% in a run (n={floor.cells}){between}"
    judged = " and ".join(f"{each.threshold:g} (+{_percent(float(each.share))})" for each in gating.injections)
    yield f"judged at the --threshold of {judged}, since a change of just the threshold is on the line"
    raised = [each for each in gating.injections if each.limit > each.threshold]
    if raised:
        limit = max(each.limit for each in raised)
        yield f"the floor hides what is smaller than {100 * limit:.2f}% {KINDS[gating.kind]}"
    yield (
        f"sees: slowed by so much, {SEEN_PERCENTILE:g} of 100 unchanged steps would come out SLOWER at the default "
        f"threshold of {_percent(THRESHOLD)}"
    )
    side = f"{gating.processes} processes of {gating.rounds} rounds"
    yield (
        f"across runs: {side} against as many others, as two runs at the standard preset. within a run: two arms of "
        "the same processes, paired. Trials draw from the same samples, so they are not independent of each other."
    )
    if noise.across_eager is not None:
        yield (
            "eager: fresh processes start the kernels of a stream at different intervals, so no small change of an "
            "eager step is promised to be found across runs; within a run it is"
        )
    if noise.across is None:
        yield (
            f"across runs was not tried: it needs {2 * STANDARD.processes} processes, and there are "
            f"{min(step.processes for step in noise.steps)}"
        )
    if gating.rounds < STANDARD.min_samples:
        yield f"a run at the standard preset has {STANDARD.min_samples} rounds a process at least, not {gating.rounds}"
    if made.emulated:
        yield "emulated: this is the noise of the CPU emulation, and says nothing of a GPU"


def _broken(trials: Trials) -> Iterator[str]:
    if trials.false.share > MOST_FALSE:
        wrong = _percent(trials.false.share)
        yield f"{wrong} of the verdicts on an unchanged step are wrong, {_percent(MOST_FALSE)} at most is promised"
    for each in trials.injections if trials.kind != "across_eager" else ():
        if not each.holds:
            yield (
                f"+{_percent(float(each.share))} was found in {_percent(each.slower.share)}, "
                f"{_percent(LEAST_FOUND[each.share])} is promised"
            )


def _next(noise: Noise, made: Made) -> str:
    wrong = any(each.false.share > MOST_FALSE for each in noise.trials)
    what = "do not gate on this machine as it is" if wrong else "changes this small need more here"
    where = "stop what else runs on its cores" if made.emulated else "look at `mlaprof doctor` and `nvidia-smi`"
    return (
        f"next: {what}: quiet it ({where}) and try again, or sweep with --rigorous and compare at a larger --threshold"
    )


def _change(ratio: Estimate, sign: str) -> str:
    """`+0.98% ±0.06`."""
    return f"{100 * (ratio.median - 1):+.2f}% {sign}{50 * (ratio.ci_high - ratio.ci_low):.2f}"


def _percent(share: float) -> str:
    """`0.5%`, `99%`: no more digits than it takes."""
    return f"{100 * share:.3g}%"
