"""Every process that a child started, however far it went from it, and the keeper that ends them all when the parent is
killed and cannot. Standard library only: the keeper runs this file alone. Linux; elsewhere a child's group is all
that is known of it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "MLAPROF_WORKER"  # in the environment of a worker, and so of all that it starts

_PASSES = 20  # a process that forks while it is looked for shows in the next pass


class Keeper:
    """A process that waits for the end of this one, by whatever signal, and then clears up after a child.

    token    for the environment of the child: tells its descendants from all other processes
    scratch  a folder for its temporary files, made here

    Raises OSError.
    """

    def __init__(self, scratch: str) -> None:
        self.token = f"{os.getpid()}-{secrets.token_hex(8)}"
        self.scratch = scratch
        # Before there is anything to keep: a kill between the two would leave it.
        self._process = subprocess.Popen(
            # -I -S: nothing but the standard library, and a start in 20 ms.
            [sys.executable, "-I", "-S", __file__, self.token, scratch],
            stdin=subprocess.PIPE,  # ends when this process does; no child inherits the other end
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            os.mkdir(scratch, mode=0o700)
        except BaseException:
            self.dismiss()
            raise

    def dismiss(self) -> None:
        """Clear up after the child here and now, so that nothing is left to keep."""
        clear(self.token, self.scratch)
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def clear(token: str, scratch: str) -> None:
    """End what carries the token, and remove the folder."""
    kill_all(token)
    shutil.rmtree(scratch, ignore_errors=True)


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


if __name__ == "__main__":
    sys.stdin.buffer.read()
    clear(*sys.argv[1:])
