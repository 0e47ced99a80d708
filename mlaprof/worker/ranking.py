"""Few samples that rank the configurations of a search, and more of those that came out first."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from mlaprof.cases import Case
from mlaprof.facts import KernelResources, SearchFacts
from mlaprof.kernels import tiles
from mlaprof.kernels.launches import Built
from mlaprof.machine.nvml import Reading
from mlaprof.measure.clock import Clock
from mlaprof.measure.rounds import ArmSamples, Limits, Rounds, sample_rounds
from mlaprof.records import Event, KernelPoint, Outcome, SearchJob
from mlaprof.study import TileChoice
from mlaprof.worker.events import recover
from mlaprof.worker.health import Beside, Watch
from mlaprof.worker.kernels import Proven, kernel_measurement, prove
from mlaprof.worker.timing import ORDERS_APART, timing_of

FIRST_SAMPLES = 5
SLOW = 2.0  # times the fastest so far: one sample says enough (Helion #1392)
AGAIN_LIMITS = Limits(min_samples=8, max_samples=40, ci_half_width=0.005, time_s=3.0, warmup_s=0.1)
MAX_STACK_BYTES = 512  # a thread, a proposal: a few spilled registers may be the fastest, so much never
OFFLINE_TARGET = 90  # compute capability that is compiled for where there is no GPU: Hopper


def warm_up(job: SearchJob, case: Case, point: KernelPoint, clock: Clock) -> None:
    """Prove a configuration and forget it, while the compilers start.

    The first check of a process takes seconds, of which nearly all go into loading the oracle's own kernels. What is
    wrong with this one is said when its turn comes. Raises ContextLost as events.recover does.
    """
    try:
        prove(job, case, point, clock)
    except Exception as error:
        error.__traceback__ = None
        recover(job, error)


def few_samples(clock: Clock, proven: Proven, *, fastest: float | None) -> Rounds[Reading]:
    """One sample of what is far slower than the fastest so far, FIRST_SAMPLES of the rest.

    The check before them was the warm-up.
    """
    samples = [clock.sample(proven.step)]
    if fastest is None or samples[0].device_s <= SLOW * fastest:
        samples = [clock.sample(proven.step) for _ in range(FIRST_SAMPLES)]
    arm: ArmSamples[Reading] = ArmSamples(tuple(samples), (), (), 0)
    return Rounds({proven.point.key: arm}, "samples", 0, 0.0, False)


def rounds_again(job: SearchJob, clock: Clock, every: Sequence[Proven], watch: Watch) -> Rounds[Reading]:
    """The fastest in rounds, interleaved, a few seconds of them."""
    steps = {each.point.key: each.step for each in every}
    seed = job.seed + ORDERS_APART * job.process
    return sample_rounds(steps, clock, AGAIN_LIMITS, seed=seed, reading=watch.reading, bursts=False)


def timed_row(
    job: SearchJob,
    case: Case | None,
    clock: Clock,
    proven: Proven,
    rounds: Rounds[Reading],
    facts: SearchFacts,
    resources: KernelResources | None,
) -> Event:
    """The row of a configuration that was right and has a time."""
    key = proven.point.key
    timing = timing_of(job, clock, rounds, key, first_call_s=proven.first_call_s, beside=Beside())
    outcome = Outcome(status="ok")
    return kernel_measurement(
        job, case, proven.point, outcome, checks=proven.checks, timing=timing, resources=resources, search=facts
    )


def resources_of(choice: TileChoice, built: Built, target: int) -> KernelResources:
    """What the compiler says of a configuration, as a row holds it."""
    return KernelResources(
        kernel=choice.kernel,
        tiles=tiles.label(choice.kernel, choice.values),
        target=f"sm_{target}",
        registers=built.resources.registers,
        stack_bytes=built.resources.stack_bytes,
        shared_bytes=built.resources.shared_bytes,
    )


def too_much(built: Built) -> str:
    """Why what the compiler made is not worth a launch; empty where it is."""
    found = built.resources
    if found.shared_bytes > tiles.SHARED_LIMIT_BYTES:
        return f"{found.shared_bytes:,} bytes of shared memory, above {tiles.SHARED_LIMIT_BYTES:,}"
    if found.stack_bytes > MAX_STACK_BYTES:
        return f"spills: {found.stack_bytes:,} bytes of stack a thread, above {MAX_STACK_BYTES}"
    return ""


def runs_kernels(job: SearchJob) -> bool:
    """Whether a kernel of ours can run here: on a GPU, or slowly in Triton's interpreter."""
    return job.device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def target_of(job: SearchJob) -> int:
    """The compute capability that is compiled for: this GPU's, Hopper's without one."""
    if job.device != "cuda":
        return OFFLINE_TARGET
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor
