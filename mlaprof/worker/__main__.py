"""`python -m mlaprof.worker --fd N --mark M`: read a Job from stdin, write Started and Measurement lines to descriptor
N, and whose turn it is inside a shared stage to the file of descriptor M."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from mlaprof.machine.parent import die_with_parent


def main() -> None:
    die_with_parent()
    # Ctrl-C is the parent's to answer. Python would make an exit code of it, and hide what ended the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parser = argparse.ArgumentParser(prog="mlaprof.worker")
    parser.add_argument("--fd", type=int, required=True, help="descriptor to write records to")
    parser.add_argument("--mark", type=int, help="descriptor of a file to write the key of the Point at work to")
    options = parser.parse_args()
    # Imported only now: torch takes seconds, and the parent may be gone by then.
    from mlaprof.kernels.stable_keys import make_keys_stable
    from mlaprof.records import Job, Started
    from mlaprof.wire import decode_job, encode
    from mlaprof.worker.events import ContextLost
    from mlaprof.worker.jobs import run_job
    from mlaprof.worker.mark import Mark

    job = decode_job(sys.stdin.buffer.read())
    make_keys_stable()
    mark = Mark(options.mark)
    with os.fdopen(options.fd, "w", encoding="utf-8", buffering=1) as lines:
        events = run_job(job, mark)
        if isinstance(job, Job) and job.faults:
            from mlaprof.drill.strike import Drill  # only checkouts have it

            mark = Drill(options.mark, job, options.fd)
            events = mark.events(run_job(job, mark))
        try:
            for event in events:
                if isinstance(event, Started):
                    mark("")
                lines.write(encode(event) + "\n")
        except ContextLost:
            # The Measurement that says why is out; whatever is left needs a fresh process.
            lines.flush()
            os._exit(3)


if __name__ == "__main__":
    main()
