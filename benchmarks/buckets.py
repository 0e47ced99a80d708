"""Puts chosen capture sizes to the test: the best list at the memory of each engine's default, beside that default.

python benchmarks/buckets.py predict BASE                  the comparison as predicted, a Markdown table
python benchmarks/buckets.py measure BASE --samples DIR    times all lists of a trace in one process, a process a trace
python benchmarks/buckets.py report BASE --samples DIR     the tables of docs/buckets.md and buckets-h100.json
python benchmarks/buckets.py scale BASE                    seconds and bytes of a trace of 10^6 steps, 8192 candidates

BASE is a run of `mlaprof sweep` with split_eager and a mode of piecewise graphs, with a memory ledger. Everything is
done twice: for steps that last as long as the host or the device takes, and for those that the device alone sets.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from buckets_tables import filled, table  # noqa: E402

from mlaprof import store  # noqa: E402
from mlaprof.analysis.stats import BLOCK, bootstrap, paired  # noqa: E402
from mlaprof.analysis.stored import stored_layers  # noqa: E402
from mlaprof.analysis.summary import summarize  # noqa: E402
from mlaprof.config.load import study_from_resolved  # noqa: E402
from mlaprof.plan import expand  # noqa: E402
from mlaprof.records import Device, Job, Run  # noqa: E402
from mlaprof.sizing.check import Stratum, predicted_step, strata, study_under  # noqa: E402
from mlaprof.sizing.choose import Baseline, Choice, Limits, choose  # noqa: E402
from mlaprof.sizing.costs import Clock, Costs, costs_of  # noqa: E402
from mlaprof.sizing.engines import ENGINES, default_sizes  # noqa: E402
from mlaprof.sizing.named import NAMED, requests_of  # noqa: E402
from mlaprof.sizing.scheduler import Scheduler, run  # noqa: E402
from mlaprof.sizing.score import Expected  # noqa: E402

ARTIFACT = ROOT / "results" / "reference" / "buckets-h100.json"
PAGE = ROOT / "docs" / "buckets.md"
CLOCK_LAYERS = 61
MAX_BATCH_SIZE = 256
STRATA = 16  # steps that stand for a trace, the same under every list


# Where the best list took more memory than its default, the best at this share of its memory is tried.
SHARES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)

CLOCKS: tuple[Clock, ...] = ("step", "device")
ROUNDS: dict[Clock, int] = {"device": 16, "step": 9}
NOTHING, AGAIN = "nothing captured", "again"  # arms beside the lists: eager steps, and the first list once more


@dataclass(frozen=True)
class Entry:
    """One list on one trace."""

    trace: str
    engine: str
    which: str  # default, or ours
    tries: tuple[Expected, ...]  # of ours with ever less memory
    asked: tuple[Stratum, ...]

    @property
    def name(self) -> str:
        return f"{self.engine} {self.which}"

    def found(self, beside: dict[str, Any] | None) -> Expected:
        """What was expected of the list that was measured, of the first where none was."""
        if beside is None:
            return self.tries[0]
        sizes = tuple(beside["captured"][self.name]["sizes"])
        return next(each for each in self.tries if each.sizes == sizes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("predict", "measure", "report", "scale"))
    parser.add_argument("base", type=Path)
    parser.add_argument("--samples", type=Path, help="folder of a file a clock and trace")
    parser.add_argument("--clock", default=",".join(CLOCKS), help="by comma")
    parser.add_argument("--traces", default=",".join(NAMED), help="measure: these alone, by comma")
    parser.add_argument("--out", type=Path, default=ARTIFACT)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given = parser.parse_args()
    if given.what == "scale":
        return scale(given.base)
    if given.what != "predict" and given.samples is None:
        parser.error("--samples DIR")
    traces = given.traces.split(",")
    if given.what == "measure" and len(traces) * len(given.clock.split(",")) > 1:
        return measure_each(given, traces)
    base = store.load_layers(given.base)
    summary, layers = summarize(base), stored_layers(base.manifest.study_yaml)
    clocks = {}
    for clock in given.clock.split(","):
        costs = costs_of(summary, measured_layers=layers, clock=clock)
        entries = entries_of(costs)
        if given.what == "measure":
            measure(base, costs, entries, given.samples, trace=traces[0], device=given.device)
            continue
        clocks[clock] = compared(costs, entries, given.samples)
        print(f"\nby {costs.clock_name}, padding share {costs.padding_share:.2f}\n\n{table(clocks[clock])}")
    if given.what == "report":
        given.out.write_text(json.dumps({**told(base), "clocks": clocks}, indent=1) + "\n")
        PAGE.write_text(filled(PAGE.read_text(), clocks))
    return 0


def choices(costs: Costs) -> dict[str, Choice]:
    """The best lists of each named trace; the clock of requests runs on 61 layers."""
    others = {engine: default_sizes(engine) for engine in ENGINES}
    layer_step = costs.eager.scaled(1 / costs.layers)
    found = {}
    for name, workload in NAMED.items():
        scheduler = Scheduler(costs.largest, min(MAX_BATCH_SIZE, costs.largest - 1), CLOCK_LAYERS)
        found[name] = choose(run(name, requests_of(workload), scheduler, layer_step), costs, Limits(), others)
    return found


def entries_of(costs: Costs) -> list[Entry]:
    entries = []
    for trace, choice in choices(costs).items():
        for baseline in choice.baselines:
            if baseline.at_equal_memory is None:
                raise SystemExit("the base run has no memory ledger: sweep with measure.memory=true")
            asked = strata(choice.steps, (), STRATA)
            entries.append(Entry(trace, baseline.name, "default", (baseline.found,), asked))
            entries.append(Entry(trace, baseline.name, "ours", tries(choice, baseline), asked))
    return entries


def tries(choice: Choice, baseline: Baseline) -> tuple[Expected, ...]:
    """The best list at the memory of another one, and at ever less."""
    assert baseline.at_equal_memory is not None and baseline.found.memory_bytes is not None
    budgets = [int(share * baseline.found.memory_bytes) for share in SHARES[1:]]
    return (
        baseline.at_equal_memory,
        *(choose(choice.steps, choice.costs, Limits(memory_bytes=each), {}).chosen for each in budgets),
    )


def pairs(entries: list[Entry]) -> list[tuple[Entry, Entry]]:
    """(default, ours) of each engine."""
    return list(zip(entries[::2], entries[1::2], strict=True))


def samples_path(folder: Path, clock: Clock, trace: str) -> Path:
    return folder / f"{clock}-{trace}.json.gz"


def measure_each(given: argparse.Namespace, traces: list[str]) -> int:
    """Each clock and trace in a process of its own; one that has its file is passed over."""
    for clock in given.clock.split(","):
        for trace in traces:
            if not samples_path(given.samples, clock, trace).exists():
                command = [sys.executable, __file__, "measure", str(given.base), "--samples", str(given.samples),
                           "--clock", clock, "--traces", trace, "--device", given.device]  # fmt: skip
                subprocess.run(command, check=True)
    return 0


def measure(base: Run, costs: Costs, entries: list[Entry], folder: Path, *, trace: str, device: Device) -> None:
    """All lists of a trace beside one another."""
    from buckets_paired import measure_beside  # torch, which the rest has no use for

    print(f"{trace}, by {costs.clock_name}", flush=True)
    of_trace = [entry for entry in entries if entry.trace == trace]
    counts = sorted({each.num_tokens for each in of_trace[0].asked})
    first = of_trace[0].tries[0].sizes
    lists = {
        entry.name: [job_under(base, each.sizes, counts, costs.way, device) for each in entry.tries]
        for entry in of_trace
    }
    lists[AGAIN] = [job_under(base, first, counts, costs.way, device)]
    lists[NOTHING] = [job_under(base, first, counts, costs.eager_way, device)]
    within = {ours.name: default.name for default, ours in pairs(of_trace)}
    found = measure_beside(lists, within, bursts=costs.clock == "step", rounds=ROUNDS[costs.clock])
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(samples_path(folder, costs.clock, trace), "wt") as file:
        json.dump({"emulated": device == "cpu", **asdict(found)}, file)


def job_under(base: Run, sizes: tuple[int, ...], counts: list[int], way: str, device: Device) -> Job:
    """The base run's timing job with this list and these token counts, its tuned tiles among it."""
    written = study_from_resolved(base.manifest.study_yaml)
    study = study_under(written, sizes, counts, way, min(written.axes.context_len))
    plan = expand(study, device).with_tuned(base.manifest.tuned)
    return next(job for job in plan.jobs if job.kind == "timing")


def told(base: Run) -> dict[str, Any]:
    """Where the base run comes from."""
    environment = base.manifest.environment
    return {
        "base_run": base.manifest.run_id,
        "command": list(base.manifest.command),
        "date": base.manifest.created_at,
        "commit": environment.git_commit,
        "processor": environment.processor(base.manifest.device),
        "traces": {name: workload.told for name, workload in NAMED.items()},
    }


def compared(costs: Costs, entries: list[Entry], folder: Path | None) -> dict[str, Any]:
    """Predicted and measured step time of every list, by one clock; null where a trace has no samples."""
    rows, ratios = [], []
    for trace in NAMED:
        of_trace = [entry for entry in entries if entry.trace == trace]
        path = samples_path(folder, costs.clock, trace) if folder else None
        beside = json.loads(gzip.decompress(path.read_bytes())) if path and path.exists() else None
        rounds = trace_rounds(of_trace[0].asked, beside, costs) if beside else {}
        for entry in of_trace:
            expected = entry.found(beside)
            own = sum(each.share * predicted_step(each.num_tokens, expected.sizes, costs) for each in entry.asked)
            rows.append(
                {
                    "trace": trace,
                    "engine": entry.engine,
                    "which": entry.which,
                    "predicted": {**asdict(expected), "fallback": expected.fallback, "steps_s": own},
                    "measured": beside and measured(beside, rounds, entry.name),
                }
            )
        for default, ours in pairs(of_trace):
            ratios.append(
                {
                    "trace": trace,
                    "engine": default.engine,
                    "predicted": default.found(beside).step_s / ours.found(beside).step_s,
                    "measured": beside and asdict(paired([rounds[ours.name]], [rounds[default.name]], seed=1).estimate),
                }
            )
        if beside:
            first = of_trace[0].name
            for name in (AGAIN, NOTHING):
                seen = asdict(paired([rounds[first]], [rounds[name]], seed=1).estimate)
                ratios.append({"trace": trace, "engine": f"{name} over {first}", "predicted": None, "measured": seen})
    return {
        "clock_name": costs.clock_name,
        "way": costs.way,
        "eager_way": costs.eager_way,
        "layers": costs.layers,
        "padding_share": costs.padding_share,
        "padded_cells": costs.padded_cells,
        "rows": rows,
        "default_over_ours": ratios,
    }


def trace_rounds(asked: tuple[Stratum, ...], beside: dict[str, Any], costs: Costs) -> dict[str, list[float]]:
    """Mean seconds of the trace's steps under each list, round by round."""
    steps = {each["num_tokens"]: each for each in beside["steps"]}
    return {
        name: [
            sum(each.share * seconds for each, seconds in zip(asked, of_round, strict=True))
            for of_round in zip(*(series(steps[each.num_tokens], name, costs) for each in asked), strict=True)
        ]
        for name in beside["captured"]
    }


def series(step: dict[str, Any], name: str, costs: Costs) -> list[float]:
    """Seconds of one step under a list, a round an entry, by the clock of costs."""
    return list(step["device_s" if costs.clock == "device" else "sustained_s"][name])


def measured(beside: dict[str, Any], rounds: dict[str, list[float]], name: str) -> dict[str, Any]:
    return {
        "steps_s": asdict(bootstrap(rounds[name], seed=1, block=BLOCK).estimate),
        **{fact: beside["captured"][name][fact] for fact in ("pool_bytes", "driver_bytes", "capture_s")},
        "emulated": beside["emulated"],
    }


def scale(base: Path) -> int:
    """Time the command line on a trace of 10^6 steps with every count up to 8192, for lists of up to 128 sizes."""
    draw = np.random.default_rng(1)
    tokens = np.clip(draw.lognormal(6, 1.6, 1_000_000).round(), 1, 8192).astype(int)
    tokens[:8192] = np.arange(1, 8193)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "million.csv")
        trace.write_text("\n".join(map(str, tokens)) + "\n")
        command = [sys.executable, "-m", "mlaprof", "buckets", str(base), "--trace", str(trace), "--max-sizes", "128",
                   "--memory", "1GiB", "--format", "json"]  # fmt: skip
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(done.stdout)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{found['trace']['steps']} steps, {found['candidates']} candidates, {len(found['sizes'])} sizes: "
        f"{seconds:.2f} s of CPU, {used.ru_maxrss / 1024:.0f} MiB at most"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
