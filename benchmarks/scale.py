"""How far mlaprof carries: a plan of a million Points, a driver of a thousand workers, a stored run of many cells.

    python benchmarks/scale.py --out results/reference/scale.json [--only plan,driver,run]
    python benchmarks/scale.py --gpus 0,1 --out results/reference/scale.json     where there are two GPUs

Five minutes or so, each figure in a process of its own; needs no GPU. With --gpus a study is swept on the first GPU
alone and on all of them, and what the file has of the other figures stays. A goal that is missed says so.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

CHECKOUT = Path(__file__).parents[1]
sys.path.insert(0, str(CHECKOUT))

from mlaprof import store  # noqa: E402
from mlaprof.analysis.compare import compare  # noqa: E402
from mlaprof.analysis.running import Running  # noqa: E402
from mlaprof.analysis.summary import summarize  # noqa: E402
from mlaprof.config.load import load_study, resolved_yaml  # noqa: E402
from mlaprof.engine.local import Lanes  # noqa: E402
from mlaprof.facts import Timing  # noqa: E402
from mlaprof.machine import environment  # noqa: E402
from mlaprof.machine.seats import Seat  # noqa: E402
from mlaprof.opening import manifest_of  # noqa: E402
from mlaprof.plan import Plan, expand  # noqa: E402
from mlaprof.records import AnyJob, Job, Measurement, Outcome, Point, Run, Started  # noqa: E402
from mlaprof.report.export import to_csv  # noqa: E402
from mlaprof.study import Study  # noqa: E402
from mlaprof.sweep import sweep  # noqa: E402
from mlaprof.wire import encode  # noqa: E402

STUDY = """\
name: scale
preset: v3.2-tp8
sweep:
  num_tokens: [1, 2, 3, 4]
  context_len: {range: [0, 12400, 100]}
  mode: [monolithic_eager, split_eager, split_piecewise, breakable]
measure: {memory: false, counts: false, twin: false, processes: 1}
"""
TWO = "configs/v3.2-tp8-prefill.yaml"
NO_TWO_GPUS = "no machine with two GPUs could be had; `python benchmarks/scale.py --gpus 0,1` makes this figure"
WORKERS, JOBS_A_WORKER, CELLS_A_JOB = 1000, 2, 4
CELL_S = 15.0  # the default of measure.cell_time_s
CELLS, SAMPLES = 100_000, 20  # of the goal


def study_of(num_tokens: int, contexts: int = 125) -> Study:
    """125 contexts and four modes at so many token counts: more than a study file may ask for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "study.yaml")
        path.write_text(STUDY)
        study = load_study(path)
    axes = {"num_tokens": tuple(range(1, num_tokens + 1)), "context_len": study.axes.context_len[:contexts]}
    return study.model_copy(update={"axes": study.axes.model_copy(update=axes)})


def plan_figure() -> dict[str, Any]:
    """A million Points, of 125 jobs."""
    study = study_of(2000)
    each_s = []
    for _ in range(3):
        begin_s = time.perf_counter()
        points = len(expand(study, "cuda"))
        each_s.append(time.perf_counter() - begin_s)
    took_s = median(each_s)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "points": points,
        "expand_s": took_s,
        "each_s": each_s,
        "peak_bytes": peak_bytes,
        "goal": "less than 5 s and 1 GiB",
        "met": took_s < 5 and peak_bytes < 2**30,
    }


class SimulatedWorker:
    """Answers for a cell after CELL_S, as a worker in another process would. Counts how long it was at work."""

    tail = mark = ""

    def __init__(self, job: Job, count: Busy) -> None:
        self._lines = [(0.0, encode(Started(kind=job.kind, key=job.points[0].key, stage="measure")))]
        self._lines += [(CELL_S, encode(measured(job, point))) for point in job.points]
        self._next_s = time.monotonic()
        self._count = count

    def next_line(self, limit_s: float) -> bytes | None:
        if not self._lines:
            return None
        after_s, line = self._lines[0]
        wait_s = self._next_s + after_s - time.monotonic()
        if wait_s > limit_s:
            time.sleep(limit_s)
            raise TimeoutError
        time.sleep(max(wait_s, 0.0))
        self._next_s += after_s  # it does not wait for whoever reads it
        self._count.add(after_s)
        del self._lines[0]
        return line.encode()

    def wait(self, grace_s: float) -> str:
        return "exit code 0"

    def kill(self) -> None:
        pass


class Busy:
    """Seconds of work of all workers."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        with self._lock:
            self.seconds += seconds


def driver_figure() -> dict[str, Any]:
    """The driver of `sweep --gpus`, its store and its running figures, with workers that need no machine."""
    study = study_of(WORKERS * JOBS_A_WORKER * CELLS_A_JOB // 4, contexts=1)
    (job,) = expand(study, "cpu").jobs
    jobs = tuple(
        job.model_copy(update={"points": job.points[at : at + CELLS_A_JOB]})
        for at in range(0, len(job.points), CELLS_A_JOB)
    )
    plan = Plan(jobs=jobs, skips=())
    busy = Busy()

    def spawn(job: AnyJob, /, *, variables: Mapping[str, str] | None = None) -> SimulatedWorker:
        assert isinstance(job, Job)
        return SimulatedWorker(job, busy)

    threading.stack_size(256 * 1024)
    engine = Lanes([Seat(str(number)) for number in range(WORKERS)])
    manifest = manifest_of("scale", "cpu", resolved_yaml(study), plan.planned, command=("scale.py",))
    with tempfile.TemporaryDirectory() as folder:
        running = Running(plan.planned, begin_s=time.monotonic())
        begin_s = time.perf_counter()
        with store.create(Path(folder, "scale.mlaprof"), manifest) as writer:
            for event in sweep(plan, engine=engine, spawn=spawn, keep=writer.append):
                if isinstance(event, Measurement):
                    running.take(event, time.monotonic())
        took_s = time.perf_counter() - begin_s
    share = busy.seconds / (WORKERS * took_s)
    return {
        "workers": WORKERS,
        "jobs": len(jobs),
        "cells": len(plan),
        "cell_s": CELL_S,
        "wall_s": took_s,
        "busy": share,
        "goal": "more than 95 % busy",
        "met": share > 0.95,
    }


def measured(job: Job, point: Point) -> Measurement:
    place = hash((point.num_tokens, point.context_len, point.mode)) % 1000 / 1e3
    samples = tuple(1e-3 * (1 + place) + 1e-6 * ((7 * each) % 11) for each in range(SAMPLES))
    timing = Timing(
        device_s=samples, submit_s=samples, cache="cold", clock="perf_counter", warmup_s=0.2, first_call_s=1.0
    )
    outcome = Outcome(status="ok")
    now = "2026-11-23T10:15:00+00:00"
    return Measurement(point=point, kind="timing", outcome=outcome, emulated=True, recorded_at=now, timing=timing)


def run_figure(cells: int) -> dict[str, Any]:
    """A stored run of timed cells: load, what `show --format csv` makes of it, and compare with itself."""
    study = study_of(cells // 500)
    plan = expand(study, "cpu")
    manifest = manifest_of("scale", "cpu", resolved_yaml(study), plan.planned, command=("scale.py",))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scale.mlaprof")
        store.write_whole(path, manifest, (measured(job, point) for job in plan.jobs for point in job.points))
        size_bytes = path.stat().st_size
        stages: dict[str, float] = {}
        begin_s = time.perf_counter()
        run: Run = store.load(path)
        stages["load_s"] = time.perf_counter() - begin_s
    begin_s = time.perf_counter()
    text = to_csv(summarize(run))
    stages["show_s"] = time.perf_counter() - begin_s
    begin_s = time.perf_counter()
    compared = compare(run, run)
    stages["compare_s"] = time.perf_counter() - begin_s
    if len(text.splitlines()) <= cells or len(compared.deltas) < cells or len(run.measurements) != cells:
        raise SystemExit("show or compare left out cells")
    return {
        "cells": cells,
        "samples": SAMPLES,
        "file_bytes": size_bytes,
        **stages,
        "a_cell_s": {name: took_s / cells for name, took_s in stages.items()},
        "goal": f"each less than 2 s at {CELLS:,} cells, which is {2 / CELLS:g} s a cell",
        "met": max(stages.values()) / cells < 2 / CELLS,
    }


@dataclass(frozen=True)
class Swept:
    wall_s: float
    run: Run


def two_gpus(gpus: str) -> dict[str, Any]:
    """One study on the first GPU and on all: wall time, and cells that differ beyond the floor of the runs."""
    first = gpus.split(",")[0]
    with tempfile.TemporaryDirectory() as folder:
        one, two = (_swept(named, Path(folder, f"{len(named)}.mlaprof")) for named in (first, gpus))
    comparison = compare(one.run, two.run)
    beyond = [delta.key for delta in comparison.deltas if delta.verdict in ("SLOWER", "FASTER")]
    speedup = one.wall_s / two.wall_s
    return {
        "gpus": sorted({each.timing.gpu for each in two.run.measurements if each.timing}),
        "study": TWO,
        "one_s": one.wall_s,
        "two_s": two.wall_s,
        "speedup": speedup,
        "cells": len(comparison.deltas),
        "beyond_the_floor": beyond,
        "goal": "at least 1.9 times as fast, and every cell within the floor",
        "met": speedup >= 1.9 and not beyond,
    }


def _swept(gpus: str, path: Path) -> Swept:
    begin_s = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "mlaprof", "sweep", TWO, "--device", "cuda", "--gpus", gpus, "--out", str(path)],
        cwd=CHECKOUT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return Swept(time.perf_counter() - begin_s, store.load(path))


FIGURES: dict[str, Callable[[int], dict[str, Any]]] = {
    "plan": lambda cells: plan_figure(),
    "driver": lambda cells: driver_figure(),
    "run": run_figure,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default=",".join(FIGURES), help="plan,driver,run")
    parser.add_argument("--gpus", default="", help="measure what two GPUs are worth, and nothing else: 0,1")
    parser.add_argument("--cells", type=int, default=CELLS, help="of the run, a multiple of 500")
    parser.add_argument("--figure", help="print one figure as JSON: what this script starts itself with")
    options = parser.parse_args()
    if options.figure:
        print(json.dumps(FIGURES[options.figure](options.cells)))
        return
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    found.setdefault("two_gpus", None)
    found.setdefault("two_gpus_reason", NO_TWO_GPUS)
    made = {"two_gpus": two_gpus(options.gpus)} if options.gpus else {}
    if options.gpus:
        found["two_gpus_reason"] = ""
    for name in () if options.gpus else options.only.split(","):
        own = [sys.executable, __file__, "--out", str(options.out), "--figure", name, "--cells", str(options.cells)]
        made[name] = json.loads(subprocess.run(own, check=True, stdout=subprocess.PIPE, text=True).stdout)
    for name, figure in made.items():
        figure.update(_circumstances())
        found[name] = figure
        print(f"{name}: {'met' if figure['met'] else 'MISSED'}: {figure['goal']}")
    options.out.write_text(json.dumps(found, indent=2) + "\n")


def _circumstances() -> dict[str, Any]:
    here = environment.snapshot()
    return {
        "command": ["python", "benchmarks/scale.py", *sys.argv[1:]],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": here.cpu,
            "cpus": here.cpu_count,
            "memory_bytes": here.memory_bytes,
            "os": here.os,
            "gpus": [gpu.name for gpu in here.gpus],
            "load_average": here.load_average,
        },
        "versions": {"python": here.python, "mlaprof": here.git_commit, **here.packages},
    }


if __name__ == "__main__":
    main()
