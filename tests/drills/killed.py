"""Sweeps killed at random instants, and gone on with: `killed.py FOLDER SEED TRIALS` prints a line of JSON a trial.

Everything is imported once; each sweep is a fork, so that a trial takes a quarter of a second. The sweep, its store and
its child processes are the real ones, the worker is the one that answers at once. The sweep tells through a pipe what
its store has accepted: of that nothing may be lost.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from mlaprof import store
from mlaprof.config.load import load_study, resolved_yaml
from mlaprof.engine.job import spawn_worker
from mlaprof.errors import RunFileError
from mlaprof.opening import manifest_of
from mlaprof.plan import Plan, expand
from mlaprof.records import AnyMeasurement, Manifest, Measurement, work
from mlaprof.sweep import sweep

STUDY = """\
name: killed
preset: tiny
sweep: {num_tokens: [4, 3, 2, 1], mode: [monolithic_eager, split_eager]}
measure: {processes: 2, memory: true, counts: true, twin: false}
"""
FAKE_WORKER = [sys.executable, "-S", "-E", str(Path(__file__).parents[1] / "fake_worker.py"), "steady"]
LONGEST_S = 30.0


def sweeping(path: Path, plan: Plan, manifest_line: str, told: int) -> None:
    """What `mlaprof sweep` and `sweep --resume` do between the door and the table. Never returns."""
    try:
        if path.exists():
            writer = store.open_for_resume(path)
            plan = plan.without(writer.done())
        else:
            writer = store.create(path, Manifest.model_validate_json(manifest_line))

        def keep(measurement: AnyMeasurement) -> None:
            writer.append(measurement)
            os.write(told, f"{line_of(measurement)}\n".encode())

        with writer:
            for _ in sweep(plan, spawn=partial(spawn_worker, command=FAKE_WORKER), keep=keep):
                pass
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def line_of(measurement: AnyMeasurement) -> str:
    return work(measurement.kind, measurement.point.key, measurement.process)


def forked(path: Path, plan: Plan, manifest_line: str, meanwhile: Callable[[int], None]) -> tuple[int, list[str]]:
    """(wait status, accepted work) of one sweep; meanwhile may do to its process what it likes."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        sweeping(path, plan, manifest_line, tell)
    os.close(tell)
    meanwhile(pid)
    with os.fdopen(told) as lines:  # until the sweep is gone
        accepted = [line.rstrip("\n") for line in lines if line.endswith("\n")]
    _, status = os.waitpid(pid, 0)
    return status, accepted


def kill_after(instant_s: float, whom: str) -> Callable[[int], None]:
    def kill(sweep_pid: int) -> None:
        time.sleep(instant_s)
        pid = sweep_pid if whom == "sweep" else worker_of(sweep_pid)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    return kill


def worker_of(sweep_pid: int) -> int | None:
    """The fake worker that this sweep runs now, if any."""
    try:
        children = Path(f"/proc/{sweep_pid}/task/{sweep_pid}/children").read_text().split()
        return next((int(pid) for pid in children if b"fake_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()), None)
    except OSError:
        return None


def finished_cells(measurements: list[Measurement], plan: Plan) -> set[str]:
    """Work that a resumed sweep must not do again, by the rule of Plan.without, told once more in other words."""
    done = {line_of(each) for each in measurements if each.outcome.status != "failed"}
    finished: set[str] = set()
    for job in plan.jobs:
        groups: dict[object, list[str]] = {}
        for point in job.points:
            group = {"timing": point.cell, "memory": ""}.get(job.kind, point.key)
            groups.setdefault(group, []).append(work(job.kind, point.key, job.process))
        finished |= {line for lines in groups.values() if done.issuperset(lines) for line in lines}
    return finished


def left(folder: Path) -> list[str]:
    """Processes and temporary files of the sweeps that were started here."""
    end_s = time.monotonic() + LONGEST_S
    while time.monotonic() < end_s:
        mine = re.compile(rb"\0" + f"TMPDIR={folder}/temporary".encode())
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if int(path.parent.name) != os.getpid() and mine.search(b"\0" + path.read_bytes()):
                    found.append(f"process {path.parent.name}")
            except OSError:
                continue
        found += [str(path) for path in (folder / "temporary").iterdir()]
        if not found:
            return []
        time.sleep(0.005)
    return found


def trial(number: int, folder: Path, plan: Plan, manifest_line: str, dice: random.Random, longest_s: float) -> dict:
    """Kill a sweep, or its worker, at a random instant; then let it go on to its end. What went wrong is in `wrong`."""
    path = folder / f"{number}.mlaprof"
    whom = dice.choice(["sweep", "sweep", "worker"])
    instant_s = dice.uniform(0.0, longest_s)
    status, accepted = forked(path, plan, manifest_line, kill_after(instant_s, whom))
    wrong = []
    remains = left(folder)
    if remains:
        wrong.append(f"left after the kill: {remains}")
    beside = sorted(each.name for each in folder.glob(f"*{number}.mlaprof*"))
    if os.WIFSIGNALED(status) != (whom == "sweep") and os.WIFSIGNALED(status):
        wrong.append(f"the sweep ended by signal {os.WTERMSIG(status)}")
    planned = [work(*each) for each in plan.planned]
    stored: list[Measurement] = []
    if path.exists():
        try:
            stored = list(store.load(path).measurements)
        except RunFileError as error:
            wrong.append(f"unreadable after the kill: {error}")
    elif accepted or set(beside):
        wrong.append(f"no run file, but {len(accepted)} accepted, and {beside}")
    lines = [line_of(each) for each in stored]
    if lines[: len(accepted)] != accepted or len(lines) > len(accepted) + 1:
        wrong.append(f"{len(accepted)} accepted, {len(lines)} stored, or in another order")
    failed = [each for each in stored if each.outcome.status != "ok"]
    if whom == "sweep" and (failed or lines != planned[: len(lines)]):
        wrong.append("what is stored is no beginning of the plan")
    if whom == "worker" and (len(failed) > 1 or sorted(lines) != sorted(planned)):
        wrong.append(f"{len(failed)} failed of {len(lines)} for one worker")
    if any(each.outcome.fault not in ("killed", "not_started") for each in failed):
        wrong.append(f"called {[each.outcome.fault for each in failed]}")
    before = finished_cells(stored, plan)
    again_status, again = forked(path, plan, manifest_line, lambda pid: None)
    if again_status != 0:
        wrong.append(f"going on ended with {again_status}")
    if twice := before.intersection(again):
        wrong.append(f"measured twice: {sorted(twice)[:3]}")
    final = store.load(path).measurements
    if sorted(map(line_of, final)) != sorted(planned) or any(each.outcome.status != "ok" for each in final):
        wrong.append("incomplete at the end")
    if sorted(each.name for each in folder.glob(f"*{number}.mlaprof*")) != [path.name]:
        wrong.append("something lies beside the run file")
    return {
        "whom": whom,
        "instant_s": round(instant_s, 4),
        "struck": os.WIFSIGNALED(status) if whom == "sweep" else bool(failed),
        "stored": len(stored),
        "of": len(planned),
        "wrong": wrong,
    }


def main() -> None:
    folder, seed, trials = Path(sys.argv[1]).absolute(), int(sys.argv[2]), int(sys.argv[3])
    (folder / "temporary").mkdir(parents=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "temporary")
    (folder / "study.yaml").write_text(STUDY)
    study = load_study(folder / "study.yaml")
    plan = expand(study, "cpu")
    manifest = manifest_of(study.name, "cpu", resolved_yaml(study), plan.planned, command=("mlaprof", "sweep"))
    line = manifest.model_dump_json()
    began_s = time.monotonic()
    forked(folder / "whole.mlaprof", plan, line, lambda pid: None)
    longest_s = time.monotonic() - began_s
    dice = random.Random(seed)
    for number in range(trials):
        print(json.dumps(trial(number, folder, plan, line, dice, longest_s)), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
