"""Jobs on a Dask cluster: each Dask worker that offers a GPU is a seat, and measures one job after another.

A job is one task, on a worker that this client names, so that Dask itself never starts it anywhere else. When the
worker is gone, what the client has no answer for goes to another one, and what the lost task may still tell is dropped.
The client hears each event through a topic, which the scheduler passes on in order, and alone keeps them. Dask is
imported only here and in remote.py, and only when a cluster is asked for.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from mlaprof.analysis.differences import unlike
from mlaprof.engine import remote
from mlaprof.engine.job import Spawn, failed, rest_of
from mlaprof.engine.local import Ask, Events
from mlaprof.errors import ClusterError, ConfigError, MachineError
from mlaprof.machine.environment import source_sha256
from mlaprof.machine.host import Host
from mlaprof.plan import unfinished
from mlaprof.records import AnyMeasurement, Event, Manifest, Outcome, PlannedJob, Started
from mlaprof.version import __file__ as version_file
from mlaprof.version import __version__
from mlaprof.wire import decode_event

if TYPE_CHECKING:
    from distributed import Client, Future

WHERE = "--scheduler"
GPU = "GPU"  # the resource that a Dask worker offers once for its GPU; `GPU:H100` beside it names the kind
LOSSES = 3  # hosts that a job may lose in a row without a new answer; then the cell at work is given up
LOOK_S = 1.0  # between two looks at who is there
CONNECT_S = 10.0
HOSTS_S = 60.0  # for hosts to answer, or to come back when none is left
END_S = 10.0  # for workers to end what they measure

Tell = Callable[[str], None]


@dataclass
class _Work:
    """A job on its way through the cluster."""

    job: PlannedJob
    answered: dict[str, str] = field(default_factory=dict)  # key -> status
    losses: int = 0  # hosts in a row, without a new answer

    def rest(self) -> PlannedJob:
        """What is not answered, with what belongs to it: arms of one cell are timed side by side, on one GPU."""
        done = {(self.job.kind, key, self.job.process) for key in self.answered}
        left = unfinished(self.job, done)
        return rest_of(self.job, (point for point in left if self.answered.get(point.key) != "failed"))


@dataclass
class _Task:
    """One attempt at the rest of a job."""

    number: int
    work: _Work
    future: Future[None]
    known: int  # answers that there were before
    begun: bool = False  # it has its GPU
    started: Started | None = None


@dataclass(frozen=True)
class _Lost:
    """A task has ended, whatever of its job is left; why: empty where no host is to blame."""

    task: _Task
    why: str = ""


@dataclass
class _Seat:
    """A Dask worker, by its address. It is asked of its host first."""

    address: str
    asked: Future[None] | None
    process: str = ""  # id of the worker that answered
    host: Host | None = None
    why_not: str = ""  # it gets no job
    task: _Task | None = None

    @property
    def usable(self) -> bool:
        return self.host is not None and not self.why_not

    @property
    def gpu_uuid(self) -> str | None:
        return self.host.gpu.uuid if self.host and self.host.gpu else None


def connect(scheduler: str | None, *, kind: str = "", tell: Tell) -> Cluster:
    """The cluster of a scheduler, by its address or its scheduler file.

    kind   take workers with the resource GPU:<kind> alone
    tell   takes a line about a worker that comes or goes

    Raises ConfigError without `distributed` or without a scheduler, ClusterError where none answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        hint = "pip install 'mlaprof[cluster]'"
        raise ConfigError(f"needs Dask: {error}", where="--engine dask", hint=hint) from None
    if not scheduler:
        hint = "--scheduler tcp://HOST:8786; for the GPUs of this machine --gpus 0,1 needs no Dask"
        raise ConfigError("no scheduler named", where="--engine dask", hint=hint)
    for name in ("distributed", "distributed.client", "distributed.core", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # what matters of it is told in one line
    at = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        client = Client(**at, timeout=CONNECT_S, set_as_default=False, name="mlaprof")
    except ValueError as error:
        hint = "e.g. --scheduler tcp://HOST:8786"
        raise ConfigError(f"no address: {error}", where=f"{WHERE} {scheduler}", hint=hint) from None
    except OSError:
        raise ClusterError("no Dask scheduler answers", where=f"{WHERE} {scheduler}", hint="`dask scheduler`") from None
    return Cluster(client, {GPU: 1, **({f"{GPU}:{kind}": 1} if kind else {})}, tell)


class Cluster:
    """An engine. First `hosts`, then `admit` with what they are to be like, then the call; `close` in every case."""

    def __init__(self, client: Client, needs: dict[str, int], tell: Tell) -> None:
        self._client = client
        self._needs = needs
        self._tell = tell
        self._manifest: Manifest | None = None
        self._shared_gpu = False
        self._told: SimpleQueue[Any] = SimpleQueue()
        self._seats: dict[str, _Seat] = {}
        self._tasks: dict[int, _Seat] = {}  # by number: seats at work
        self._numbers = count()
        self._look_at_s = 0.0
        self._alone_since_s = time.monotonic()
        self._source = source_sha256(Path(version_file).parent)
        # A scheduler forgets the topic of a client's own id some time after the client has left.
        client.subscribe_topic(client.id, lambda event: self._told.put(event[1]))

    def hosts(self) -> tuple[Host, ...]:
        """The hosts of the workers that offer what is needed, once all have answered or HOSTS_S is over.

        Raises ClusterError where there is none, MachineError where none can measure.
        """
        end_s = time.monotonic() + HOSTS_S
        while time.monotonic() < end_s:
            list(self._hear())
            if self._seats and not any(seat.asked for seat in self._seats.values()):
                break
        found = tuple(seat.host for seat in self._seats.values() if seat.host is not None and seat.usable)
        if not found:
            self._refuse_why_not()
            raise self._nobody()
        return found

    def admit(self, manifest: Manifest, *, shared_gpu: bool) -> tuple[str, ...]:
        """Hold workers to a run, now and when one joins; a line for each that is there.

        Raises MachineError on one that differs from the run, or whose GPU is used by others.
        """
        self._manifest, self._shared_gpu = manifest, shared_gpu
        for seat in self._seats.values():
            seat.why_not = seat.why_not or self._objection(seat)
        self._refuse_why_not()
        return tuple(self._line(seat) for seat in self._seats.values() if seat.usable)

    def __call__(self, jobs: Sequence[PlannedJob], spawn: Spawn, ask: Ask) -> Events:
        waiting = deque(_Work(job) for job in jobs)
        try:
            while waiting or self._tasks:
                for seat in [each for each in self._seats.values() if each.usable and each.task is None]:
                    if waiting:
                        self._begin(seat, waiting.popleft(), spawn, ask)
                if waiting and not self._tasks and time.monotonic() - self._alone_since_s > HOSTS_S:
                    raise self._nobody()
                for found in self._hear():
                    if isinstance(found, _Lost):
                        yield from self._again(found, waiting)
                    else:
                        yield found
        finally:
            self._end()

    def close(self) -> None:
        """Leave the cluster, with all that it still does for this client."""
        self._client.close(timeout=END_S)

    def _begin(self, seat: _Seat, work: _Work, spawn: Spawn, ask: Ask) -> None:
        number, job = next(self._numbers), work.rest()
        left_alone = ask(point.key for point in job.points)
        future = self._client.submit(
            remote.measure,
            number,
            job.model_dump_json(),
            spawn,
            {key: outcome.model_dump_json() for key, outcome in left_alone.items()},
            elsewhere=sum(each.usable for each in self._seats.values()) > 1,
            topic=self._client.id,
            process=seat.process,
            **self._placed(seat.address, f"measure-{number}"),
            resources=self._needs,
        )
        seat.task = _Task(number, work, future, known=len(work.answered))
        self._tasks[number] = seat

    def _placed(self, address: str, name: str) -> dict[str, Any]:
        """On this worker, nowhere else, and never twice by Dask's own decision."""
        key = f"mlaprof-{name}-{self._client.id}"
        return {"key": key, "pure": False, "workers": [address], "allow_other_workers": False, "retries": 0}

    def _hear(self) -> Iterator[Event | _Lost]:
        """What is told within LOOK_S, and what a look at the cluster shows. Raises ClusterError."""
        try:
            message = self._told.get(timeout=LOOK_S)
        except Empty:
            message = {}
        if "host" in message:
            self._meet(message)
        elif (seat := self._tasks.get(message.get("task", -1))) is not None:  # otherwise of an attempt given up
            yield from self._heard(seat, message)
        if time.monotonic() >= self._look_at_s:
            yield from self._look()
            self._look_at_s = time.monotonic() + LOOK_S

    def _heard(self, seat: _Seat, message: dict[str, Any]) -> Iterator[Event | _Lost]:
        task = seat.task
        assert task is not None
        task.begun = True
        if "event" in message:
            event = decode_event(message["event"])
            if isinstance(event, Started):
                task.started = event
            else:
                task.work.answered[event.point.key] = event.outcome.status
            yield event
        elif "end" in message:
            how, why = message["end"], message["why"]
            if how == "gpu_lost":
                seat.why_not = "its GPU is lost"
            elif how == "broken":
                seat.why_not = why
            elif how == "stranger":
                del self._seats[seat.address]  # who is there now is asked anew
            if seat.why_not:
                self._tell(f"GPU {seat.address} gets no more jobs: {seat.why_not}")
            yield self._freed(seat, "" if how in ("done", "gpu_lost") else why or f"its task ended: {how}")

    def _freed(self, seat: _Seat, why: str = "") -> _Lost:
        task = seat.task
        assert task is not None
        seat.task = None
        del self._tasks[task.number]
        return _Lost(task, why)

    def _again(self, lost: _Lost, waiting: deque[_Work]) -> Iterator[AnyMeasurement]:
        """What is left of the job goes to the front; the cell that takes one host after another with it fails."""
        work = lost.task.work
        rest = work.rest()
        if lost.why and rest.points:
            work.losses = 1 if len(work.answered) > lost.task.known else work.losses + 1
            if work.losses == LOSSES:
                work.losses = 0
                reason = f"its host was lost {LOSSES} times, at last: {lost.why}"
                started = lost.task.started
                stage = started.stage if started else "worker"
                outcome = Outcome(status="failed", stage=stage, reason=reason, fault="host_lost")
                cell = next((each.cell for each in rest.points if started and each.key == started.key), None)
                unanswered = [each for each in rest.points if each.key not in work.answered]
                for point in [each for each in unanswered if each.cell == cell] or unanswered:
                    work.answered[point.key] = "failed"
                    yield failed(work.job, point, outcome)
                rest = work.rest()
        if rest.points:
            waiting.appendleft(work)

    def _look(self) -> Iterator[_Lost]:
        """Who is gone, who has come, and whose task came to nothing."""
        present = self._present()
        for seat in [each for address, each in self._seats.items() if address not in present]:
            del self._seats[seat.address]
            self._tell(f"GPU {seat.address} is gone" + ("; its job goes on elsewhere" if seat.task else ""))
            if seat.task is not None:
                yield self._freed(seat, f"{seat.address} is gone")
        for address in present.keys() - self._seats.keys():
            self._ask(address, present[address][GPU])
        for seat in self._seats.values():
            if seat.asked is not None and seat.asked.status == "error":
                seat.why_not, seat.asked = f"cannot tell of its host: {seat.asked.exception()!r}", None
            if seat.task is not None and seat.task.future.status == "error":
                seat.why_not = f"cannot measure: {seat.task.future.exception()!r}"
                yield self._freed(seat, seat.why_not)
            elif seat.task is not None and seat.task.future.status in ("cancelled", "lost"):
                raise self._gone()  # there is a scheduler again, which knows nothing of this sweep
        if any(seat.usable for seat in self._seats.values()):
            self._alone_since_s = time.monotonic()

    def _present(self) -> dict[str, dict[str, float]]:
        """Address -> resources of the workers that offer what is needed."""
        if self._client.status != "running":
            raise self._gone()
        try:
            told = self._client.sync(self._client.scheduler.identity, n_workers=-1, callback_timeout=CONNECT_S)
        except OSError:
            raise self._gone() from None
        offers = {address: worker["resources"] for address, worker in told["workers"].items()}
        return {
            address: offered
            for address, offered in offers.items()
            if all(offered.get(name, 0) >= amount for name, amount in self._needs.items())
        }

    def _ask(self, address: str, gpus: float) -> None:
        seat = self._seats[address] = _Seat(address, None)
        if gpus > 1:
            seat.why_not = f"it offers {GPU}={gpus:g}, and nobody can tell which of them a task has"
            return
        placed = self._placed(address, f"host-{next(self._numbers)}")
        seat.asked = self._client.submit(remote.tell_host, address, self._client.id, **placed)

    def _meet(self, message: dict[str, Any]) -> None:
        """Take in what a worker told of its host."""
        seat = self._seats.get(message["host"])
        if seat is None or seat.asked is None:
            return
        seat.asked, seat.process = None, message["id"]
        try:
            seat.host = Host.model_validate_json(message["facts"])
            same = message["version"] == __version__ and seat.host.environment.source_sha256 == self._source
        except ValueError:
            same = False
        if not same:
            seat.why_not = f"has another mlaprof ({message['version']}) than this machine ({__version__})"
        if self._manifest is not None:
            seat.why_not = seat.why_not or self._objection(seat)
            self._tell(f"GPU {seat.address} gets no job: {seat.why_not}" if seat.why_not else f"GPU {self._line(seat)}")

    def _objection(self, seat: _Seat) -> str:
        """Why a worker cannot take part in the run; empty where it can."""
        if self._manifest is None or seat.host is None:
            return ""
        differ = [str(each) for each in unlike(self._manifest, seat.host.environment)]
        if differ:
            return f"differs from the run in {', '.join(differ)}"
        if self._manifest.device == "cpu":
            return ""
        uuid = seat.gpu_uuid
        others = (each for each in self._seats.values() if each.usable and each is not seat)
        if twin := next((each for each in others if each.gpu_uuid == uuid), None):
            return f"has the same GPU as {twin.address}: start each with a CUDA_VISIBLE_DEVICES of its own"
        if seat.host.other_processes and not self._shared_gpu:
            return f"its GPU is used by process {', '.join(map(str, seat.host.other_processes))}, too"
        return ""

    def _refuse_why_not(self) -> None:
        """Raise MachineError on a worker that cannot take part."""
        for seat in self._seats.values():
            if seat.why_not:
                hint = "stop it, or let the sweep have workers of its own with --gpu-kind"
                raise MachineError(seat.why_not, where=seat.address, hint=hint)

    def _line(self, seat: _Seat) -> str:
        """`tcp://10.0.0.7:41234: NVIDIA H100 80GB HBM3 GPU-5ce1...`"""
        cuda = self._manifest is not None and self._manifest.device == "cuda"
        gpu = seat.host.gpu if seat.host and cuda else None
        return f"{seat.address}: {f'{gpu.name} {gpu.uuid}' if gpu else 'emulated on the CPU'}"

    def _gone(self) -> ClusterError:
        return ClusterError("the Dask scheduler is gone", where=WHERE, hint="start it and its workers again")

    def _nobody(self) -> ClusterError:
        offer = ",".join(f"{name}={amount}" for name, amount in self._needs.items())
        last = next((f"; {each.address} {each.why_not}" for each in self._seats.values() if each.why_not), "")
        hint = f'one a GPU: dask worker ADDRESS --nthreads 1 --resources "{offer}"'
        return ClusterError(f"no Dask worker offers {offer}{last}", where=WHERE, hint=hint)

    def _end(self) -> None:
        """Cancel what is under way, and wait until the workers have ended it."""
        running = [seat.task for seat in self._tasks.values() if seat.task is not None]
        if running and self._client.status == "running":
            end_s = time.monotonic() + END_S
            with contextlib.suppress(OSError):
                self._client.cancel([task.future for task in running])
            begun = {task.number for task in running if task.begun}
            while begun and time.monotonic() < end_s and self._client.status == "running":
                with contextlib.suppress(Empty):
                    message = self._told.get(timeout=LOOK_S)
                    if "end" in message:
                        begun.discard(message["task"])
        self._tasks.clear()
