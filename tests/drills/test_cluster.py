"""Sweeps on a Dask cluster of processes, as a user starts them, that loses a worker, a host or its scheduler.

The measuring child holds at two tokens until it is let go, so that every blow finds it at the same place.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from mlaprof import store
from mlaprof.records import work

pytest.importorskip("distributed")
pytestmark = [pytest.mark.drill, pytest.mark.timeout(280)]

STUDY = """\
name: cluster
preset: tiny
sweep: {num_tokens: [4, 2], mode: [monolithic_eager, split_eager]}
measure: {processes: 4, memory: true, counts: true, twin: false}
"""
COMMAND = str(Path(__file__).with_name("command.py"))
LIMIT_S = 90.0  # for what takes a second or two on a machine that is not busy
T = TypeVar("T")


def awaited(found: Callable[[], T], what: str) -> T:
    """What `found` answers, once that is true."""
    end_s = time.monotonic() + LIMIT_S
    while not (answer := found()):
        assert time.monotonic() < end_s, f"waited for {what}"
        time.sleep(0.05)
    return answer


def parent_of(pid: int) -> int:
    return int(re.search(r"^PPid:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1])


class Cluster:
    """A scheduler and Dask workers on loopback addresses."""

    def __init__(self, place) -> None:
        self.place = place
        self.file = place.folder / "scheduler.json"
        self.processes: list[subprocess.Popen] = []
        self.hold = place.folder / "hold"
        self.hold.mkdir()
        (place.folder / "study.yaml").write_text(STUDY)

    def start(self, *workers: str) -> None:
        """A scheduler, and workers that offer these resources."""
        self.file.unlink(missing_ok=True)
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show")
        awaited(self.file.is_file, "the scheduler")
        for offered in workers:
            self._start("worker", "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", "--resources", offered)

    def _start(self, what: str, *options: str) -> None:
        command = [sys.executable, "-m", "dask", what, "--scheduler-file", str(self.file), *options]
        variables = {**self.place.variables, "DASK_TEMPORARY_DIRECTORY": str(self.place.folder / "dask")}
        with (self.place.folder / f"{what}-{len(self.processes)}.log").open("w") as log:
            self.processes.append(
                subprocess.Popen(command, cwd=self.place.folder, env=variables, stdout=log, stderr=log)
            )

    def end(self) -> None:
        """By a kill, which takes less time than to ask; each worker goes with its nanny."""
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes.clear()

    def sweep(self, *arguments: object) -> subprocess.Popen[str]:
        where = ("--device", "cpu", "--engine", "dask", "--scheduler", self.file)
        return self.place.start("hold:2", "sweep", *arguments, *where, program=(COMMAND,))

    def held(self, count: int) -> list[int]:
        """Numbers of measuring processes that hold, once there are so many."""

        def living() -> list[int]:
            pids = [int(path.name.removeprefix("held-")) for path in self.hold.glob("held-*")]
            return [pid for pid in pids if Path(f"/proc/{pid}").exists()]

        return awaited(lambda: pids if len(pids := living()) >= count else [], f"{count} workers that hold")

    def measured(self) -> Counter[str]:
        """How often each measurement was made, by the processes that made them."""
        path = self.hold / "measured"
        return Counter(path.read_text().splitlines()) if path.exists() else Counter()

    def let_go(self) -> None:
        (self.hold / "go").touch()


@pytest.fixture
def cluster(place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("FAKE_HOLD", str(place.folder / "hold"))
    made = Cluster(place)
    try:
        yield made
    finally:
        made.end()


def lines_of(path: Path) -> list[str]:
    return [work(each.kind, each.point.key, each.process) for each in store.load(path).measurements]


def kept(path: Path) -> list[str]:
    return lines_of(path) if path.exists() else []


def whole(path: Path) -> bool:
    """Every measurement of the plan is there once, and good."""
    run = store.load(path)
    assert {each.outcome.status for each in run.measurements} == {"ok"}
    return sorted(lines_of(path)) == sorted(run.manifest.planned)


@pytest.mark.parametrize("blow", ["worker", "host"])
def test_a_lost_worker_or_host_costs_what_it_was_at(cluster, place, blow: str) -> None:
    """A nanny starts its killed worker anew; of a host nothing comes back. The rest of the job is measured once."""
    cluster.start("GPU=1", "GPU=1")
    run = place.folder / "run.mlaprof"
    sweeping = cluster.sweep("study.yaml", "--out", run)
    child = cluster.held(2)[0]
    before = awaited(lambda: kept(run) if len(kept(run)) == 4 else [], "what was measured before to be kept")
    worker = parent_of(child)
    victims = [worker] if blow == "worker" else [parent_of(worker), worker, child]
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    awaited(lambda: not Path(f"/proc/{child}").exists(), "the measuring process to go with its parent")
    cluster.let_go()
    _, err = sweeping.communicate(timeout=LIMIT_S)

    assert sweeping.returncode == 0, err
    assert whole(run) and lines_of(run)[:4] == before
    assert set(cluster.measured().values()) == {1}
    assert len(re.findall(r"^GPU tcp://127.0.0.1:\d+ is gone$", err, re.MULTILINE)) == 1
    assert "Traceback" not in err


def test_a_sweep_goes_on_after_its_scheduler_died(cluster, place) -> None:
    """One line says how; what was measured is kept, and not measured again; no child is left measuring."""
    cluster.start("GPU=1", "GPU=1")
    run = place.folder / "run.mlaprof"
    sweeping = cluster.sweep("study.yaml", "--out", run)
    children = cluster.held(2)
    awaited(lambda: len(kept(run)) == 4, "what was measured before to be kept")
    cluster.processes[0].kill()
    out, err = sweeping.communicate(timeout=LIMIT_S)

    assert (sweeping.returncode, out) == (4, "")
    (line,) = re.findall(r"^error: .*$", err, re.MULTILINE)
    assert "the Dask scheduler is gone, what was measured is kept;" in line and f"mlaprof sweep --resume {run} " in line
    assert err.endswith(f"{line}\n") and "Traceback" not in err and "distributed" not in err
    awaited(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "the children to end")
    assert len(lines_of(run)) == 4

    cluster.end()
    cluster.let_go()
    cluster.start("GPU=1")
    going_on = cluster.sweep("--resume", run)
    _, err = going_on.communicate(timeout=LIMIT_S)
    assert going_on.returncode == 0, err
    assert whole(run)
    assert set(cluster.measured().values()) == {1}


def test_children_end_with_the_sweep_and_the_cluster_serves_the_next(cluster, place) -> None:
    """Killed or interrupted. A kind of GPU is a choice of workers."""
    cluster.start("GPU=1", "GPU=1,GPU:H100=1")
    run = place.folder / "run.mlaprof"
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        sweeping = cluster.sweep(*(("--resume", run) if run.exists() else ("study.yaml", "--out", run)))
        children = cluster.held(2)
        sweeping.send_signal(number)
        _, err = sweeping.communicate(timeout=LIMIT_S)
        assert sweeping.returncode == code, err
        awaited(lambda gone=children: not any(Path(f"/proc/{pid}").exists() for pid in gone), "the children to end")
    cluster.let_go()
    going_on = cluster.sweep("--resume", run, "--gpu-kind", "H100")
    _, err = going_on.communicate(timeout=LIMIT_S)

    assert going_on.returncode == 0, err
    assert whole(run)
    assert len(re.findall(r"^GPU tcp://", err, re.MULTILINE)) == 1
