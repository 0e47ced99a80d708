"""What the client of a Dask cluster makes of its members, with a script in the place of Dask; tests/drills has it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlaprof.config.load import load_study
from mlaprof.engine import cluster as engine
from mlaprof.engine import members as members_module
from mlaprof.engine import remote
from mlaprof.engine.cluster import LOSSES, Cluster
from mlaprof.engine.job import failed
from mlaprof.engine.members import Members
from mlaprof.errors import ClusterError, MachineError
from mlaprof.machine.host import Host, this_host
from mlaprof.opening import DeviceChoice, manifest_of, new_run, resumed_run
from mlaprof.plan import Plan
from mlaprof.records import Gpu, Job, Manifest, Outcome, Point, Started
from mlaprof.sweep import sweep
from mlaprof.version import __version__
from mlaprof.wire import decode_event, decode_job, encode


@pytest.fixture(scope="module")
def here() -> Host:
    return this_host()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "LOOK_S", 0.001)
    monkeypatch.setattr(members_module, "HOSTS_S", 0.3)
    monkeypatch.setattr(engine, "END_S", 0.3)


class Task:
    """One attempt at a job, on a member: the script tells what becomes of it."""

    def __init__(self, dask: Dask, address: str, number: int, job: Job, elsewhere: bool) -> None:
        self.dask, self.address, self.number, self.job, self.elsewhere = dask, address, number, job, elsewhere
        self.future = SimpleNamespace(status="pending", exception=lambda: OSError("no space"))

    def begin(self, point: Point) -> None:
        started = Started(kind=self.job.kind, key=point.key, stage="measure")
        self.dask.tell({"task": self.number, "event": encode(started)})

    def answer(self, *points: Point) -> None:
        for point in points:
            self.dask.measured[point.key] += 1
            done = failed(self.job, point, Outcome(status="ok"))
            self.dask.tell({"task": self.number, "event": encode(done)})

    def end(self, how: str = "done", why: str = "") -> None:
        self.dask.tell({"task": self.number, "end": how, "why": why})

    def whole(self) -> None:
        self.answer(*self.job.points)
        self.end()


Script = Callable[[Task], None]


class Dask:
    """A client whose workers do what a script says; addresses are kept in `workers`, with what they offer."""

    id = "client"

    def __init__(self, facts: Host, script: Script, *addresses: str) -> None:
        self.facts = dict.fromkeys(addresses, facts)
        self.workers = {address: {"resources": {"GPU": 1.0}} for address in addresses}
        self.script = script
        self.status = "running"
        self.scheduler = SimpleNamespace(identity=None)
        self.tasks: list[Task] = []
        self.asked: list[str] = []
        self.measured: Counter[str] = Counter()
        self.cancelled: list[object] = []
        self.version = __version__
        self.lines: list[str] = []

    def subscribe_topic(self, topic, handler) -> None:
        self.tell = lambda message: handler((0.0, message))

    def sync(self, identity, **options):
        return {"workers": dict(self.workers)}

    def submit(self, function, *arguments, workers, resources=None, process="", elsewhere=True, **options):
        (address,) = workers
        assert not options["allow_other_workers"] and options["retries"] == 0
        if function is remote.tell_host:
            self.asked.append(address)
            facts = self.facts[address].model_dump_json()
            self.tell({"host": address, "id": f"id of {address}", "version": self.version, "facts": facts})
            return SimpleNamespace(status="pending")
        assert (process, resources) == (f"id of {address}", {"GPU": 1})
        number, text = arguments[:2]
        self.tasks.append(Task(self, address, number, decode_job(text), elsewhere))
        self.tell({"task": number, "begun": True})
        self.script(self.tasks[-1])
        return self.tasks[-1].future

    def cancel(self, futures) -> None:
        self.cancelled += futures

    def members(self, manifest: Manifest | None = None, *, shared_gpu: bool = False) -> Members:
        made = Members(self, {"GPU": 1}, self.lines.append)
        made.hosts()
        made.admit(manifest or manifest_for(self), shared_gpu=shared_gpu)
        return made

    def sweep(self, *jobs: Job) -> list:
        kept: list = []
        for _ in sweep(Plan(jobs=jobs, skips=()), engine=Cluster(self.members()), keep=kept.append):
            pass
        return kept


def manifest_for(dask: Dask, device: str = "cpu") -> Manifest:
    return manifest_of("tiny", device, "", (), command=(), host=next(iter(dask.facts.values())))


def two_arms(bench, *num_tokens: int, process: int = 0) -> Job:
    """A timing job whose cells have two arms."""
    job = bench.job(*num_tokens, process=process)
    arms = [(each, each.model_copy(update={"mode": "monolithic_eager"})) for each in job.points]
    return job.model_copy(update={"points": tuple(point for pair in arms for point in pair)})


def statuses(kept) -> dict[str, str]:
    """What the run file holds: the last of each key."""
    return {each.point.key: each.outcome.status for each in kept}


def test_every_member_has_a_job_and_every_point_an_answer(bench, here: Host) -> None:
    dask = Dask(here, Task.whole, "a", "b")
    jobs = [two_arms(bench, 8, 4, process=each) for each in range(4)]

    kept = dask.sweep(*jobs)

    assert len(kept) == 16 and {each.outcome.status for each in kept} == {"ok"}
    assert {task.address for task in dask.tasks} == {"a", "b"} and len(dask.tasks) == 4


def test_of_a_lost_host_only_what_is_not_finished_is_measured_again(bench, here: Host) -> None:
    """A cell with one arm answered is measured whole: its arms are timed side by side, on one GPU."""
    job = two_arms(bench, 8, 4, 2)

    def script(task: Task) -> None:
        if task.address == "a":
            task.answer(*task.job.points[:3])
            task.dask.workers.pop("a")
        else:
            task.whole()

    dask = Dask(here, script, "a", "b")

    kept = dask.sweep(job)

    assert statuses(kept) == {point.key: "ok" for point in job.points}
    assert [dask.measured[point.key] for point in job.points] == [1, 1, 2, 1, 1, 1]


def test_events_of_an_attempt_that_was_given_up_are_dropped(bench, here: Host) -> None:
    job = bench.job(8, 4)

    def script(task: Task) -> None:
        if task.address == "a":
            task.dask.workers = {"b": {"resources": {"GPU": 1.0}}}
        else:
            first = task.dask.tasks[0]
            first.answer(*first.job.points)
            first.end()
            task.whole()

    dask = Dask(here, script, "a", "b")
    del dask.workers["b"]

    kept = dask.sweep(job)

    assert len(kept) == 2 and statuses(kept) == {point.key: "ok" for point in job.points}
    assert set(dask.measured.values()) == {2}  # and told twice, of which one was heard


def test_the_cell_that_takes_hosts_with_it_fails_and_the_others_do_not(bench, here: Host) -> None:
    job = two_arms(bench, 8, 4, 2)
    guilty = job.points[2].cell

    def script(task: Task) -> None:
        for point in task.job.points:
            task.begin(point)
            if point.cell == guilty and point.mode == "monolithic_eager":
                del task.dask.workers[task.address]
                task.dask.workers[f"{task.address}+"] = {"resources": {"GPU": 1.0}}
                task.dask.facts[f"{task.address}+"] = here
                return
            task.answer(point)
        task.end()

    dask = Dask(here, script, "a")

    kept = dask.sweep(job)

    assert Counter(statuses(kept).values()) == {"ok": 5, "failed": 1}
    (lost,) = [each for each in kept if each.outcome.status == "failed"]
    assert (lost.outcome.fault, lost.outcome.stage, lost.point.cell) == ("host_lost", "measure", guilty)
    assert lost.outcome.reason == "its host was lost 3 times, at last: a++ is gone"
    assert len(dask.tasks) == LOSSES + 1
    assert dask.measured[job.points[0].key] == 1  # of a cell that was finished


def test_a_job_that_never_begins_fails_whole(bench, here: Host) -> None:
    def script(task: Task) -> None:
        task.end("ended")

    kept = Dask(here, script, "a").sweep(bench.job(8, 4))

    assert [(each.outcome.fault, each.outcome.stage) for each in kept] == [("host_lost", "worker")] * 2


def test_hosts_that_come_and_go_cost_nothing_while_there_are_answers(bench, here: Host) -> None:
    """As many losses as Points: each was followed by a new answer."""
    job = bench.job(6, 5, 4, 3, 2, 1)

    def script(task: Task) -> None:
        task.answer(task.job.points[0])
        task.end("ended")

    dask = Dask(here, script, "a")

    assert Counter(each.outcome.status for each in dask.sweep(job)) == {"ok": 6}
    assert set(dask.measured.values()) == {1}


@pytest.mark.parametrize(
    ("how", "said"),
    [("gpu_lost", "its GPU is lost"), ("broken", "OSError: no space"), ("error", "OSError('no space')")],
)
def test_a_member_that_cannot_measure_is_left_out(bench, here: Host, how: str, said: str) -> None:
    def script(task: Task) -> None:
        if task.address == "b":
            task.whole()
        elif how == "error":
            task.future.status = "error"
        else:
            task.end(how, "OSError: no space")

    dask = Dask(here, script, "a", "b")

    kept = dask.sweep(*(bench.job(8, 4, process=each) for each in range(3)))

    assert len(kept) == 6 and {each.outcome.status for each in kept} == {"ok"}
    assert [task.address for task in dask.tasks].count("a") == 1
    assert any(line.startswith("GPU a gets no more jobs: ") and said in line for line in dask.lines)


def test_whoever_has_taken_the_address_of_a_member_is_asked_anew(bench, here: Host) -> None:
    def script(task: Task) -> None:
        if task.number == 0:
            task.end("stranger")
        else:
            task.whole()

    dask = Dask(here, script, "a")

    assert statuses(dask.sweep(bench.job(8))).popitem()[1] == "ok"
    assert dask.asked == ["a", "a"]


def test_the_last_member_is_told_that_there_is_no_other(bench, here: Host) -> None:
    for addresses, elsewhere in ((("a",), False), (("a", "b"), True)):
        dask = Dask(here, Task.whole, *addresses)
        dask.sweep(bench.job(8))
        assert dask.tasks[0].elsewhere is elsewhere


def test_a_sweep_that_nobody_is_left_for_ends(bench, here: Host) -> None:
    def script(task: Task) -> None:
        task.dask.workers.clear()

    with pytest.raises(ClusterError, match=r'no Dask worker offers GPU=1; .* --resources "GPU=1"'):
        Dask(here, script, "a").sweep(bench.job(8))


@pytest.mark.parametrize("sign", ["status", "future", "answer"])
def test_a_scheduler_that_is_gone_is_noticed(bench, here: Host, sign: str) -> None:
    def script(task: Task) -> None:
        if sign == "status":
            task.dask.status = "connecting"
        elif sign == "future":  # it was away for a moment, and has forgotten
            task.future.status = "cancelled"
        else:
            task.dask.sync = refused

    def refused(*arguments, **options):
        raise TimeoutError("timed out")

    with pytest.raises(ClusterError, match="the Dask scheduler is gone"):
        Dask(here, script, "a").sweep(bench.job(8))


def test_closing_cancels_what_is_under_way(bench, here: Host) -> None:
    dask = Dask(here, lambda task: task.begin(task.job.points[0]), "a", "b")
    events = Cluster(dask.members())([bench.job(8, process=each) for each in range(3)], bench.fake("ok"), lambda _: {})

    next(events)
    events.close()

    assert dask.cancelled == [task.future for task in dask.tasks] and dask.cancelled


# Who may take part

H100 = Gpu(name="H100", uuid="GPU-1", driver="580", compute_capability="9.0", memory_bytes=2**36)


def with_gpu(host: Host, **changes) -> Host:
    gpu = H100.model_copy(update=changes)
    environment = host.environment.model_copy(update={"gpus": (gpu,), "used_gpu": 0})
    return host.model_copy(update={"environment": environment, "has_cuda": True, "other_processes": ()})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "A100", "uuid": "GPU-2"}, "b: differs from the run in processor H100 -> A100"),
        ({"driver": "570", "uuid": "GPU-2"}, "b: differs from the run in driver 580 -> 570"),
        ({}, "b: has the GPU of a: each needs a CUDA_VISIBLE_DEVICES of its own"),
        ("torch", "b: differs from the run in torch"),
        ("source", "b: has another mlaprof"),
        ("shared", "b: has a GPU that process 4711 uses, too"),
        ("several", "b: offers GPU=2, and nobody can tell which of them a job has"),
    ],
    ids=str,
)
def test_a_member_that_differs_is_refused_by_name(here: Host, change, said: str) -> None:
    """At the start with exit code 4; one that joins later gets no job, and a line says why."""
    one = with_gpu(here)
    other = with_gpu(here, **(change if isinstance(change, dict) else {"uuid": "GPU-2"}))
    environment = other.environment
    if change == "torch":
        packages = {**environment.packages, "torch": "2.0"}
        other = other.model_copy(update={"environment": environment.model_copy(update={"packages": packages})})
    if change == "source":
        other = other.model_copy(update={"environment": environment.model_copy(update={"source_sha256": "f" * 64})})
    if change == "shared":
        other = other.model_copy(update={"other_processes": (4711,)})

    def cluster(*addresses: str) -> Dask:
        dask = Dask(one, Task.whole, *addresses)
        dask.facts["b"] = other
        return dask

    offered = {"resources": {"GPU": 2.0 if change == "several" else 1.0}}
    dask = cluster("a", "b")
    dask.workers["b"] = offered
    with pytest.raises(MachineError) as refused:
        dask.members(manifest_for(dask, "cuda"))
    assert said in str(refused.value) and refused.value.exit_code == 4

    dask = cluster("a")
    members = dask.members(manifest_for(dask, "cuda"))
    dask.workers["b"] = offered
    heard_of(members, "b")
    assert [each.address for each in members.usable()] == ["a"]
    (line,) = dask.lines
    assert line.startswith(f"GPU {said.replace('b: ', 'b gets no job: ', 1)}")


def test_a_member_of_another_version_is_refused(here: Host) -> None:
    dask = Dask(here, Task.whole, "a")
    dask.version = "9.9"
    with pytest.raises(MachineError, match=rf"a: has another mlaprof \(9.9\) than this machine \({__version__}\)"):
        dask.members()


def test_a_gpu_that_others_use_is_taken_where_that_is_allowed(here: Host) -> None:
    dask = Dask(with_gpu(here).model_copy(update={"other_processes": (4711,)}), Task.whole, "a")
    assert dask.members(manifest_for(dask, "cuda"), shared_gpu=True).usable()


def test_one_that_joins_is_told_of_and_gets_a_job(bench, here: Host) -> None:
    def script(task: Task) -> None:
        if task.address == "a":
            task.dask.workers["b"] = {"resources": {"GPU": 1.0}}
            task.dask.facts["b"] = here
            threading.Timer(0.0, awaited).start()
        else:
            task.whole()

    def awaited() -> None:
        while len(dask.tasks) < 2:
            pass
        dask.tasks[0].whole()

    dask = Dask(here, script, "a")

    kept = dask.sweep(bench.job(8), bench.job(8, process=1))

    assert len(kept) == 2 and [task.address for task in dask.tasks] == ["a", "b"]
    assert "GPU b: emulated on the CPU" in dask.lines


def test_without_a_member_that_offers_what_is_needed_nothing_begins(here: Host) -> None:
    dask = Dask(here, Task.whole, "a")
    members = Members(dask, {"GPU": 1, "GPU:H100": 1}, dask.lines.append)
    with pytest.raises(ClusterError, match="no Dask worker offers GPU=1,GPU:H100=1"):
        members.hosts()


def test_a_run_is_of_the_hosts_that_measure(here: Host, tmp_path: Path) -> None:
    """From a machine without a GPU; it goes on on any GPU of the same kind, and on no other."""
    (tmp_path / "study.yaml").write_text(STUDY)
    study = load_study(tmp_path / "study.yaml")
    hosts = [with_gpu(here)]
    opening = new_run(study, DeviceChoice.auto, None, tmp_path, command=(), tuned=(), hosts=hosts)
    opening.writer().finish()
    assert opening.manifest.device == "cuda" and opening.manifest.environment == hosts[0].environment

    def gone_on_with(*hosts: Host) -> bool:
        run = str(opening.path)
        return bool(resumed_run(run, tmp_path, DeviceChoice.auto, study=None, config=None, hosts=hosts).plan.jobs)

    assert gone_on_with(with_gpu(here, uuid="GPU-2"))
    assert gone_on_with(with_gpu(here, name="A100"), with_gpu(here, uuid="GPU-2"))  # Members refuse the other
    with pytest.raises(MachineError, match="began on H100, this is A100"):
        gone_on_with(with_gpu(here, name="A100"))
    with pytest.raises(MachineError, match="began before a change: driver 580 -> 570"):
        gone_on_with(with_gpu(here, driver="570"))


def heard_of(members: Members, address: str) -> None:
    for _ in range(100):
        members.look()
        list(members.hear())
        if address in members._by_address and members._by_address[address].asked is None:
            return
    raise AssertionError(f"never heard of {address}")


# On the worker


class DaskWorker:
    """What remote.py needs of a Dask worker."""

    id = "Worker-1"
    address = "a"

    def __init__(self) -> None:
        self.status = SimpleNamespace(name="running")
        self.task = SimpleNamespace(state="executing")
        self.state = SimpleNamespace(tasks={"key": self.task})
        self.told: list[dict] = []
        self.at_event: Callable[[], None] = lambda: None

    def get_current_task(self) -> str:
        return "key"

    def log_event(self, topic: str, message: dict) -> None:
        assert topic == "topic"
        self.told.append(message)
        if "event" in message:
            self.at_event()

    def measure(self, job: Job, spawn, process: str = "Worker-1", elsewhere: bool = True) -> dict:
        """The last that it told."""
        text = job.model_dump_json()
        remote.measure(7, text, spawn, {}, elsewhere=elsewhere, topic="topic", process=process)
        return self.told[-1]

    def events(self) -> list:
        return [decode_event(each["event"]) for each in self.told if "event" in each]


@pytest.fixture
def dask_worker(monkeypatch: pytest.MonkeyPatch) -> DaskWorker:
    made = DaskWorker()
    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(get_worker=lambda: made))
    return made


def test_a_task_tells_every_event_and_then_that_it_is_done(bench, dask_worker: DaskWorker) -> None:
    job = bench.job(8, 4)

    assert dask_worker.measure(job, bench.fake("ok")) == {"task": 7, "end": "done", "why": ""}

    assert dask_worker.told[0] == {"task": 7, "begun": True}
    answered = [each.point.num_tokens for each in dask_worker.events() if not isinstance(each, Started)]
    assert answered == [8, 4]


def test_a_task_of_another_process_measures_nothing(bench, dask_worker: DaskWorker) -> None:
    assert dask_worker.measure(bench.job(8), bench.fake("ok"), process="Worker-0")["end"] == "stranger"
    assert len(dask_worker.told) == 1


def test_a_lost_gpu_ends_a_task(bench, dask_worker: DaskWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-3")
    assert dask_worker.measure(bench.job(8, 4), bench.fake("lost", 3))["end"] == "gpu_lost"
    (answer,) = [each for each in dask_worker.events() if not isinstance(each, Started)]
    assert answer.outcome.fault == "gpu_lost"


@pytest.mark.parametrize("over", ["cancelled", "released", "closing"])
def test_the_child_ends_with_its_task_or_worker(bench, dask_worker: DaskWorker, over: str) -> None:
    children = []

    def spawn(job, **options):
        children.append(bench.fake("hang", 8)(job, **options))
        return children[-1]

    def strike() -> None:
        if over == "cancelled":
            dask_worker.task.state = "cancelled"
        elif over == "released":
            dask_worker.state.tasks.clear()
        else:
            dask_worker.status.name = "closing"

    dask_worker.at_event = strike

    assert dask_worker.measure(bench.job(8), spawn)["end"] == "ended"
    assert not Path(f"/proc/{children[0].pid}").exists()


def test_what_breaks_a_task_is_told(bench, dask_worker: DaskWorker) -> None:
    def spawn(job, **options):
        raise RuntimeError("no such\nthing")

    assert dask_worker.measure(bench.job(8), spawn) == {
        "task": 7,
        "end": "broken",
        "why": "RuntimeError: no such thing",
    }


# At the door

STUDY = "name: door\npreset: tiny\nsweep: {num_tokens: [2]}\nmeasure: {processes: 1, memory: false, counts: false}\n"


def at_the_door(checkout: Path, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    (folder / "study.yaml").write_text(STUDY)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(checkout), str(checkout / "tests" / "drills")))},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_dask_one_line_says_what_to_install(checkout: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['distributed'] = None\n"
        "sys.argv = ['mlaprof', 'sweep', 'study.yaml', '--engine', 'dask', '--scheduler', 'tcp://127.0.0.1:1']\n"
        "from mlaprof.cli import main; main()"
    )
    found = at_the_door(checkout, tmp_path, code)
    assert found.returncode == 2
    assert found.stderr.startswith("error: --engine dask: needs Dask: ")
    assert found.stderr.endswith("; pip install 'mlaprof[cluster]'\n") and found.stderr.count("\n") == 1


def test_a_local_sweep_imports_no_dask(checkout: Path, tmp_path: Path) -> None:
    code = (
        "import sys, atexit, command\n"
        "atexit.register(lambda: print('dask:', *[each for each in ('dask', 'distributed') if each in sys.modules]))\n"
        "sys.argv = ['command.py', 'ok', 'sweep', 'study.yaml', '--device', 'cpu', '--out', 'run.mlaprof']\n"
        "command.main()"
    )
    found = at_the_door(checkout, tmp_path, code)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "dask:"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "dask"], "--engine dask: no scheduler named; add --scheduler tcp://HOST:8786"),
        (["--engine", "dask", "--scheduler", "nonsense"], "--scheduler nonsense: no address: missing port number"),
        (["--engine", "dask", "--scheduler", "study.yaml"], "--scheduler study.yaml: no address: "),
        (["--scheduler", "tcp://127.0.0.1:1"], "--scheduler: is of a Dask cluster; add --engine dask"),
        (["--gpu-kind", "H100"], "--gpu-kind: is of a Dask cluster; add --engine dask"),
        (["--engine", "dask", "--gpus", "0,1"], "--gpus: is of this machine; leave it out"),
    ],
    ids=str,
)
def test_options_that_make_no_cluster_are_refused(
    checkout: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    if "--scheduler" in options[1:]:
        pytest.importorskip("distributed")
    code = (
        f"import sys; sys.argv = {['mlaprof', 'sweep', 'study.yaml', *options]}\nfrom mlaprof.cli import main; main()"
    )
    found = at_the_door(checkout, tmp_path, code)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(f"error: {said}") and found.stderr.count("\n") == 1
