"""`python -m mlaprof.worker --fd N --mark M`: read a Job from stdin, write Started and Measurement lines to descriptor
N, and whose turn it is inside a shared stage to the file of descriptor M.

With `--rank R --meeting FILE` it is another rank of a worker's tensor parallel layer: it does the same, unheard.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from mlaprof.machine.parent import die_with_parent

WAIT_S = 3600.0


def main() -> None:
    die_with_parent()
    # Ctrl-C is the parent's to answer. Python would make an exit code of it, and hide what ended the process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parser = argparse.ArgumentParser(prog="mlaprof.worker")
    parser.add_argument("--fd", type=int, help="descriptor to write records to; without one they are dropped")
    parser.add_argument("--mark", type=int, help="descriptor of a file to write the key of the Point at work to")
    parser.add_argument("--rank", type=int, default=0, help="place in the group of a tensor parallel layer")
    parser.add_argument("--meeting", help="file through which the ranks of the group find each other")
    options = parser.parse_args()
    # Imported only now: torch takes seconds, and the parent may be gone by then.
    from mlaprof.kernels.stable_keys import make_keys_stable
    from mlaprof.records import Job, Started
    from mlaprof.wire import decode_job, encode
    from mlaprof.worker.events import ContextLost
    from mlaprof.worker.group import RankPlace
    from mlaprof.worker.jobs import run_job
    from mlaprof.worker.mark import Mark

    job = decode_job(sys.stdin.buffer.read())
    make_keys_stable()
    mark = Mark(options.mark)
    place = (RankPlace(options.rank, options.meeting),) if options.rank else ()
    with open(os.devnull if options.fd is None else options.fd, "w", encoding="utf-8", buffering=1) as lines:
        events = run_job(job, mark, *place)
        if isinstance(job, Job) and job.faults:
            from mlaprof.drill.strike import Drill  # only checkouts have it

            mark = Drill(options.mark, job, lines.fileno(), options.rank)
            events = mark.events(run_job(job, mark, *place))
        try:
            for event in events:
                if isinstance(event, Started):
                    mark("")
                lines.write(encode(event) + "\n")
        except ContextLost:
            # The Measurement that says why is out; whatever is left needs a fresh process.
            lines.flush()
            if not place:
                os._exit(3)
        if place:
            # Rank 0 has the last word, and ends this one with it: a rank that ends before is a fault.
            time.sleep(WAIT_S)


if __name__ == "__main__":
    main()
