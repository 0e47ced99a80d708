"""What a machine that measures tells of itself, to whoever asks it to measure."""

from __future__ import annotations

from mlaprof.facts import Record
from mlaprof.machine import environment
from mlaprof.records import Environment, Gpu
from mlaprof.version import __version__


class Host(Record):
    """A machine as one process of it sees it: its CUDA_VISIBLE_DEVICES counts."""

    environment: Environment
    has_cuda: bool  # a GPU is visible, and torch can use it
    other_processes: tuple[int, ...]  # with a context on the GPU that CUDA calls 0
    mlaprof_version: str = __version__

    @property
    def gpu(self) -> Gpu | None:
        """The one that CUDA calls 0."""
        used = self.environment.used_gpu
        return None if used is None else self.environment.gpus[used]


def this_host() -> Host:
    """This machine, now."""
    return Host(
        environment=environment.snapshot(),
        has_cuda=environment.cuda_present(),
        other_processes=environment.other_processes(),
    )
