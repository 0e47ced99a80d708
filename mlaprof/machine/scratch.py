"""Folders for the temporary files of child processes: each goes with its child, or, where the parent was killed, with
the next one that is made."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import tempfile
from pathlib import Path

# Compilers leave files of theirs behind when they are killed. A folder that several machines share may hold those of
# another's living process under a number that is free here, so the machine's name is a part.
_PREFIX = f"mlaprof-{re.sub(r'[^A-Za-z0-9]', '', socket.gethostname())[:32]}-{os.getuid()}-"


def unused() -> str:
    """The path of a folder for this process to make, once those of processes that are gone have been removed."""
    parent = Path(tempfile.gettempdir())
    for path in parent.glob(f"{_PREFIX}*"):
        pid = path.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not _lives(int(pid)) and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    return os.fspath(parent / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(8)}")


def _lives(pid: int) -> bool:
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True
