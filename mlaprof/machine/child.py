"""One child process: own process group, a pipe of lines, a mark, a bounded tail of what it prints, and a folder for its
temporary files that goes with it."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence

from mlaprof.machine import descendants, scratch
from mlaprof.machine.parent import PARENT_PID_VARIABLE

TAIL_BYTES = 4096  # of stdout and stderr together
MAX_LINE_BYTES = 64 * 2**20  # a Measurement of 500 samples is about 20 kB

# A grandchild may hold the pipe open after the child is gone, so the end of the pipe is not the only sign.
_EXIT_POLL_S = 1.0
_READ_BYTES = 65_536
_DRAIN_READS = 32  # enough for two full pipes; a stray writer cannot hold us longer
_MARK_BYTES = 4096  # the key of a Point is about a hundred


class Child:
    """A running child. `next_line` until None, then `wait`; `kill` in every case."""

    def __init__(self, command: Sequence[str], stdin: bytes, variables: Mapping[str, str]) -> None:
        self._pending = bytearray()  # bytes of the line pipe after the last complete line
        self._tail = b""
        self._marked = ""
        self._closed = False
        with contextlib.ExitStack() as opened:
            self._keeper = descendants.Keeper(scratch.unused())
            opened.callback(self._keeper.dismiss)
            self._mark = opened.enter_context(tempfile.TemporaryFile(dir=self._keeper.scratch))
            lines, lines_child = _pipe(opened)
            output, output_child = _pipe(opened)
            self._lines, self._output = lines, output
            self._selector = opened.enter_context(selectors.DefaultSelector())
            own = {
                PARENT_PID_VARIABLE: str(os.getpid()),
                descendants.VARIABLE: self._keeper.token,
                "TMPDIR": self._keeper.scratch,
            }
            try:
                # A file, not a pipe: a child that never reads its stdin cannot block us.
                with tempfile.TemporaryFile(dir=self._keeper.scratch) as given:
                    given.write(stdin)
                    given.seek(0)
                    self._process = subprocess.Popen(
                        [*command, "--mark", str(self._mark.fileno()), "--fd", str(lines_child)],
                        stdin=given,
                        stdout=output_child,
                        stderr=output_child,
                        pass_fds=(lines_child, self._mark.fileno()),
                        env={**os.environ, **variables, **own},
                        start_new_session=True,
                    )
            finally:
                os.close(lines_child)
                os.close(output_child)
            self._opened = opened.pop_all()
        for descriptor in (lines, output):
            os.set_blocking(descriptor, False)
            self._selector.register(descriptor, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def tail(self) -> str:
        """The last of stdout and stderr, without control characters."""
        text = self._tail.decode("utf-8", errors="replace")
        return "".join(c for c in text if c.isprintable() or c in "\n\t").strip()

    @property
    def mark(self) -> str:
        """What the child last wrote to its mark, up to the end of the line; kept when it is gone."""
        if not self._mark.closed:
            head = os.pread(self._mark.fileno(), _MARK_BYTES, 0)
            self._marked = head.partition(b"\n")[0].decode("utf-8", errors="replace")
        return self._marked

    def next_line(self, limit_s: float) -> bytes | None:
        """The next complete line, without its end; None once the child has closed the pipe or ended.

        Raises TimeoutError after limit_s without a line, ValueError on a line longer than MAX_LINE_BYTES.
        """
        deadline = time.monotonic() + limit_s
        searched = 0
        while True:
            end = self._pending.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._pending[:end])
                del self._pending[: end + 1]
                return line
            searched = len(self._pending)
            if searched > MAX_LINE_BYTES:
                raise ValueError(f"a line of more than {MAX_LINE_BYTES} bytes")
            if self._lines not in self._selector.get_map():
                return None  # what is left has no end of line: the child died while writing it
            wait_s = deadline - time.monotonic()
            if wait_s <= 0:
                raise TimeoutError(f"no line for {limit_s:g} s")
            if not self._read(min(wait_s, _EXIT_POLL_S)) and self._has_exited() and not self._read(0):
                self._selector.unregister(self._lines)

    def wait(self, grace_s: float) -> str:
        """Give the child grace_s to exit, end its whole group, and say how it ended: `killed by SIGSEGV`."""
        deadline = time.monotonic() + grace_s
        while not self._has_exited():
            wait_s = deadline - time.monotonic()
            if wait_s <= 0:
                self.kill()
                return f"did not exit within {grace_s:g} s"
            if self._selector.get_map():
                self._read(min(wait_s, _EXIT_POLL_S))
            else:
                time.sleep(min(wait_s, 0.01))
        self.kill()
        return ending(self._process.returncode)

    def kill(self) -> None:
        """End the child and everything that it started, and leave no zombie and no file. Harmless when repeated."""
        if self._closed:
            return
        # Before the child is reaped, so its number still belongs to its group and to nobody else.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        descendants.kill_all(self._keeper.token)  # before the pipes are drained, which they may still be writing to
        for _ in range(_DRAIN_READS):
            if not self._selector.get_map() or not self._read(0):
                break
        self._close()

    def _read(self, wait_s: float) -> bool:
        """Take what the pipes hold; False when nothing came within wait_s."""
        ready = self._selector.select(wait_s)
        for key, _ in ready:
            chunk = os.read(key.fd, _READ_BYTES)
            if not chunk:
                self._selector.unregister(key.fd)
            elif key.fd == self._lines:
                self._pending += chunk
            else:
                self._tail = (self._tail + chunk)[-TAIL_BYTES:]
        return bool(ready)

    def _has_exited(self) -> bool:
        if self._process.returncode is not None:
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT  # look without reaping
        try:
            return os.waitid(os.P_PID, self._process.pid, flags) is not None
        except ChildProcessError:  # SIGCHLD is ignored here, so the kernel has reaped it
            return True

    def _close(self) -> None:
        _ = self.mark  # the last one stays readable
        self._closed = True
        self._opened.close()


def _pipe(opened: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose reading end is closed with the rest; the child's end is not."""
    reading, writing = os.pipe()
    opened.callback(os.close, reading)
    return reading, writing


def ending(returncode: int) -> str:
    """How a process ended, from subprocess's return code: `exit code 3`, `killed by SIGSEGV`."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"killed by {name}"
