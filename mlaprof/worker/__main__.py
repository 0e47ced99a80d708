"""`python -m mlaprof.worker --fd N`: read a Job from stdin, write Started and Measurement lines to descriptor N."""

from __future__ import annotations

import argparse
import os
import sys

from mlaprof.machine.parent import die_with_parent


def main() -> None:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="mlaprof.worker")
    parser.add_argument("--fd", type=int, required=True, help="descriptor to write records to")
    descriptor = parser.parse_args().fd
    # Imported only now: torch takes seconds, and the parent may be gone by then.
    from mlaprof.wire import decode_job, encode
    from mlaprof.worker.events import ContextLost
    from mlaprof.worker.jobs import run_job

    job = decode_job(sys.stdin.buffer.read())
    with os.fdopen(descriptor, "w", encoding="utf-8", buffering=1) as lines:
        try:
            for event in run_job(job):
                lines.write(encode(event) + "\n")
        except ContextLost:
            # The Measurement that says why is out; whatever is left needs a fresh process.
            lines.flush()
            os._exit(3)


if __name__ == "__main__":
    main()
