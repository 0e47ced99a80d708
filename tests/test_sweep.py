"""The sweep against a fake worker: one process a job, and a fault costs its own Point."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from mlaprof.engine.job import spawn_worker
from mlaprof.machine.child import Child
from mlaprof.plan import Plan
from mlaprof.records import Event, Job, Measurement, Outcome, Point, Started
from mlaprof.shapes import LayerShape
from mlaprof.study import BatchSpec, LayerSpec, MeasureSpec, StageLimits
from mlaprof.sweep import sweep

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")

SHAPE = LayerShape(
    hidden_size=64,
    num_heads=2,
    q_lora_rank=16,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=16,
    v_head_dim=16,
    index_n_heads=2,
    index_head_dim=128,
    index_topk=64,
    indexer_rope_interleave=False,
    max_position_embeddings=1024,
    rms_norm_eps=1e-6,
    intermediate_size=128,
)


def make_point(num_tokens: int, mode: str = "split_eager") -> Point:
    return Point(preset="tiny", phase="prefill", num_tokens=num_tokens, context_len=0, mode=mode)


def make_job(*num_tokens: int, timeout_s: float = 60.0) -> Job:
    return Job(
        kind="timing",
        device="cpu",
        layer=LayerSpec(preset="tiny", shape=SHAPE),
        batch=BatchSpec(),
        measure=MeasureSpec(point_timeout_s=timeout_s),
        points=tuple(map(make_point, num_tokens)),
    )


def fake(mode: str, target: int | None = None) -> Callable[[Job], Child]:
    arguments = [mode] if target is None else [mode, str(target)]
    return partial(spawn_worker, command=[sys.executable, str(FAKE_WORKER), *arguments])


class Counted:
    """A Spawn that remembers its jobs and workers."""

    def __init__(self, spawn: Callable[[Job], Child]) -> None:
        self.spawn = spawn
        self.jobs: list[Job] = []
        self.workers: list[Child] = []

    def __call__(self, job: Job) -> Child:
        self.jobs.append(job)
        self.workers.append(self.spawn(job))
        return self.workers[-1]


def run(*jobs: Job, spawn: Callable[[Job], Child]) -> list[Measurement]:
    """Sweep the jobs and return what was kept."""
    kept: list[Measurement] = []
    events = list(sweep(Plan(jobs=jobs, skips=()), spawn=spawn, keep=kept.append))
    assert kept == [event for event in events if isinstance(event, Measurement)]
    return kept


def statuses(measurements: list[Measurement]) -> dict[int, str]:
    found = {each.point.num_tokens: each.outcome.status for each in measurements}
    assert len(found) == len(measurements), "a Point was answered twice"
    return found


def processes_of_group(group: int) -> list[int]:
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            members.append(int(stat.parent.name))
    return members


def with_checkout() -> dict[str, str]:
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def wait_for(condition: Callable[[], object], limit_s: float = 20.0) -> object:
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def children() -> set[str]:
    """Process ids of this process's children, zombies too."""
    listed = (task / "children" for task in Path("/proc/self/task").iterdir())
    return {pid for path in listed for pid in path.read_text().split()}


@pytest.fixture(autouse=True)
def no_descriptor_no_child_and_no_file_is_left(tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    descriptors, others = set(os.listdir("/proc/self/fd")), children()
    yield
    assert set(os.listdir("/proc/self/fd")) <= descriptors
    assert list((tmp_path / "temporary").iterdir()) == []
    assert children() <= others  # libraries that earlier tests used may keep helpers of their own


def test_a_sound_worker_measures_every_point_of_every_job_in_order():
    """Each job has its own process, and every Point is answered once, in the plan's order."""
    spawn = Counted(fake("ok"))

    kept = run(make_job(8, 4, 1), make_job(64, 16), spawn=spawn)

    assert [each.point.num_tokens for each in kept] == [8, 4, 1, 64, 16]
    assert {each.outcome.status for each in kept} == {"ok"}
    assert len({worker.pid for worker in spawn.workers}) == 2


def test_what_fails_in_a_process_is_told_of_that_process():
    """Failures that the parent makes, too: another process of the same Point stays as it is."""
    second = make_job(8, 4).model_copy(update={"process": 1})

    kept = run(make_job(8, 4), second, spawn=fake("exit", 4))

    assert [(each.point.num_tokens, each.process, each.outcome.status) for each in kept] == [
        *((8, 0, "ok"), (4, 0, "failed"), (8, 1, "ok"), (4, 1, "failed")),
    ]


def test_a_measurement_of_another_process_is_no_record_of_this_job():
    """It would take the place of what that process measured."""

    def first(job: Job) -> Child:
        return fake("ok")(job.model_copy(update={"process": 0}))

    (kept,) = run(make_job(8).model_copy(update={"process": 1}), spawn=first)

    assert (kept.process, kept.outcome.status) == (1, "failed")
    assert "expected process 1, got 0" in kept.outcome.reason


def test_stages_are_reported_before_their_measurement():
    """A Started of each stage comes before the Measurement, so that progress can be shown."""
    events = list(sweep(Plan(jobs=(make_job(3),), skips=()), spawn=fake("ok"), keep=lambda each: None))

    key = make_point(3).key
    assert events[:2] == [
        Started(kind="timing", key=key, stage="build"),
        Started(kind="timing", key=key, stage="capture"),
    ]
    assert isinstance(events[2], Measurement) and len(events) == 3


def test_skips_come_first_and_are_kept():
    """A Point that cannot run is a row as well."""
    skip = Measurement(
        point=make_point(5, "full"),
        kind="timing",
        outcome=Outcome(status="skipped", stage="plan", reason="not in this mode"),
        emulated=True,
        recorded_at="2026-11-23T10:15:00+00:00",
    )
    kept: list[Measurement] = []

    events = sweep(Plan(jobs=(make_job(1),), skips=(skip,)), spawn=fake("ok"), keep=kept.append)

    assert next(events) == skip
    assert kept == [skip]
    events.close()


def test_a_measurement_is_kept_before_it_is_yielded():
    """Whoever sees a Measurement can rely on it being on disk."""
    kept: list[Measurement] = []
    for event in sweep(Plan(jobs=(make_job(1, 2),), skips=()), spawn=fake("ok"), keep=kept.append):
        if isinstance(event, Measurement):
            assert kept[-1] is event


@pytest.mark.parametrize(
    ("mode", "fault", "words"),
    [
        ("signal", "illegal_address", "killed by SIGABRT"),
        ("exit", "exited", "exit code 3"),
        ("rubbish", "rubbish", "no record"),
        ("torn", "exited", "exit code 0"),
        ("stranger", "rubbish", "not measured yet"),
        ("chatter", "crashed", "killed by SIGABRT"),
    ],
)
def test_a_fault_costs_its_own_point(mode, fault, words):
    """The Point in flight fails with the stage it was in; the rest is measured by a fresh worker."""
    spawn = Counted(fake(mode, 4))

    kept = run(make_job(8, 4, 2, 1), make_job(16), spawn=spawn)

    assert statuses(kept) == {8: "ok", 4: "failed", 2: "ok", 1: "ok", 16: "ok"}
    failure = next(each for each in kept if each.outcome.status == "failed")
    assert (failure.outcome.stage, failure.outcome.fault) == ("capture", fault)
    assert words in failure.outcome.reason.splitlines()[0]
    assert failure.emulated
    assert [[point.num_tokens for point in job.points] for job in spawn.jobs] == [[8, 4, 2, 1], [2, 1], [16]]


def test_the_last_words_of_a_worker_are_in_the_reason():
    """What the worker printed last tells why it died."""
    (failure,) = run(make_job(4), spawn=fake("signal", 4))

    assert "an illegal memory access was encountered" in failure.outcome.reason


def test_the_reason_is_bounded_and_harmless_to_a_terminal():
    """A worker that prints megabytes leaves 4 KiB of them, without escape sequences."""
    (failure,) = run(make_job(4), spawn=fake("chatter", 4))

    assert len(failure.outcome.reason) < 4096 + 200
    assert "\x1b" not in failure.outcome.reason


def test_a_silent_worker_is_killed_with_its_group_at_the_limit():
    """point_timeout_s without a line ends the worker and what it forked, and fails the Point in flight."""
    spawn = Counted(fake("hang", 4))

    kept = run(make_job(8, 4, 2, timeout_s=0.7), spawn=spawn)

    assert statuses(kept) == {8: "ok", 4: "failed", 2: "ok"}
    assert kept[1].outcome.fault == "timeout" and "no sign of life for 0.7 s" in kept[1].outcome.reason
    assert wait_for(lambda: processes_of_group(spawn.workers[0].pid) == [])


def test_each_stage_has_a_limit_of_its_own():
    """The hang is in capture; point_timeout_s would last a minute, and the limits of other stages do not count."""
    limits = StageLimits(build=50.0, capture=0.6, measure=40.0)
    job = make_job(4)
    job = job.model_copy(update={"measure": job.measure.model_copy(update={"limits_s": limits})})

    (failure,) = run(job, spawn=fake("hang", 4))

    assert "no sign of life for 0.6 s" in failure.outcome.reason
    assert [job.measure.limit_s(stage) for stage in ("build", "verify", "measure", "worker")] == [
        50.0,
        60.0,
        40.0,
        60.0,
    ]


def test_a_process_that_left_group_and_session_is_ended_with_the_worker():
    """A compiler's helper may call setsid; the worker that started it is dead already."""
    (failure,) = run(make_job(4), spawn=fake("runaway", 4))

    pid = int(re.search(r"runaway (\d+)", failure.outcome.reason)[1])
    assert wait_for(
        lambda: not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    )


def test_in_a_shared_stage_the_fault_is_laid_on_the_point_at_work():
    """The stage was begun for 8, and 2 was running when the worker died: 8 and 4 are measured all the same."""
    kept = run(make_job(8, 4, 2), spawn=fake("marked", 2))

    assert statuses(kept) == {2: "failed", 8: "ok", 4: "ok"}
    assert (kept[0].outcome.stage, kept[0].outcome.fault) == ("measure", "crashed")


def test_a_layer_that_kills_its_worker_is_built_without_its_largest_cell():
    """Memory is what it most often lacks, and the cells come largest first."""
    kept = run(make_job(8, 4, 2), spawn=fake("build", 8))

    assert statuses(kept) == {8: "failed", 4: "ok", 2: "ok"}
    assert (kept[0].outcome.stage, kept[0].outcome.fault) == ("build", "killed")


def test_a_layer_that_breaks_every_worker_is_not_built_for_each_cell(monkeypatch):
    """Not for lack of memory, and once more without the largest cell: so it will break again."""
    monkeypatch.setenv("FAKE_SIGNAL", "SIGABRT")
    spawn = Counted(fake("build", 1))

    kept = run(make_job(8, 4, 2, 1), spawn=spawn)

    assert statuses(kept) == {8: "failed", 4: "failed", 2: "failed", 1: "failed"}
    assert len(spawn.workers) == 2


def test_a_point_that_ended_two_workers_is_left_alone():
    """In three processes that time it and one that weighs it: the third and the fourth job go on without it."""
    again = [make_job(8, 4).model_copy(update={"process": each}) for each in (1, 2)]
    memory = make_job(8, 4).model_copy(update={"kind": "memory"})
    spawn = Counted(fake("signal", 4))

    kept = run(make_job(8, 4), *again, memory, spawn=spawn)

    assert [each.outcome.fault for each in kept if each.point.num_tokens == 4] == [
        *("illegal_address", "illegal_address", "quarantined", "quarantined")
    ]
    assert all(each.outcome.usable for each in kept if each.point.num_tokens == 8)
    left_alone = kept[-2].outcome
    assert (
        left_alone.stage == "plan"
        and "ended a worker 2 times, at last by illegal_address at capture" in left_alone.reason
    )
    assert [len(job.points) for job in spawn.jobs] == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("mode", "words"), [("dead", "exit code 7"), ("mute", "no sign of life"), ("rubbish-first", "no record")]
)
def test_a_worker_that_never_starts_a_point_is_tried_once_more(mode, words):
    """Then all Points of such a job fail, in stage `worker`; the next job has its own chances."""
    spawn = Counted(fake(mode))

    kept = run(make_job(8, 4, timeout_s=0.7), make_job(2, timeout_s=0.7), spawn=spawn)

    assert statuses(kept) == {8: "failed", 4: "failed", 2: "failed"}
    assert {each.outcome.stage for each in kept} == {"worker"}
    assert all(words in each.outcome.reason for each in kept)
    assert len(spawn.jobs) == 4


def test_a_worker_that_is_killed_before_it_begins_costs_nothing():
    """Whoever kills it, a fresh one does all of its job."""
    commands = iter(
        [[sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], [sys.executable, str(FAKE_WORKER), "ok"]]
    )

    kept = run(make_job(8, 4), spawn=lambda job: spawn_worker(job, command=next(commands)))

    assert statuses(kept) == {8: "ok", 4: "ok"}


def test_a_worker_that_cannot_be_started_fails_its_points():
    """A missing interpreter is a failure of the Points, not a traceback."""
    kept = run(make_job(8, 4), spawn=partial(spawn_worker, command=["/nonexistent/python"]))

    assert statuses(kept) == {8: "failed", 4: "failed"}
    assert "could not start" in kept[0].outcome.reason


def test_a_point_that_was_reported_is_not_measured_again():
    """A worker that repeats itself is ended; its first answer stays and only the rest runs again."""
    spawn = Counted(fake("twice", 8))

    kept = run(make_job(8, 4), spawn=spawn)

    assert statuses(kept) == {8: "ok", 4: "ok"}
    assert [[point.num_tokens for point in job.points] for job in spawn.jobs] == [[8, 4], [4]]


def test_a_worker_that_does_not_go_is_ended(monkeypatch):
    """All is measured, but the process stays with a grandchild on its pipes: it is killed after a grace."""
    monkeypatch.setattr("mlaprof.engine.job.EXIT_GRACE_S", 0.3)
    spawn = Counted(fake("linger"))

    kept = run(make_job(8), spawn=spawn)

    assert statuses(kept) == {8: "ok"}
    assert wait_for(lambda: processes_of_group(spawn.workers[0].pid) == [])


@pytest.mark.parametrize("end", ["close", "interrupt", "disk full"])
def test_the_worker_ends_with_the_sweep(end):
    """Closing the iterator, Ctrl-C, or a failing store ends the worker and its group."""
    spawn = Counted(fake("hang", 4))

    def keep(measurement: Measurement) -> None:
        if end == "disk full":
            raise OSError("no space left on device")

    events: Iterator[Event] = sweep(Plan(jobs=(make_job(8, 4),), skips=()), spawn=spawn, keep=keep)
    if end == "disk full":
        with pytest.raises(OSError, match="no space"):
            list(events)
    elif end == "close":
        next(events)
        events.close()
    else:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            list(events)
        signal.signal(signal.SIGINT, before)

    assert len(spawn.workers) == 1
    assert wait_for(lambda: processes_of_group(spawn.workers[0].pid) == [])


def test_a_worker_dies_with_its_parent(tmp_path):
    """kill -9 of the parent leaves no worker behind, when the worker has called die_with_parent."""
    pid_file = tmp_path / "pid"
    worker = (
        "import os, time; from mlaprof.machine.parent import die_with_parent; assert die_with_parent();"
        f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    )
    parent = (
        "import sys; from mlaprof.machine.child import Child;"
        f"child = Child([sys.executable, '-c', {worker!r}], b'', {{}}); child.next_line(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], env=with_checkout())
    try:
        pid = int(wait_for(lambda: pid_file.exists() and pid_file.read_text()))
    finally:
        process.kill()
        process.wait()

    assert wait_for(lambda: processes_of_group(pid) == [])


def test_the_worker_finds_this_checkout_and_not_the_users_files(tmp_path, monkeypatch):
    """Nothing is installed, and a random.py lies in the user's folder: the real worker's imports are ours."""
    (tmp_path / "random.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    script = "import random, mlaprof, os; os.write(int(os.sys.argv[-1]), mlaprof.__file__.encode() + b'\\n')"

    child = spawn_worker(make_job(1), command=[sys.executable, "-P", "-c", script])
    try:
        line = child.next_line(60)
    finally:
        child.kill()

    import mlaprof

    assert (line or b"").decode() == str(Path(mlaprof.__file__).resolve())


def test_the_job_reaches_the_worker_whole():
    """The JSON on the worker's stdin is the Job, in every field."""
    job = make_job(1, 63, 4096)

    assert Job.model_validate_json(job.model_dump_json()) == job


def test_a_worker_that_reads_nothing_cannot_block_the_parent():
    """A job larger than a pipe is handed over without waiting for the worker."""
    job = make_job(*range(1, 2001), timeout_s=0.5)

    child = spawn_worker(job, command=[sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with pytest.raises(TimeoutError):
            child.next_line(0.1)
    finally:
        child.kill()


def test_the_fake_worker_uses_the_standard_library_only():
    """It must start at once, hundreds of times."""
    imported = set(re.findall(r"^import (\w+)", FAKE_WORKER.read_text(), re.MULTILINE))

    assert imported <= sys.stdlib_module_names
