"""What a Dask worker does for a sweep: tell of its host, and measure a job. It tells the client through a topic, as

{"host": address, "id": of this process, "version": mlaprof's, "facts": a Host as JSON}
{"task": number, "begun": true}
{"task": number, "event": a line of wire.py}
{"task": number, "end": done | gpu_lost | stranger | ended | broken, "why": text}     the last of a task
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlaprof.engine.attended import Ended, attended
from mlaprof.engine.job import Spawn, run_job
from mlaprof.machine.host import this_host
from mlaprof.records import Outcome, SearchJob
from mlaprof.version import __version__
from mlaprof.wire import decode_job, encode

if TYPE_CHECKING:
    from distributed import Worker

ALONE_S = 10.0  # in which a GPU's last process may go: a CUDA context takes about a second
_AT_WORK = ("running", "paused", "closing_gracefully")  # names of distributed.Status


def tell_host(address: str, topic: str) -> None:
    """Tell of this worker, which has that address, and of its host."""
    from distributed import get_worker

    worker = get_worker()
    end_s = time.monotonic() + ALONE_S
    while (found := this_host()).other_processes and time.monotonic() < end_s:
        time.sleep(0.5)
    facts = found.model_dump_json()
    worker.log_event(topic, {"host": address, "id": worker.id, "version": __version__, "facts": facts})


def measure(
    number: int,
    text: str,
    spawn: Spawn,
    left_alone: Mapping[str, str],
    *,
    elsewhere: bool,
    topic: str,
    process: str,
) -> None:
    """Measure a job, and tell each event when it happens. The child ends with the task, the worker and the scheduler.

    text        the job as JSON
    left_alone  keys that are not tried -> their outcome as JSON
    elsewhere   as run_job has it
    process     id of the worker that is meant: another one at its address, which Dask gave the task of a lost one to,
                measures nothing
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def over() -> bool:
        """The task is cancelled, its client is gone, or the worker has lost its scheduler."""
        task = worker.state.tasks.get(key)
        return worker.status.name not in _AT_WORK or task is None or task.state == "cancelled"

    def end(how: str, why: str = "") -> None:
        worker.log_event(topic, {"task": number, "end": how, "why": why})

    if worker.id != process:
        return end("stranger")
    worker.log_event(topic, {"task": number, "begun": True})
    try:
        end(
            "gpu_lost"
            if _measure(worker, number, text, attended(spawn, over), left_alone, elsewhere, topic)
            else "done"
        )
    except Ended:
        end("ended")
    except Exception as error:
        end("broken", " ".join(f"{type(error).__name__}: {error}".split()))


def _measure(
    worker: Worker, number: int, text: str, spawn: Spawn, left_alone: Mapping[str, str], elsewhere: bool, topic: str
) -> bool:
    """Whether the GPU was lost, and with it what the client has not heard of."""
    job = decode_job(text)
    if isinstance(job, SearchJob):
        raise ValueError(f"expected a job whose Points are known, got {job.kind}")
    outcomes = {key: Outcome.model_validate_json(outcome) for key, outcome in left_alone.items()}
    events = run_job(job, spawn, outcomes, elsewhere=elsewhere)
    while True:
        try:
            event = next(events)
        except StopIteration as stop:
            return stop.value is not None
        worker.log_event(topic, {"task": number, "event": encode(event)})
