"""`mlaprof` with a worker that answers at once, its own process: `command.py WORKER_MODE[:TARGET] ARGUMENTS...`.

The command line, the sweep, the store and the child processes are the real ones; only what measures is not.
"""

from __future__ import annotations

import resource
import sys
from functools import partial
from pathlib import Path

from mlaprof import cli
from mlaprof.cli import measure
from mlaprof.engine.job import spawn_worker
from mlaprof.sweep import sweep

# -S -E: without site-packages it starts in a third of the time.
FAKE_WORKER = (sys.executable, "-S", "-E", str(Path(__file__).parents[1] / "fake_worker.py"))


def main() -> None:
    mode, *arguments = sys.argv[1:]
    if arguments[0].startswith("--disk="):
        limit_bytes = int(arguments.pop(0).removeprefix("--disk="))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))  # what is beyond it cannot be written
    spawn = partial(spawn_worker, command=[*FAKE_WORKER, *mode.split(":")])
    measure.run_sweep = partial(sweep, spawn=spawn)
    sys.argv = ["mlaprof", *arguments]
    cli.main()


if __name__ == "__main__":
    main()
