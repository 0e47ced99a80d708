"""The ranks of a tensor parallel layer, as one of them sees the others.

Every rank does the whole job: the same Points in the same order, the same batches, the same orders of samples. Only its
heads are its own, and only rank 0 is heard.
"""

from __future__ import annotations

import math
import os
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mlaprof.capture.graphs import CaptureError
from mlaprof.facts import Check
from mlaprof.layer.context import Reduce
from mlaprof.machine.environment import RANK_VARIABLES
from mlaprof.measure.company import Company
from mlaprof.records import Device, Job
from mlaprof.worker.events import RankFailed, fault_of
from mlaprof.worker.ranks import Partners

T = TypeVar("T")
FOREVER = timedelta(days=7)  # the limit of a stage is the parent's to enforce, not a collective's


@dataclass(frozen=True)
class RankPlace:
    """A rank's place in a group, and the file through which its ranks find each other."""

    rank: int
    meeting: str


class Group(Company):
    """One rank alone: it is all there is."""

    rank = 0
    world = 1
    reduce: Reduce | None = None  # a tensor of the device, summed over the ranks in place; capturable

    def total(self, partial: Tensor) -> Tensor:
        """The sum over the ranks, not in place; of the same bits on all of them."""
        return partial

    def gather(self, mine: T) -> list[T]:
        """What each rank has, by rank."""
        return [mine]

    def worst(self, checks: Sequence[Check]) -> list[Check]:
        """Each check with the worst value of any rank, so that all come to one verdict."""
        return list(checks)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done inside fails on every rank where it fails on one: none goes on without the others.

        Raises CaptureError where every rank could not capture, RankFailed on any other error of any rank.
        """
        yield


class RankGroup(Group):
    """A group of this host: gloo between the hosts' threads, and between the devices NCCL, or gloo on a CPU.

    partners  the other ranks' processes, where this rank has started them
    """

    def __init__(self, device: Device, place: RankPlace, world: int, partners: Partners | None) -> None:
        os.environ.update(RANK_VARIABLES)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one host: whatever its name resolves to, or not
        self.rank, self.world = place.rank, world
        self._partners = partners
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            init_method=f"file://{place.meeting}",
            rank=place.rank,
            world_size=world,
            timeout=FOREVER,
        )
        self.reduce = dist.all_reduce
        self._answer = torch.zeros(1, dtype=torch.float64)
        self._flag = torch.zeros(1, device="cuda") if device == "cuda" else None
        self.line_up()  # NCCL makes its communicator in the first collective, which no capture may hold

    def meet(self) -> None:
        self.most(0.0)

    def line_up(self) -> None:
        if self._flag is not None:
            dist.all_reduce(self._flag)

    def any(self, answer: bool) -> bool:
        return self.most(float(answer)) > 0.0

    def most(self, value: float) -> float:
        self._answer.fill_(value)
        dist.all_reduce(self._answer, op=dist.ReduceOp.MAX)
        return float(self._answer)

    def total(self, partial: Tensor) -> Tensor:
        summed = partial.clone()
        dist.all_reduce(summed)
        return summed

    def gather(self, mine: T) -> list[T]:
        # Not all_gather_object, which would go through the GPU where there is one.
        told = torch.frombuffer(bytearray(pickle.dumps(mine)), dtype=torch.uint8)
        padded = torch.zeros(int(self.most(len(told))), dtype=torch.uint8)
        padded[: len(told)] = told
        every = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(every, padded)
        return [pickle.loads(each.numpy().tobytes()) for each in every]

    def worst(self, checks: Sequence[Check]) -> list[Check]:
        every = self.gather([check.value for check in checks])
        if len({len(values) for values in every}) > 1:
            raise ValueError(f"checks: expected as many on every rank, got {[len(values) for values in every]}")
        values = (math.nan if any(map(math.isnan, each)) else max(each) for each in zip(*every, strict=True))
        return [check.model_copy(update={"value": value}) for check, value in zip(checks, values, strict=True)]

    @contextmanager
    def together(self) -> Iterator[None]:
        mine: Exception | None = None
        try:
            yield
        except Exception as error:
            mine = error
        every = self._told(None if mine is None else (_only_unfit(mine), f"{type(mine).__name__}: {mine}"))
        failed = [(rank, *told) for rank, told in enumerate(every) if told is not None]
        if mine is not None and len(failed) == self.world and all(unfit for _, unfit, _ in failed):
            raise mine
        if failed:
            rank, _, reason = failed[0]
            raise RankFailed(f"rank {rank}: {reason}") from mine

    def _told(self, mine: tuple[bool, str] | None) -> list[tuple[bool, str] | None]:
        if mine is not None and self._partners is not None:
            self._partners.await_ends()  # what a rank that is gone leaves behind looks like an error of this one
        try:
            return self.gather(mine)
        except Exception:
            if self._partners is not None:
                self._partners.await_ends()
            raise


def _only_unfit(error: Exception) -> bool:
    """The step cannot be captured, and nothing broke."""
    return isinstance(error, CaptureError) and fault_of(error) == "error"


@contextmanager
def group_of(job: Job, place: RankPlace | None) -> Iterator[Group]:
    """The group that runs the layer: of one, or joined at place; without a place the others are started, and ended
    with the block. Raises OSError and RuntimeError where it does not come about, ValueError on too few GPUs."""
    world = job.layer.tp.world
    with ExitStack() as opened:
        if world == 1:
            yield Group()
            return
        partners = None
        if place is None:
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="mlaprof-ranks-"))
            place = RankPlace(0, str(Path(folder) / "meeting"))
            partners = opened.enter_context(Partners(job, place.meeting))
        opened.callback(_leave)
        yield RankGroup(job.device, place, world, partners)


def _leave() -> None:
    # NCCL would wait for ranks that may be hung: its communicators end with the process.
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()
