"""The processes of the other ranks: started by rank 0, which is the worker, and never outliving it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from types import TracebackType
from typing import NoReturn, Self

import torch

from mlaprof.machine.child import ending
from mlaprof.machine.parent import PARENT_PID_VARIABLE
from mlaprof.records import Job

LAST_WORDS_S = 0.5  # from a rank's broken connection until its process counts as ended


class Partners:
    """Ranks 1 to world - 1 at work on job; a context manager that ends them.

    When one of them ends, this process ends at once in the same way: the parent then sees how, and lays it on the Point
    at work. A rank that hangs makes this one hang, too, and both end at the limit of the stage.

    meeting  path of the file through which all ranks find each other

    Raises OSError, and ValueError where fewer GPUs are visible than ranks.
    """

    def __init__(self, job: Job, meeting: str) -> None:
        self._ending = threading.Event()
        self._processes: list[subprocess.Popen[bytes]] = []
        world = job.layer.tp.world
        if job.device == "cuda" and torch.cuda.device_count() < world:
            raise ValueError(
                f"tp.world: expected as many GPUs visible as ranks, {world}, got {torch.cuda.device_count()}"
            )
        try:
            for rank in range(1, world):
                self._processes.append(_started(job, rank, meeting))
        except BaseException:
            self._end()
            raise
        self._watchers = [
            threading.Thread(target=self._watch, args=(rank, process), daemon=True)
            for rank, process in enumerate(self._processes, start=1)
        ]
        for watcher in self._watchers:
            watcher.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def await_ends(self) -> None:
        """Return a moment later, unless a rank has ended, which takes so long to show; this process then ends, too."""
        time.sleep(LAST_WORDS_S)

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if not self._ending.is_set():
            end_like(rank, code)

    def _end(self) -> None:
        self._ending.set()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


def end_like(rank: int, code: int) -> NoReturn:
    """End this process as rank ended; code as subprocess has it."""
    os.write(2, f"rank {rank} ended: {ending(code)}\n".encode())
    if code < 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
        time.sleep(LAST_WORDS_S)  # a signal that Python or faulthandler catches ends it a little later
    os._exit(code if code > 0 else 1)


def _started(job: Job, rank: int, meeting: str) -> subprocess.Popen[bytes]:
    with tempfile.TemporaryFile() as given:
        given.write(job.model_dump_json().encode())
        given.seek(0)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "mlaprof.worker", "--rank", str(rank), "--meeting", meeting],
            stdin=given,
            # In the worker's group and under its token, so that whoever ends it ends them; its output is theirs.
            env={**os.environ, **_device(job, rank), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            | {PARENT_PID_VARIABLE: str(os.getpid())},
        )


def _device(job: Job, rank: int) -> dict[str, str]:
    """The rank-th visible GPU as the only one, so that all that is said of a device in a rank is of its own."""
    if job.device != "cuda":
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    every = [str(number) for number in range(rank + 1)] if visible is None else visible.split(",")
    return {"CUDA_VISIBLE_DEVICES": every[rank].strip()}
