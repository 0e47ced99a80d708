"""One writer for each run file: a lock that the kernel drops with the process, and no file beside it."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from mlaprof.errors import RunFileError

# A byte that SQLite never locks: it takes 512 from 2**30 on, and its own locks must stay free for readers.
_PLACE = 2**40
_UNKNOWN_HERE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.ENOTTY)


class RunLock:
    """Held from the first to the last moment that a run file may be written.

    Open it before SQLite opens the file, and close it after: POSIX drops all locks of a process on a file, SQLite's
    too, when the process closes any descriptor of that file.

    Raises RunFileError where another process holds it, or where the file system has no locks; OSError on no file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _take(self._descriptor)
        except OSError as error:
            os.close(self._descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise RunFileError(
                    "another mlaprof is writing this run",
                    where=str(path),
                    hint="wait for it or stop it, then --resume the run; or choose another --out",
                ) from error
            raise RunFileError(
                f"its file system has no locks: {error.strerror}",
                where=str(path),
                hint="choose --out on a local disk, and copy the run when it is done",
            ) from error

    def is_in_place(self) -> bool:
        """Whether the path still names the file that was locked."""
        try:
            found = os.stat(self._path)
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(self._descriptor))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _take(descriptor: int) -> None:
    """A lock of the open file, not of the process: it outlives other descriptors of the file, and children lack it."""
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _PLACE, 1, 0)  # fcntl.h, struct flock on 64 bits
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except OSError as error:
        if error.errno not in _UNKNOWN_HERE:
            raise
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
