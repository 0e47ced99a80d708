"""What a summary says: a Cell a Point, findings, the floor, and all of a run together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlaprof.analysis.clocks import Bound, StepBudget, bound
from mlaprof.analysis.ranks import RankSpread
from mlaprof.analysis.ratios import BoundaryPrice, ModeMean, PiecewiseVsBreakable
from mlaprof.analysis.stats import Estimate
from mlaprof.facts import Check, GateFacts, GraphFacts, KernelResources, MemoryUse, SizeFacts, StepCounts
from mlaprof.records import Device, Status
from mlaprof.study import Boundary, Mode, Phase

CellStatus = Literal[Status, "missing"]
FindingKind = Literal[
    "incorrect",
    "failed",
    "irreproducible",
    "missing",
    "over_budget",
    "unbudgeted",
    "not_captured",
    "fell_back",
    "partial",
    "incomplete",
    "throttled",
    "ranks_disagree",
    "shared_gpu",
    "contended",
    "noisy",
    "self_synchronising",
    "host_bound",
    "power_capped",
    "emulated",
]

NOISY_HALF_WIDTH = 0.02  # of the median; beyond it a difference of a few per cent is not there to be seen


@dataclass(frozen=True)
class Breach:
    """A limit of study.BudgetSpec that a step exceeds."""

    name: str  # the limit's field
    got: int
    limit: int


@dataclass(frozen=True)
class BreakEven:
    """Replays until capture, instantiation and first replay are paid by what each replay saves over mode `over`."""

    replays: float
    over: Mode


@dataclass(frozen=True)
class Cell:
    """Everything known of one Point. Seconds, bytes, hertz, watts, degrees Celsius.

    A latency, and all that follows from one, is None unless outcome is ok.
    """

    key: str
    preset: str
    phase: Phase
    num_tokens: int
    context_len: int
    mode: Mode
    boundary: Boundary  # of study.BOUNDED_MODES; the others carry the PR's
    way: str  # the mode, and `@boundary` where that is not the PR's
    tiles: str  # the label of the choice; empty for every kernel's default
    outcome: CellStatus
    emulated: bool
    stage: str = ""
    reason: str = ""
    fault: str = ""
    notes: tuple[str, ...] = ()
    device_s: Estimate | None = None
    submit_s: Estimate | None = None
    latency_s: Estimate | None = None
    sustained_s: Estimate | None = None
    warm_device_s: Estimate | None = None
    budget: StepBudget | None = None  # None where sustained_s is not measured, or emulated
    ranks: RankSpread | None = None  # of a tensor parallel layer; the times above are those of the slowest
    processes: int = 0  # fresh processes that the samples are of
    speedup: Estimate | None = None  # of device_s over the baseline of the cell, default tiles; above 1 is faster
    submit_speedup: Estimate | None = None  # of submit_s, likewise; None where emulated: it would be speedup again
    step_speedup: Estimate | None = None  # of step, what a step takes in service, likewise
    tiles_speedup: Estimate | None = None  # over the default tiles of the same way
    cache: Literal["cold", "warm"] | None = None
    clock: Literal["cuda_event", "perf_counter"] | None = None
    first_call_s: float | None = None
    sm_clock_hz: float | None = None  # medians over the rounds; None without NVML
    power_w: float | None = None
    temperature_c: float | None = None
    clock_events: tuple[str, ...] = ()  # every reason seen in any round
    throttled: bool = False  # clocks stayed down; no verdict on it means anything
    power_capped: float = 0.0  # share of the rounds that ran under the power cap: a regime, no error
    dropped_rounds: int = 0  # void ones that were measured again
    other_processes: int = 0  # on the same GPU, at most
    gpus: tuple[str, ...] = ()  # UUIDs of those that its processes ran on, as far as they are known
    cpu_wait: float | None = None  # share of the rounds' time that the submitting thread waited for a CPU, at most
    unfilled: int = 0  # samples of a step that synchronises itself: submit_s holds waits for the device
    memory: MemoryUse | None = None
    graph: GraphFacts | None = None
    counts: StepCounts | None = None
    breaches: tuple[Breach, ...] = ()
    gate: GateFacts | None = None
    break_even: BreakEven | None = None
    resources: tuple[KernelResources, ...] = ()
    checks: tuple[Check, ...] = ()
    twin_trouble: str = ""  # how the A/A twin of this baseline ended, where it went wrong and the baseline did not

    @property
    def place(self) -> str:
        """What the arms of one comparison share: the key up to the mode."""
        return f"{self.preset}/{self.phase}/t{self.num_tokens}/ctx{self.context_len}"

    @property
    def timed(self) -> bool:
        """A latency may be shown."""
        return self.device_s is not None

    @property
    def step(self) -> Estimate | None:
        """What a step takes in service, host and device at work at once: sustained_s, or where that was not measured
        the longer of submit_s and device_s."""
        times = [each for each in (self.device_s, self.submit_s) if each]
        return self.sustained_s or (max(times, key=lambda each: each.median) if self.device_s else None)

    @property
    def coverage(self) -> float | None:
        """Kernels captured over all kernels; None where the counts are incomplete, of which it would be no bound."""
        return self.counts.coverage if self.counts and self.counts.complete else None

    @property
    def fell_back(self) -> bool:
        """No captured size reaches the step, so it ran eagerly in a mode with graphs."""
        return self.graph is not None and self.graph.state == "fell_back"

    @property
    def not_captured(self) -> tuple[SizeFacts, ...]:
        """The sizes that were asked of this cell's process and not captured."""
        sizes = self.memory.ledger.sizes if self.memory and self.memory.ledger else ()
        return tuple(size for size in sizes if size.state == "not_captured")

    @property
    def self_synchronising(self) -> bool:
        """Most samples could not be queued whole before the device reached them; a few are hiccups of the host."""
        return self.device_s is not None and 2 * self.unfilled > self.device_s.n

    @property
    def submit_ratio(self) -> float | None:
        """submit_s / device_s of the medians; None unless both clocks measured a time of their own.

        They do not in an emulated cell, nor where most samples are of a step that waits for the device itself.
        """
        if self.emulated or not self.device_s or not self.submit_s or self.device_s.median <= 0:
            return None
        return None if self.self_synchronising else self.submit_s.median / self.device_s.median

    @property
    def bound(self) -> Bound | None:
        """Who sets the pace in service; None where submit_ratio is."""
        if self.submit_ratio is None or not self.device_s or not self.submit_s:
            return None
        sustained, warm = (each.median if each else None for each in (self.sustained_s, self.warm_device_s))
        return bound(self.device_s.median, self.submit_s.median, sustained, warm)

    @property
    def margin_s(self) -> float | None:
        """device_s - submit_s of the medians: by so much the device may get faster before the host is the limit.

        None where submit_ratio is.
        """
        if self.submit_ratio is None or not self.device_s or not self.submit_s:
            return None
        return self.device_s.median - self.submit_s.median


@dataclass(frozen=True)
class Finding:
    """Something a reader must know before believing a number; the sentence is written in report/."""

    kind: FindingKind
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Floor:
    """What two timings of one thing differ by in a run: a smaller difference is not there to be seen."""

    ratio: float  # 0.005 is 0.5 %
    cells: int  # A/A pairs it rests on
    between: float | None = None  # the same of two fresh processes, one series each; None of a single process


@dataclass(frozen=True)
class Summary:
    """All cells of a run in plan order."""

    run_id: str
    created_at: str
    command: tuple[str, ...]
    device: Device
    processor: str  # the GPU's name, or the CPU's on a CPU run
    cells: tuple[Cell, ...]
    means: tuple[ModeMean, ...]
    findings: tuple[Finding, ...]
    piecewise_vs_breakable: tuple[PiecewiseVsBreakable, ...] = ()
    boundary_prices: tuple[BoundaryPrice, ...] = ()
    floor: Floor | None = None  # None: no cell of the run timed its baseline twice
    forced: tuple[str, ...] = ()  # when it was gone on with by --force, and what had changed since it began

    @property
    def over_budget(self) -> bool:
        """A step asks for more than the study allows."""
        return any(cell.breaches for cell in self.cells)

    @property
    def emulated(self) -> bool:
        """Times come from the CPU's emulated capture."""
        return any(cell.emulated for cell in self.cells)
