"""Jobs spread over GPUs of one machine: a worker each, and one lost GPU costs the cell at work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlaprof.engine.local import Lanes
from mlaprof.machine.seats import Seat
from mlaprof.plan import Plan
from mlaprof.sweep import sweep


def seats(count: int) -> list[Seat]:
    return [Seat(str(number), variables={"CUDA_VISIBLE_DEVICES": f"GPU-{number}"}) for number in range(count)]


def done(kept) -> list[tuple[int, int, str]]:
    return sorted((each.process, each.point.num_tokens, each.outcome.status) for each in kept)


class Meeting:
    """A spawn whose workers wait for each other: each job is on a seat of its own, at one time."""

    def __init__(self, spawn, count: int) -> None:
        self.spawn = spawn
        self.barrier = threading.Barrier(count, timeout=30)
        self.seen: list[tuple[str, frozenset[int]]] = []

    def __call__(self, job, *, variables):
        self.barrier.wait()
        self.seen.append((variables["CUDA_VISIBLE_DEVICES"], frozenset(os.sched_getaffinity(0))))
        return self.spawn(job, variables=variables)


def test_every_gpu_has_a_worker_at_the_same_time(bench) -> None:
    spawn = Meeting(bench.fake("ok"), 2)

    kept = bench.run(bench.job(8, 4), bench.job(8, 4, process=1), engine=Lanes(seats(2)), spawn=spawn)

    assert done(kept) == [(0, 4, "ok"), (0, 8, "ok"), (1, 4, "ok"), (1, 8, "ok")]
    assert sorted(gpu for gpu, _ in spawn.seen) == ["GPU-0", "GPU-1"]


def test_a_worker_inherits_the_cpus_of_its_seat_and_the_sweep_keeps_its_own(bench) -> None:
    before = os.sched_getaffinity(0)
    one = frozenset([min(before)])
    spawn = Meeting(bench.fake("ok"), 1)

    bench.run(
        bench.job(8), engine=Lanes([Seat("0", cpus=one, variables={"CUDA_VISIBLE_DEVICES": "GPU-0"})]), spawn=spawn
    )

    assert spawn.seen == [("GPU-0", one)]
    assert os.sched_getaffinity(0) == before


def test_more_jobs_than_gpus_are_all_done_once(bench) -> None:
    jobs = [bench.job(4, 2, process=each) for each in range(7)]

    kept = bench.run(*jobs, engine=Lanes(seats(3)), spawn=bench.fake("ok"))

    assert done(kept) == [(process, tokens, "ok") for process in range(7) for tokens in (2, 4)]


def test_a_lost_gpu_costs_the_cell_at_work(bench) -> None:
    """What is left of its job, and all jobs behind it, go on where a GPU is left."""
    jobs = [bench.job(8, 4, 2, process=each) for each in range(4)]

    kept = bench.run(*jobs, engine=Lanes(seats(2)), spawn=bench.fake("lost", 1))

    assert len(done(kept)) == 12 and len(set(done(kept))) == 12
    (lost,) = [each for each in kept if each.outcome.status == "failed"]
    assert (lost.outcome.fault, lost.outcome.stage, lost.point.num_tokens) == ("gpu_lost", "measure", 8)


def test_the_last_gpu_is_not_given_up_but_a_job_that_loses_it_twice_is(bench) -> None:
    """A fresh worker finds a GPU whose memory was mended; one that is gone is not asked for each Point."""
    kept = bench.run(bench.job(8, 4, 2, 1), engine=Lanes(seats(1)), spawn=bench.fake("lost", 0))

    assert done(kept) == [(0, 1, "failed"), (0, 2, "failed"), (0, 4, "failed"), (0, 8, "failed")]
    assert {each.outcome.fault for each in kept} == {"gpu_lost"}


def test_a_point_that_ended_two_workers_is_left_alone_on_every_gpu(bench) -> None:
    jobs = [bench.job(8, 4, process=each) for each in range(5)]

    kept = bench.run(*jobs, engine=Lanes(seats(1)), spawn=bench.fake("exit", 4))

    faults = [each.outcome.fault for each in kept if each.point.num_tokens == 4]
    assert faults == ["exited", "exited", "quarantined", "quarantined", "quarantined"]


@pytest.mark.parametrize("end", ["close", "disk full", "spawn"])
def test_workers_end_with_the_sweep(bench, end: str) -> None:
    """Of every lane, with their threads, whether the iterator is closed, the store fails or a thread does."""
    workers = []

    def spawn(job, *, variables):
        if end == "spawn" and job.process == 1:
            raise RuntimeError("no such thing")
        workers.append(bench.fake("hang", 4)(job, variables=variables))
        return workers[-1]

    def keep(measurement) -> None:
        if end == "disk full":
            raise OSError("no space left on device")

    jobs = (bench.job(8, 4), bench.job(8, 4, process=1))
    events = sweep(Plan(jobs=jobs, skips=()), engine=Lanes(seats(2)), spawn=spawn, keep=keep)
    if end == "close":
        next(events)
        events.close()
    else:
        with pytest.raises(OSError if end == "disk full" else RuntimeError):
            list(events)

    assert [each.name for each in threading.enumerate() if each.name in "01"] == []
    for worker in workers:
        assert not Path(f"/proc/{worker.pid}").exists()


STUDY = """\
name: spread
preset: tiny
sweep: {num_tokens: [4, 2], mode: [monolithic_eager, split_eager]}
measure: {processes: 4, memory: true, counts: true, twin: false}
"""


def test_a_sweep_over_emulated_gpus_says_so_and_is_whole(checkout: Path, tmp_path: Path) -> None:
    """At the door: what was measured is what one worker measures."""
    (tmp_path / "study.yaml").write_text(STUDY)
    command = [sys.executable, str(checkout / "tests" / "drills" / "command.py"), "ok", "sweep"]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    spread = run("study.yaml", "--device", "cpu", "--gpus", "0,1", "--out", "spread.mlaprof")
    assert spread.returncode == 0, spread.stderr
    assert len(re.findall(r"^GPU [01]: emulated on the CPU", spread.stderr, re.MULTILINE)) == 2
    alone = run("study.yaml", "--device", "cpu", "--out", "alone.mlaprof")
    assert alone.returncode == 0, alone.stderr
    from mlaprof import store

    assert store.done(tmp_path / "spread.mlaprof") == store.done(tmp_path / "alone.mlaprof")
    refused = run("study.yaml", "--device", "cpu", "--gpus", "0,0")
    assert refused.returncode == 2 and "--gpus: a GPU is named twice" in refused.stderr
    refused = run("study.yaml", "--device", "cpu", "--gpus", "0,1", "--set", "tp.world=2")
    assert refused.returncode == 2 and "gives every worker one GPU, and tp.world wants 2" in refused.stderr


def test_the_door_imports_no_dask(checkout: Path) -> None:
    code = "import mlaprof.cli, sys; print('dask' in sys.modules, 'distributed' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, timeout=60)
    assert found.stdout.split() == ["False", "False"]
