"""Sweeps as processes of their own, and what they may leave behind: a run file, and nothing else."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

COMMAND = Path(__file__).with_name("command.py")
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


class Place:
    """A folder of its own for runs, and one for temporary files."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.folder = folder
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.checkout = checkout
        self.shared = set(SHARED_MEMORY.iterdir()) if SHARED_MEMORY.is_dir() else set()
        self.token = f"{os.getpid()}-{secrets.token_hex(8)}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment of what is started here."""
        return {
            **{name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")},
            "PYTHONPATH": os.pathsep.join(filter(None, [str(self.checkout), os.environ.get("PYTHONPATH", "")])),
            "TMPDIR": str(self.temporary),
            "COLUMNS": "160",
            "PYTHONIOENCODING": "utf-8",
            "DRILL": self.token,
        }

    def start(self, *arguments: object, program: tuple[str, ...] = ("-m", "mlaprof")) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=self.folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def run(self, *arguments: object, program: tuple[str, ...] = ("-m", "mlaprof"), limit_s: float = 580.0) -> Ended:
        process = self.start(*arguments, program=program)
        out, err = process.communicate(timeout=limit_s)
        return Ended(process.returncode, out, err)

    def fake(self, mode: str, *arguments: object) -> Ended:
        return self.run(mode, *arguments, program=(str(COMMAND),))

    def processes(self) -> list[int]:
        """What was started here and lives; every descendant carries the token."""
        entry = f"DRILL={self.token}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if entry in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def assert_clean(self) -> None:
        deadline = time.monotonic() + 20.0
        while left := self.left():
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.02)

    def left(self) -> list[str]:
        """Processes, temporary files, and shared memory: of that, which has no folder of its own, whatever is new."""
        shared = set(SHARED_MEMORY.iterdir()) - self.shared if SHARED_MEMORY.is_dir() else set()
        return [*map(str, self.processes()), *map(str, self.temporary.iterdir()), *map(str, shared)]


@pytest.fixture
def place(tmp_path: Path, checkout: Path) -> Iterator[Place]:
    """Where a drill happens; afterwards no process, temporary file or shared memory of it is left."""
    made = Place(tmp_path, checkout)
    yield made
    made.assert_clean()


Fake = Callable[..., Ended]
