"""Every process that a child started, however far it went from it. Linux; elsewhere only the child's group is known."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "MLAPROF_WORKER"  # in the environment of a worker, and so of all that it starts

_PASSES = 20  # a process that forks while it is looked for shows in the next pass


def new_token() -> str:
    """What tells the descendants of one child from all other processes."""
    return f"{os.getpid()}-{secrets.token_hex(8)}"


def kill_all(token: str) -> None:
    """SIGKILL to every process of this user that carries the token: one that left its group, session or parent, too."""
    for _ in range(_PASSES):
        found = list(living(token))
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return


def living(token: str, processes: Path = Path("/proc")) -> Iterator[int]:
    """Process numbers that carry the token; a zombie carries none."""
    entry = f"{VARIABLE}={token}".encode()
    for path in processes.glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone meanwhile, or of another user
            if entry in path.read_bytes().split(b"\0"):
                yield int(path.parent.name)
