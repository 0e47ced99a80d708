"""Puts chosen capture sizes to the test: the best list at the memory of each engine's default, beside that default.

python benchmarks/buckets.py predict BASE                    the comparison as predicted, a Markdown table
python benchmarks/buckets.py measure BASE --runs DIR         measures every list that DIR has no run file of
python benchmarks/buckets.py report BASE --runs DIR          results/reference/buckets-h100.json of BASE and those runs
python benchmarks/buckets.py scale BASE                      seconds and bytes of a trace of 10^6 steps, 8192 candidates

BASE is a run of `mlaprof sweep` with split_eager and a mode of piecewise graphs, with a memory ledger.
"""

from __future__ import annotations

import argparse
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

from mlaprof import store  # noqa: E402
from mlaprof.analysis.stored import stored_layers  # noqa: E402
from mlaprof.analysis.summary import summarize  # noqa: E402
from mlaprof.config.load import study_from_resolved  # noqa: E402
from mlaprof.opening import DeviceChoice, new_run  # noqa: E402
from mlaprof.records import Run  # noqa: E402
from mlaprof.sizing.check import Stratum, check, strata, study_under  # noqa: E402
from mlaprof.sizing.choose import Choice, Limits, choose  # noqa: E402
from mlaprof.sizing.costs import Clock, Costs, costs_of  # noqa: E402
from mlaprof.sizing.engines import ENGINES, default_sizes  # noqa: E402
from mlaprof.sizing.named import NAMED, requests_of  # noqa: E402
from mlaprof.sizing.scheduler import Scheduler, run  # noqa: E402
from mlaprof.sizing.score import Expected  # noqa: E402
from mlaprof.sweep import sweep  # noqa: E402

ARTIFACT = ROOT / "results" / "reference" / "buckets-h100.json"
CLOCK_LAYERS = 61
MAX_BATCH_SIZE = 256
STRATA = 16  # steps that stand for a trace, the same under every list


@dataclass(frozen=True)
class Entry:
    """One list on one trace."""

    trace: str
    engine: str
    which: str  # default, or ours
    found: Expected
    asked: tuple[Stratum, ...]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("predict", "measure", "report", "scale"))
    parser.add_argument("base", type=Path)
    parser.add_argument("--runs", type=Path, help="folder of a run file a list")
    parser.add_argument("--clock", choices=("step", "device"), default="step")
    parser.add_argument("--out", type=Path, default=ARTIFACT)
    parser.add_argument("--no-memory", action="store_true", help="measure: times alone, the ledger in a later call")
    parser.add_argument("--traces", default=",".join(NAMED), help="measure: of these alone, by comma")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given = parser.parse_args()
    if given.what == "scale":
        return scale(given.base)
    base = store.load_layers(given.base)
    costs = costs_of(summarize(base), measured_layers=stored_layers(base.manifest.study_yaml), clock=given.clock)
    entries = entries_of(costs)
    if given.what == "predict":
        print(table(entries))
        return 0
    if given.runs is None:
        parser.error("--runs DIR")
    if given.what == "measure":
        entries = [each for each in entries if each.trace in given.traces.split(",")]
        measure(base, costs, entries, given.runs, memory=not given.no_memory, device=DeviceChoice(given.device))
        return 0
    found = document(base, costs, entries, given.runs, given.clock)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(entries, found))
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
            for which, found in (("default", baseline.found), ("ours", baseline.at_equal_memory)):
                asked = strata(choice.steps, found.sizes, STRATA)
                entries.append(Entry(trace, baseline.name, which, found, asked))
    return entries


def run_path(folder: Path, sizes: tuple[int, ...]) -> Path:
    """The run file of a list: how many sizes, the largest, and a sum that tells lists apart."""
    return folder / f"list-{len(sizes)}-{sizes[-1]}-{sum(sizes)}.mlaprof"


def measure(base: Run, costs: Costs, entries: list[Entry], folder: Path, *, memory: bool, device: DeviceChoice) -> None:
    """A run a list, every step that stands for a trace under it; lists that are measured are passed over."""
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[tuple[int, ...], set[int]] = {}
    for entry in entries:
        counts.setdefault(entry.found.sizes, set()).update(each.num_tokens for each in entry.asked)
    written = study_from_resolved(base.manifest.study_yaml)
    context_len = min(written.axes.context_len)
    for number, (sizes, tokens) in enumerate(counts.items()):
        path = run_path(folder, sizes)
        if path.exists():
            continue
        study = study_under(written, sizes, sorted(tokens), costs.way, context_len)
        changed = study.measure.model_copy(update={"memory": memory})
        study = study.model_copy(update={"measure": changed})
        # Under another name until it is whole, so that an interrupted list is measured again.
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        opening = new_run(study, device, partial, folder, command=sys.argv, tuned=base.manifest.tuned)
        print(f"{number + 1} of {len(counts)}: {len(sizes)} sizes up to {sizes[-1]}, {len(tokens)} steps", flush=True)
        with opening.writer() as writer:
            for _ in sweep(opening.plan, keep=writer.append):
                pass
        partial.rename(path)


def document(base: Run, costs: Costs, entries: list[Entry], folder: Path, clock: Clock) -> dict[str, Any]:
    """Predicted and measured step time of every list."""
    environment = base.manifest.environment
    rows = []
    for entry in entries:
        path = run_path(folder, entry.found.sizes)
        checked = check(entry.found, entry.asked, costs, summarize(store.load(path))) if path.exists() else None
        rows.append(
            {
                "trace": entry.trace,
                "engine": entry.engine,
                "which": entry.which,
                "predicted": {**asdict(entry.found), "fallback": entry.found.fallback},
                "measured": asdict(checked) if checked else None,
            }
        )
    return {
        "base_run": base.manifest.run_id,
        "command": list(base.manifest.command),
        "date": base.manifest.created_at,
        "commit": environment.git_commit,
        "processor": environment.processor(base.manifest.device),
        "clock": clock,
        "clock_name": costs.clock_name,
        "way": costs.way,
        "eager_way": costs.eager_way,
        "layers": costs.layers,
        "padding_share": costs.padding_share,
        "padded_cells": costs.padded_cells,
        "traces": {name: workload.told for name, workload in NAMED.items()},
        "rows": rows,
        "ours_over_default": ratios(rows),
    }


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """default / ours of each pair, above 1 is faster; measured is null where one of them was not run whole.

    Both means are over the same steps; `measured_low` divides the low end of the default by the high end of ours.
    """
    found = []
    for default, ours in zip(rows[::2], rows[1::2], strict=True):
        one, other = default["measured"], ours["measured"]
        whole = one is not None and other is not None and not one["failed"] and not other["failed"]
        found.append(
            {
                "trace": default["trace"],
                "engine": default["engine"],
                "predicted": default["predicted"]["step_s"] / ours["predicted"]["step_s"],
                "measured": one["measured_s"] / other["measured_s"] if whole else None,
                "measured_low": one["low_s"] / other["high_s"] if whole else None,
                "measured_high": one["high_s"] / other["low_s"] if whole else None,
                "measured_bytes": [one["measured_bytes"], other["measured_bytes"]] if whole else None,
            }
        )
    return found


def table(entries: list[Entry], found: dict[str, Any] | None = None) -> str:
    """A row a trace and engine, in Markdown."""
    lines = [
        "| trace | default of | sizes | MiB | step ms | best at its memory: sizes | MiB | step ms | default / best, "
        "predicted | measured |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    measured = [each["measured"] for each in found["ours_over_default"]] if found else [None] * (len(entries) // 2)
    for (default, ours), seen in zip(zip(entries[::2], entries[1::2], strict=True), measured, strict=True):
        cells = [default.trace, default.engine]
        for each in (default.found, ours.found):
            cells += [f"{len(each.sizes)}", f"{(each.memory_bytes or 0) / 2**20:.0f}", f"{1e3 * each.step_s:.3f}"]
        cells.append(f"{default.found.step_s / ours.found.step_s:.3f}x")
        cells.append(f"{seen:.3f}x" if seen else "not yet")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


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
