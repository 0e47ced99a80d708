"""The Dask workers that offer a GPU: who is there, on which hosts, and who may take part in a run."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from mlaprof.analysis.differences import unlike
from mlaprof.engine import remote
from mlaprof.errors import ClusterError, ConfigError, MachineError
from mlaprof.machine.environment import source_sha256
from mlaprof.machine.host import Host
from mlaprof.records import Gpu, Manifest
from mlaprof.version import __file__ as version_file
from mlaprof.version import __version__

if TYPE_CHECKING:
    from distributed import Client, Future

WHERE = "--scheduler"
GPU = "GPU"  # the resource that a Dask worker offers once, for its GPU; GPU:H100 beside it names the kind
LOOK_S = 1.0  # between two looks at who is there
CONNECT_S = 10.0
HOSTS_S = 60.0  # for hosts to answer, or to come back when none is left

Tell = Callable[[str], None]
Message = Mapping[str, Any]  # as remote.py has them


def connect(scheduler: str | None) -> Client:
    """A client of the scheduler with that address or scheduler file.

    Raises ConfigError without `distributed` or without a scheduler, ClusterError where none answers.
    """
    try:
        from distributed import Client
        from distributed.comm import get_address_host_port
    except ImportError as error:
        hint = "pip install 'mlaprof[cluster]'"
        raise ConfigError(f"needs Dask: {error}", where="--engine dask", hint=hint) from None
    if not scheduler:
        hint = "add --scheduler tcp://HOST:8786; for the GPUs of this machine --gpus 0,1 needs no Dask"
        raise ConfigError("no scheduler named", where="--engine dask", hint=hint)
    for name in ("distributed", "distributed.client", "distributed.core", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # what matters of it is told in one line
    where = f"{WHERE} {scheduler}"
    try:
        address = _address_in(Path(scheduler)) if Path(scheduler).is_file() else scheduler
        get_address_host_port(address)
    except ValueError as error:
        raise ConfigError(f"no address: {error}", where=where, hint="e.g. --scheduler tcp://HOST:8786") from None
    try:
        return Client(address, timeout=CONNECT_S, set_as_default=False, name="mlaprof")
    except OSError:
        raise ClusterError("no Dask scheduler answers", where=where, hint="start one: `dask scheduler`") from None


def _address_in(scheduler_file: Path) -> str:
    """Raises ValueError where the file is not what `dask scheduler --scheduler-file` writes."""
    try:
        return str(json.loads(scheduler_file.read_text())["address"])
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"not a scheduler file: {error!r}") from None


@dataclass
class Member:
    """A Dask worker with a GPU, by its address. It is asked of its host before it gets a job."""

    address: str
    asked: Future | None = None
    process: str = ""  # id of the worker that answered
    host: Host | None = None
    why_not: str = ""  # it gets no job
    missed: bool = False  # at the last look

    @property
    def usable(self) -> bool:
        return self.host is not None and not self.why_not and not self.missed

    @property
    def gpu(self) -> Gpu | None:
        return self.host.gpu if self.host else None


class Members:
    """Those of a cluster that offer what is needed. It hears all that they tell, and looks after them by `look`.

    needs   resource -> amount that a job takes
    tell    takes a line about a worker that comes or goes
    """

    def __init__(self, client: Client, needs: Mapping[str, int], tell: Tell) -> None:
        self.client = client
        self.needs = needs
        self.tell = tell
        self._numbers = count()
        self._manifest: Manifest | None = None
        self._shared_gpu = False
        self._source = source_sha256(Path(version_file).parent)
        self._by_address: dict[str, Member] = {}
        self._look_at_s = 0.0
        self._seen_s = time.monotonic()  # when there last was one to use
        self._told: SimpleQueue[Message] = SimpleQueue()
        # A scheduler forgets the topic of a client's own id some time after the client has left.
        self.topic = client.id
        client.subscribe_topic(self.topic, lambda event: self._told.put(event[1]))

    def usable(self) -> tuple[Member, ...]:
        return tuple(each for each in self._by_address.values() if each.usable)

    def hosts(self) -> tuple[Host, ...]:
        """The hosts that can measure, once all have answered or HOSTS_S is over.

        Raises ClusterError where there is none, MachineError where those that are there cannot.
        """
        end_s = time.monotonic() + HOSTS_S
        while time.monotonic() < end_s:
            self.look()
            if self._by_address and not any(each.asked for each in self._by_address.values()):
                break
            for _ in self.hear():
                pass
        found = tuple(each.host for each in self.usable() if each.host)
        if not found:
            self._require_all()
            raise self._nobody()
        return found

    def admit(self, manifest: Manifest, *, shared_gpu: bool) -> None:
        """Hold them to a run, now and when one joins. Raises MachineError where one that is there differs from it."""
        self._manifest, self._shared_gpu = manifest, shared_gpu
        for each in self._by_address.values():
            each.why_not = each.why_not or self._objection(each)
        self._require_all()

    def line(self, member: Member) -> str:
        """`tcp://10.0.0.7:41234: NVIDIA H100 80GB HBM3 GPU-5ce1...`"""
        gpu = member.gpu if self._manifest is not None and self._manifest.device == "cuda" else None
        return f"{member.address}: {f'{gpu.name} {gpu.uuid}' if gpu else 'emulated on the CPU'}"

    def hear(self) -> Iterator[Message]:
        """What has been told of tasks, awaited for LOOK_S; what a worker tells of its host is taken in."""
        wait_s = LOOK_S
        for _ in range(max(1, self._told.qsize())):  # no more, so that the next look is not put off
            try:
                message = self._told.get(timeout=wait_s)
            except Empty:
                return
            wait_s = 0.0
            if "host" in message:
                self._meet(message)
            elif "task" in message:
                yield message

    def look(self) -> tuple[Member, ...]:
        """Who is gone since the last look; who has come is asked. Raises ClusterError where the scheduler is gone."""
        if time.monotonic() < self._look_at_s:
            return ()
        present = self._present()
        absent = [each for address, each in self._by_address.items() if address not in present]
        # What it told at last may still be on its way from the scheduler: lost is who is missed twice.
        lost = [each for each in absent if each.missed]
        for each in absent:
            each.missed = True
        for each in lost:
            self.forget(each)
            self.tell(f"GPU {each.address} is gone")
        for address in present:
            if address not in self._by_address:
                self._ask(Member(address), present[address][GPU])
        for each in self._by_address.values():
            if each.asked is not None and each.asked.status == "error":
                why = f"cannot tell of its host: {each.asked.exception()!r}"
                each.asked = None
                self._judge(each, why)
        if self.usable():
            self._seen_s = time.monotonic()
        self._look_at_s = time.monotonic() + LOOK_S
        return tuple(lost)

    def require_one(self) -> None:
        """Raise ClusterError where for HOSTS_S there was nobody to give a job to."""
        if time.monotonic() - self._seen_s > HOSTS_S:
            raise self._nobody()

    def leave_out(self, member: Member, why: str) -> None:
        """It gets no more jobs of this sweep."""
        member.why_not = why
        self.tell(f"GPU {member.address} gets no more jobs: {why}")

    def forget(self, member: Member) -> None:
        """Whoever is at its address is asked anew."""
        self._by_address.pop(member.address, None)

    def placed(self, member: Member, name: str) -> dict[str, Any]:
        """For Client.submit: on this worker, nowhere else, and never again by Dask's own decision."""
        key = f"mlaprof-{name}-{self.topic}"
        return {"key": key, "pure": False, "workers": [member.address], "allow_other_workers": False, "retries": 0}

    def gone(self) -> ClusterError:
        return ClusterError("the Dask scheduler is gone", where=WHERE, hint="start it and its workers again")

    def _nobody(self) -> ClusterError:
        offer = ",".join(f"{name}={amount}" for name, amount in self.needs.items())
        last = next((f"; {each.address} {each.why_not}" for each in self._by_address.values() if each.why_not), "")
        hint = f'start one for each GPU: dask worker ADDRESS --nthreads 1 --resources "{offer}"'
        return ClusterError(f"no Dask worker offers {offer}{last}", where=WHERE, hint=hint)

    def _present(self) -> dict[str, dict[str, float]]:
        """Address -> resources of the workers that offer what is needed."""
        if self.client.status != "running":
            raise self.gone()
        try:
            told = self.client.sync(self.client.scheduler.identity, callback_timeout=CONNECT_S)
        except OSError:
            raise self.gone() from None
        offers = {address: worker["resources"] for address, worker in told["workers"].items()}
        return {
            address: offered
            for address, offered in offers.items()
            if all(offered.get(name, 0) >= amount for name, amount in self.needs.items())
        }

    def _ask(self, member: Member, gpus: float) -> None:
        self._by_address[member.address] = member
        if gpus > 1:
            self._judge(member, f"offers {GPU}={gpus:g}, and nobody can tell which of them a job has")
            return
        placed = self.placed(member, f"host-{next(self._numbers)}")
        member.asked = self.client.submit(remote.tell_host, member.address, self.topic, **placed)

    def _meet(self, message: Message) -> None:
        member = self._by_address.get(message["host"])
        if member is None or member.asked is None:
            return
        member.asked, member.process = None, message["id"]
        try:
            member.host = Host.model_validate_json(message["facts"])
            same = message["version"] == __version__ and member.host.environment.source_sha256 == self._source
        except ValueError:  # another version's idea of a host
            same = False
        another = f"has another mlaprof ({message['version']}) than this machine ({__version__})"
        self._judge(member, "" if same else another)

    def _judge(self, member: Member, why_not: str) -> None:
        """Whether one that has come gets jobs; told of once the run is known."""
        member.why_not = why = why_not or self._objection(member)
        if self._manifest is not None:
            self.tell(f"GPU {member.address} gets no job: {why}" if why else f"GPU {self.line(member)}")

    def _objection(self, member: Member) -> str:
        """Why a worker cannot take part in the run; empty where it can."""
        if self._manifest is None or member.host is None:
            return ""
        if differ := [str(each) for each in unlike(self._manifest, member.host.environment)]:
            return f"differs from the run in {', '.join(differ)}"
        if self._manifest.device == "cpu":
            return ""
        if member.gpu is None:
            return "sees no GPU"
        earlier = takewhile(lambda each: each is not member, self.usable())
        if twin := next((each for each in earlier if each.gpu and each.gpu.uuid == member.gpu.uuid), None):
            return f"has the GPU of {twin.address}: each needs a CUDA_VISIBLE_DEVICES of its own"
        if member.host.other_processes and not self._shared_gpu:
            return f"has a GPU that process {', '.join(map(str, member.host.other_processes))} uses, too"
        return ""

    def _require_all(self) -> None:
        """Raise MachineError on one that cannot take part."""
        for each in self._by_address.values():
            if each.why_not:
                hint = "stop that worker, or take others with --gpu-kind"
                raise MachineError(each.why_not, where=each.address, hint=hint)
