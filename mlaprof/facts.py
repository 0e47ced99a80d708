"""What was seen at a Point: times, memory, graphs, counts, checks. The parts of a Measurement.

Seconds, bytes, hertz, watts, degrees Celsius.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from mlaprof.study import Hold

Stop = Literal["interval", "samples", "time"]
SizeState = Literal["eager", "captured", "replayed", "fell_back", "not_captured"]


class Record(BaseModel):
    # NaN and infinity travel as text: JSON has neither, and as null, pydantic's usual way, they would not come back.
    # Only a Check may hold them.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", allow_inf_nan=False)


def _unpack_samples(value: Any) -> Any:
    if value == "":  # most series of most timings
        return ()
    if isinstance(value, str):
        return tuple(np.frombuffer(base64.b64decode(value), dtype="<f4").tolist())
    return value


def _pack_samples(value: Sequence[float]) -> str:
    return base64.b64encode(np.asarray(value, dtype="<f4").tobytes()).decode("ascii")


Samples = Annotated[
    tuple[float, ...],
    BeforeValidator(_unpack_samples),
    PlainSerializer(_pack_samples, return_type=str, when_used="json"),
]
"""Raw samples; float32 in base64 inside JSON (relative error 6e-8, far below any clock here)."""


CONTENDED = 0.05  # of cpu_wait: beyond it others were at work on the worker's CPUs


class Timing(Record):
    """Raw samples of one arm in one process, one entry a round in every series that is present.

    The two series of bursts have one entry a burst; both are of a warm cache, whatever `cache` says. On a CPU, where a
    call is the step, device_s, submit_s and latency_s are one clock.
    """

    device_s: Samples  # the step between CUDA events, all of it queued before; on a CPU the time of the emulated step
    submit_s: Samples  # host time to enqueue the step, no synchronisation inside
    submit_cpu_s: Samples = ()  # what of submit_s the submitting thread was on a CPU
    latency_s: Samples = ()  # host time of one isolated step, from an idle device to an idle device
    sustained_s: Samples = ()  # bursts: host time a step of `burst_steps` steps back to back
    warm_device_s: Samples = ()  # bursts: as device_s, of a step behind the burst: what to compare sustained_s with
    burst_steps: int = 0
    sm_clock_hz: Samples = ()  # the rest is empty without NVML
    power_w: Samples = ()
    temperature_c: Samples = ()
    clock_event_reasons: tuple[int, ...] = ()  # NVML bit mask
    unfilled: int = 0  # samples whose step the device reached before all of it was queued: it synchronises itself
    dropped_rounds: int = 0  # void ones, measured again: clocks were held down
    cooling_s: float = 0.0  # pauses before those
    throttled: bool = False  # pausing did not help: what was measured since is kept as it is
    other_processes: int = 0  # on this GPU beside the worker, at most
    gpu: str = ""  # UUID of the GPU it ran on; empty on a CPU, without NVML, and in older runs, which had one GPU
    cpus: str = ""  # that the worker might run on, `0-3,8`; empty in older runs
    cpu_wait: float | None = None  # share of the rounds' time that the submitting thread waited for a CPU
    stop: Stop | None = None  # what ended the rounds; None in runs of before this was recorded
    cache: Literal["cold", "warm"]
    clock: Literal["cuda_event", "perf_counter"]
    warmup_s: float
    first_call_s: float  # build, JIT and first run; never mixed in


class RankFacts(Record):
    """What the ranks of a tensor parallel layer saw of one arm in one process. The Timing beside it has the slowest
    rank's time of each round."""

    device_s: tuple[Samples, ...]  # a rank: as Timing.device_s
    disagreement: tuple[str, ...] = ()  # kernels whose tiles are not the same on all ranks

    @property
    def world(self) -> int:
        return len(self.device_s)

    @property
    def spread_s(self) -> tuple[float, ...]:
        """The slowest rank's time less the fastest's, one entry a round."""
        return tuple(max(each) - min(each) for each in zip(*self.device_s, strict=True))


class NodeCounts(Record):
    """Nodes of CUDA graphs by type; on a CPU every recorded operator counts as a kernel."""

    kernel: int = 0
    memcpy: int = 0
    memset: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        return self.kernel + self.memcpy + self.memset + self.other


class SizeFacts(Record):
    """What one captured size cost. All segments together."""

    num_tokens: int
    state: SizeState  # captured, or not_captured with the reason
    reason: str = ""
    nodes: NodeCounts = NodeCounts()
    capture_s: float = 0.0
    instantiate_s: float = 0.0
    first_replay_s: float = 0.0
    pool_bytes: int = 0  # growth of the graphs' private pool
    driver_bytes: int | None = None  # growth of device memory outside torch's allocator: executables, modules
    transient_bytes: int | None = None  # most that was allocated during the capture beyond what stayed


class Ledger(Record):
    """Where the device's memory went in a process that ran one mode. None where this machine cannot tell.

    Weights, caches and buffers are counted from their tensors, the pool from the allocator's segments, the rest from
    what the device reports; so the parts need not sum to device_bytes, and `residual_bytes` says by how much they miss.
    """

    hold: Hold
    context_bytes: int | None = None  # outside torch's allocator before the first capture: context, modules, libraries
    weights_bytes: int
    caches_bytes: int
    buffers_bytes: int
    workspace_bytes: int | None = None  # allocated, none of those: library workspaces, rotation tables, spare inputs
    slack_bytes: int | None = None  # reserved by the allocator's default pool, not allocated
    sizes: tuple[SizeFacts, ...] = ()  # in the order of capture
    device_bytes: int | None = None  # what the device reports as used after all captures

    @property
    def residual_bytes(self) -> int | None:
        if self.device_bytes is None:
            return None
        parts = (self.context_bytes, self.weights_bytes, self.caches_bytes, self.buffers_bytes)
        rest = (self.workspace_bytes, self.slack_bytes)
        graphs = sum(size.pool_bytes + (size.driver_bytes or 0) for size in self.sizes)
        return self.device_bytes - graphs - sum(part or 0 for part in (*parts, *rest))


class MemoryUse(Record):
    """Memory at one Point. All in bytes; None where this machine cannot tell."""

    weights_bytes: int
    caches_bytes: int
    buffers_bytes: int  # inputs and attention metadata at fixed addresses
    graph_pool_bytes: int  # private pool of this mode's graphs, all sizes; 0 in eager modes
    allocator_peak_bytes: int | None = None
    host_peak_bytes: int | None = None  # resident peak of the worker process, on a CPU
    nvml_process_bytes: int | None = None
    ledger: Ledger | None = None  # of the whole process, the same at each of its Points


class KernelResources(Record):
    """What the compiler says of one kernel with one tile configuration."""

    kernel: str
    tiles: str
    target: str  # e.g. sm_90
    registers: int  # a thread
    stack_bytes: int  # a thread; above 0 means spills or local arrays
    shared_bytes: int  # a block


class GraphFacts(Record):
    """How the mode ran the step."""

    state: SizeState | None = None  # None in runs of before this was recorded
    captured_segments: int
    eager_segments: int
    graph_launches: int  # a step
    graph_nodes: int  # all segments together
    nodes: NodeCounts | None = None
    prepare_s: float | None = None  # tracing, warm-ups, capture, instantiation and first replay of this size
    capture_s: float  # of the captures alone; prepare_s where that is None
    instantiate_s: float | None = None
    first_replay_s: float | None = None
    padded_tokens: int  # rows the captured part works on
    hold: Hold | None = None  # of tensors that cross a segment; None without graphs
    multi_stream: bool = False  # independent work was put on a second stream where there are streams


class SegmentFacts(Record):
    """One piece of a step."""

    name: str
    kind: Literal["captured", "eager", "free"]
    ops: tuple[str, ...]
    kernels: int | None = None  # kernel nodes of a captured piece


class StepCounts(Record):
    """What one step asks of the driver, from a profiled pass; its one time, of waits, is used where nothing else tells.

    On a CPU an operator counts as a kernel, and a value read by the host as a synchronisation and a copy.
    """

    steps: int  # that were profiled; every other number is of one
    kernels: int  # seen on the device
    kernel_launches: int  # kernels that the host launched one by one: the eager ones
    graph_launches: int
    nodes: NodeCounts  # of the graphs that a step replays
    stream_syncs: int = 0
    device_syncs: int = 0
    event_syncs: int = 0
    d2h_copies: int = 0
    h2d_copies: int = 0
    allocations: int = 0  # blocks asked of torch's allocator
    driver_allocations: int = 0  # cudaMalloc and its kin
    sync_wait_s: float | None = None  # host time inside synchronising calls; of the profiled steps, so too long at most
    complete: bool  # the same in every profiled step, and kernels == nodes.kernel + kernel_launches
    segments: tuple[SegmentFacts, ...] = ()
    stop: str | None = None  # the operator at which cutting stopped

    @property
    def syncs(self) -> int:
        return self.stream_syncs + self.device_syncs + self.event_syncs

    @property
    def coverage(self) -> float | None:
        """Kernels captured over all kernels; None for a step without any."""
        every = self.nodes.kernel + self.kernel_launches
        return self.nodes.kernel / every if every else None


class DispatchTax(Record):
    """Host seconds of one call of an operator that does nothing, with Op 2's arguments."""

    bare_s: float  # the Python function itself
    define_s: float  # through torch.library define and impl, as here
    custom_op_s: float  # through the torch.library.custom_op decorator, as upstream
    calls: int  # each is the median of this many
    ops_per_step: int  # operators that a step of the study dispatches this way


class NoiseRounds(Record):
    """Samples of one step timed as several arms in one process: twice as it is, and slowed by spins. One entry a round
    in every series; round i of all series is the same."""

    device_s: Samples
    twin_s: Samples
    slowed_s: dict[str, Samples]  # by what was asked, e.g. "0.01": the step behind a spin of 1 % of its device time
    added_s: dict[str, float]  # by the same: how long that spin takes, measured by itself


class GateFacts(Record):
    """What the replays of a captured cell were put through before its time was taken, and after."""

    sets: tuple[str, ...]  # metadata sets, e.g. "other pages", "fewer tokens"
    replays: int
    interleaved: tuple[int, ...]  # other captured sizes replayed in between
    after_timing: bool  # checked once more behind the timed rounds


class TunedUse(Record):
    """Which rule of the library of tuned tiles serves a kernel at one place of a sweep."""

    phase: str
    num_tokens: int
    context_len: int
    way: str
    kernel: str
    rule: Literal["exact", "bucket", "default"]
    form: str = ""  # of kernels.tiles; empty where the launcher chooses
    values: dict[str, int] | None = None


Origin = Literal["seed", "all", "random", "model", "neighbour", "unknown"]  # unknown: its process died with it


class SearchFacts(Record):
    """How a search came to a configuration, and what that took."""

    number: int  # in the order of proposals, from 0
    origin: Origin
    at_s: float  # since the search began, all of its processes together, when this was known
    waited_s: float = 0.0  # that nothing was there to check or measure, since the one before
    compile_s: float = 0.0  # in a process beside the one that measures; 0 where it was compiled before
    check_s: float = 0.0  # the first call and its comparison with the oracle
    measure_s: float = 0.0
    first_device_s: float | None = None  # median of the first few samples; timing may hold more, taken later
    twin_of: str = ""  # key of a configuration of the same binary and launch, whose time this one has


class Check(Record):
    """One comparison that ran before any timing. value is compared with limit as `value <= limit`."""

    model_config = ConfigDict(allow_inf_nan=True)

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.value <= self.limit  # False for NaN
