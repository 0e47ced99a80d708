"""The vocabulary that crosses a process or disk border: Point, Job, Measurement, Environment, Manifest, Run.

The line on the worker's pipe and the row on disk are one record; wire.py writes and reads it.
Seconds, bytes, hertz, watts, degrees Celsius.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from mlaprof.facts import (
    Check,
    DispatchTax,
    GateFacts,
    GraphFacts,
    KernelResources,
    MemoryUse,
    NoiseRounds,
    RankFacts,
    Record,
    SearchFacts,
    StepCounts,
    Timing,
    TunedUse,
)
from mlaprof.faults import Fault
from mlaprof.kernels.tiles import label
from mlaprof.study import (
    PR_BOUNDARY,
    BatchSpec,
    Boundary,
    CaptureSpec,
    FaultSpec,
    Launch,
    LayerSpec,
    MeasureSpec,
    Mode,
    Phase,
    TileChoice,
    TuneTarget,
)

Kind = Literal["timing", "memory", "counts", "compile", "dispatch", "noise", "kernel", "search", "trace"]
Status = Literal["ok", "compiled", "skipped", "failed", "incorrect"]
Stage = Literal["plan", "build", "compile", "capture", "verify", "measure", "worker"]
Device = Literal["cpu", "cuda"]
Precision = Literal["bf16", "fp8", "fp32", ""]  # of a kernel's products; "": it has none worth counting


_set = object.__setattr__  # a Record is frozen
_NONE_SET: set[str] = set()  # shared: nobody asks a Point which of its fields were given


class Point(Record):
    """One thing to measure, plain numbers only. tiles empty: every kernel's default."""

    preset: str
    phase: Phase
    num_tokens: int
    context_len: int
    mode: Mode
    boundary: Boundary = PR_BOUNDARY  # another one only in study.BOUNDED_MODES
    tiles: tuple[TileChoice, ...] = ()
    twin: bool = False  # the A/A twin: its cell's baseline once more, timed as an arm of its own

    @classmethod
    def trusted(
        cls,
        preset: str,
        phase: Phase,
        num_tokens: int,
        context_len: int,
        mode: Mode,
        boundary: Boundary,
        tiles: tuple[TileChoice, ...],
    ) -> Self:
        """A Point of values that a Study has validated, in a fifth of the time and a third of the memory.

        What model_construct does, which looks at every field by name.
        """
        point = cls.__new__(cls)
        fields = {
            "preset": preset,
            "phase": phase,
            "num_tokens": num_tokens,
            "context_len": context_len,
            "mode": mode,
            "boundary": boundary,
            "tiles": tiles,
            "twin": False,
        }
        _set(point, "__dict__", fields)
        _set(point, "__pydantic_fields_set__", _NONE_SET)
        _set(point, "__pydantic_extra__", None)
        _set(point, "__pydantic_private__", None)
        return point

    @property
    def cell(self) -> str:
        """What the arms of one comparison share: everything but mode, boundary, tiles and twin."""
        return f"{self.preset}/{self.phase}/t{self.num_tokens}/ctx{self.context_len}"

    @property
    def tiles_label(self) -> str:
        """`sparse_attn=n64.w4.s3`, kernels joined by `+`; empty for the defaults."""
        return "+".join(f"{choice.kernel}={label(choice.kernel, choice.values)}" for choice in self.tiles)

    @property
    def way(self) -> str:
        """How the step is run: the mode, and `@boundary` where that is not the PR's."""
        return self.mode if self.boundary == PR_BOUNDARY else f"{self.mode}@{self.boundary}"

    @property
    def key(self) -> str:
        """A readable sentence: test id, resume key, join key of compare, label in plots."""
        return "/".join(part for part in (self.cell, self.way, self.tiles_label, "aa" if self.twin else "") if part)


class Job(Record):
    """What one worker process does. timing: all arms of some cells; memory: one way (mode and boundary), all its sizes,
    largest first; counts: what a step of each arm asks of the driver, profiled; compile: tile facts for sm_90 without a
    GPU; dispatch: what calling an operator costs the host; noise: one step as several arms, to tell what noise is;
    trace: the timeline of one step, which no run file holds."""

    kind: Kind
    process: int = 0  # of measure.processes that do the same
    device: Device
    layer: LayerSpec
    batch: BatchSpec
    capture: CaptureSpec = CaptureSpec()  # sizes as the engine would take them: clamped, without those out of reach
    measure: MeasureSpec
    points: tuple[Point, ...]
    tuned: tuple[TunedUse, ...] = ()  # tiles of the library where a Point names none of a kernel
    faults: tuple[FaultSpec, ...] = ()  # in drills


class Outcome(Record):
    status: Status
    stage: Stage = "measure"
    reason: str = ""
    fault: Fault = ""

    @property
    def cause(self) -> str:
        """`timeout: no sign of life for 300 s`: the fault, where it has a name, and the reason."""
        return f"{self.fault}: {self.reason}" if self.fault not in ("", "error") else self.reason

    @property
    def usable(self) -> bool:
        """A latency may be shown."""
        return self.status == "ok"


class Measurement(Record):
    """What was seen at a Point by one kind of job. A failure is a Measurement too."""

    point: Point
    kind: Kind
    process: int = 0  # its Job's
    outcome: Outcome
    emulated: bool
    recorded_at: str  # UTC, ISO 8601
    timing: Timing | None = None
    ranks: RankFacts | None = None  # of a timing, where tensor parallel ranks ran the layer
    memory: MemoryUse | None = None  # of the first rank
    graph: GraphFacts | None = None
    counts: StepCounts | None = None
    dispatch: DispatchTax | None = None
    noise: NoiseRounds | None = None
    gate: GateFacts | None = None
    resources: tuple[KernelResources, ...] = ()
    checks: tuple[Check, ...] = ()


class KernelPoint(Record):
    """One kernel at one shape, by one provider; tiles None: the provider's own choice."""

    kernel: str
    shape: dict[str, int]  # axis -> size, as kernel_shapes.py has them
    provider: str
    launch: Launch = "eager"
    tiles: dict[str, int] | None = None
    twin: bool = False  # the A/A twin: the same once more, timed as an arm of its own

    @property
    def shape_label(self) -> str:
        """`m=64,n=2112,k=7168`"""
        return ",".join(f"{axis}={size}" for axis, size in self.shape.items())

    @property
    def cell(self) -> str:
        """What the arms of one comparison share: the kernel and its shape."""
        return f"{self.kernel}/{self.shape_label}"

    @property
    def way(self) -> str:
        """How it is run: the provider, `@graph` where it is replayed, and its tiles `:block_n=64,num_warps=4`."""
        tiles = ",".join(f"{name}={value}" for name, value in (self.tiles or {}).items())
        return f"{self.provider}{'@graph' if self.launch == 'graph' else ''}{f':{tiles}' if tiles else ''}"

    @property
    def key(self) -> str:
        return f"{self.cell}/{self.way}{'/aa' if self.twin else ''}"


class KernelJob(Record):
    """What one worker process does of a kernel study: every arm of some cells of one kernel."""

    kind: Literal["kernel"] = "kernel"
    process: int = 0
    device: Device
    seed: int
    measure: MeasureSpec
    points: tuple[KernelPoint, ...]


class Told(Record):
    """What an earlier process of a search found out, so that the next one goes on from there."""

    point: KernelPoint
    device_s: float | None  # None where it failed


class SearchJob(Record):
    """What one worker process does of a search: propose, compile, prove and time tiles of one kernel at one shape."""

    kind: Literal["search"] = "search"
    process: int = 0
    device: Device
    seed: int
    measure: MeasureSpec
    target: TuneTarget
    forms: tuple[str, ...]  # of kernels.tiles, whose configurations may be proposed
    first: tuple[TileChoice, ...] = ()  # proposed before all others: defaults, the deployed configuration
    told: tuple[Told, ...] = ()
    began_at: float  # Unix time when the search began; of a search that was cut off, as if it had not been
    search_s: float  # it ends so long after that
    max_evals: int | None = None  # most to be measured, by this process
    exhaust: bool = False  # every legal configuration, however many
    compilers: int = 1  # processes that compile beside this one


class KernelMeasurement(Record):
    """What was seen of one kernel. A failure is a measurement, too."""

    point: KernelPoint
    kind: Literal["kernel", "search"] = "kernel"
    process: int = 0
    outcome: Outcome
    emulated: bool
    recorded_at: str  # UTC, ISO 8601
    flops: int = 0  # of one launch, by kernels/work
    bytes: int = 0
    precision: Precision = ""
    version: str = ""  # of the provider's package
    timing: Timing | None = None
    checks: tuple[Check, ...] = ()
    resources: KernelResources | None = None  # of a search
    search: SearchFacts | None = None


class Started(Record):
    """A worker begins a stage of a Point: the other line on its pipe, never on disk."""

    kind: Kind
    key: str  # of the Point
    stage: Stage


class Gpu(Record):
    """A GPU as NVML tells of it; None where the card or the driver does not, or an older run did not ask."""

    name: str
    uuid: str
    driver: str
    compute_capability: str
    memory_bytes: int
    power_limit_w: float | None = None
    power_limit_default_w: float | None = None
    sm_clock_max_hz: float | None = None
    compute_pids: tuple[int, ...] = ()  # processes with a context on this GPU when the snapshot was taken
    sm_count: int | None = None
    vbios: str | None = None
    sm_clock_hz: float | None = None  # when the snapshot was taken, as mem_clock_hz: an idle GPU's
    mem_clock_hz: float | None = None
    mem_clock_max_hz: float | None = None
    sm_clock_set_hz: float | None = None  # the applications clock; a lock by `nvidia-smi -lgc` is not told
    sm_clock_default_hz: float | None = None  # what sm_clock_set_hz is where nobody set it
    persistence: bool | None = None
    ecc: bool | None = None
    mig: bool | None = None
    numa_node: int | None = None  # of the host, that the GPU's PCI slot belongs to


class Environment(Record):
    """Facts of the machine and the software; judging them is machine/checks.py."""

    gpus: tuple[Gpu, ...]
    nvml: str  # NVML's version, or why it is absent
    cpu: str
    cpu_count: int
    memory_bytes: int
    os: str
    python: str
    packages: dict[str, str]  # distribution -> version, of those that can change a number
    kernel_source_sha256: str  # of kernels/*.py
    source_sha256: str = ""  # of every module of mlaprof, kernels included; "": an older run did not ask
    git_commit: str | None = None
    git_dirty: bool | None = None
    variables: dict[str, str] = Field(default={})  # environment variables that change behaviour
    used_gpu: int | None = None  # place in gpus of the one that CUDA calls 0; None where CUDA sees none
    cuda_driver: str | None = None  # newest CUDA that the driver can run; the runtime's version is in packages
    confidential_computing: bool | None = None
    container: str | None = None  # its id
    load_average: float | None = None  # of the last minute, in runnable threads

    def processor(self, device: Device) -> str:
        """What a run on device computes on: the name of the GPU that is used, or the CPU's."""
        return self.gpus[self.used_gpu or 0].name if device == "cuda" and self.gpus else self.cpu


class Manifest(Record):
    """The head of a run file."""

    schema_version: int
    run_id: str
    created_at: str  # UTC, ISO 8601
    mlaprof_version: str
    command: tuple[str, ...]
    device: Device
    study_yaml: str  # the resolved Study
    environment: Environment
    planned: tuple[str, ...]  # `work` of every Measurement the plan will make, in run order
    tuned: tuple[TunedUse, ...] = ()  # which rule of the library served each kernel; empty where it has no entry
    merged: tuple[str, ...] = ()  # ids of the runs that this one was joined from
    forced: tuple[str, ...] = ()  # for each --resume --force: when, and what had changed since the run began


class Run(Record):
    manifest: Manifest
    measurements: tuple[Measurement, ...]
    kernels: tuple[KernelMeasurement, ...] = ()

    @property
    def is_of_kernels(self) -> bool:
        """Made by `mlaprof kernels`: single kernels, no layer."""
        return any(line.startswith("kernel") for line in self.manifest.planned)

    @property
    def is_of_tuning(self) -> bool:
        """Made by `mlaprof tune`: searches, and the finalists of each."""
        return any(line.startswith("search") for line in self.manifest.planned)


PlannedJob = Job | KernelJob  # whose Points are known before it begins
AnyJob = PlannedJob | SearchJob
AnyMeasurement = Measurement | KernelMeasurement
Event = Started | AnyMeasurement


def work(kind: Kind, key: str, process: int = 0) -> str:
    """One piece of work as a line: `timing KEY`, and of the second process that does the same `timing#2 KEY`."""
    return f"{kind}#{process + 1} {key}" if process else f"{kind} {key}"
