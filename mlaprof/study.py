"""What was asked: a Study and its parts. Pure values; config.py reads them from YAML.

Frozen pydantic models, because a Study and its LayerSpec are stored with the run and travel to the worker.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mlaprof.kernels.tiles import Dims
from mlaprof.shapes import LayerShape

Phase = Literal["prefill", "decode", "mixed"]
Mode = Literal["monolithic_eager", "monolithic_piecewise", "split_eager", "split_piecewise", "breakable", "full"]
Boundary = Literal["proj", "index_quant", "cache_update", "logits"]
Hold = Literal["strong", "weak"]
MultiStream = Literal["off", "graphs", "always"]
LinearKind = Literal["bf16", "fp8_block", "cublaslt_block"]

PHASES: tuple[Phase, ...] = ("prefill", "decode", "mixed")
MODES: tuple[Mode, ...] = (
    "monolithic_eager",
    "monolithic_piecewise",
    "split_eager",
    "split_piecewise",
    "breakable",
    "full",
)
BASELINE: Mode = "monolithic_eager"  # what speed-ups are over
DEFAULT_MODES: tuple[Mode, ...] = ("monolithic_eager", "split_piecewise", "breakable", "full")
BUCKETED_MODES: tuple[Mode, ...] = ("monolithic_piecewise", "split_piecewise", "breakable")  # pad up to a captured size
SPLIT_MODES: tuple[Mode, ...] = ("split_eager", "split_piecewise", "breakable")  # exist only for DSA
BOUNDED_MODES: tuple[Mode, ...] = ("split_piecewise", "breakable")  # their captured part ends at the boundary
MODE_SUMMARY: dict[Mode, str] = {
    "monolithic_eager": "one op for the whole attention, no graph: the baseline",
    "monolithic_piecewise": "one op excluded from capture, the rest captured: what upstream had before the split",
    "split_eager": "Op 1 and Op 2, no graph: the split's own cost",
    "split_piecewise": "Op 1 captured with its neighbours, Op 2 eager: what PR #12503 makes possible",
    "breakable": "as split_piecewise, but one stream capture broken at Op 2 and resumed after it; no torch.compile",
    "full": "one graph for the whole step at a fixed batch shape",
}
BOUNDARIES: tuple[Boundary, ...] = ("proj", "index_quant", "cache_update", "logits")
PR_BOUNDARY: Boundary = "index_quant"
BOUNDARY_SUMMARY: dict[Boundary, str] = {  # the last step inside the captured part; each includes those before it
    "proj": "the projections and norms of q and the latent; the whole indexer stays eager",
    "index_quant": "and the indexer's projections, rotation and quantisation: the split of PR #12503",
    "cache_update": "and the writes to the latent and the index-K cache",
    "logits": "and the indexer's logits and top-k: Op 2 is attention alone",
}

PositiveInt = Annotated[int, Field(ge=1)]


class Part(BaseModel):
    """A piece of a Study: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class WeightsSpec(Part):
    """Random weights from a seed, or layer `layer` of a Hugging Face checkpoint (a file or its folder)."""

    seed: int = 0
    safetensors: str | None = None
    layer: Annotated[int, Field(ge=0)] = 0


class LayerOptions(Part):
    """Behaviour switches of the layer, under upstream's names."""

    short_seq_mha_threshold: Annotated[int, Field(ge=0)] = 0  # tokens; 0 is off, upstream's default
    skip_indexer_for_short_seqs: bool = True
    indexer_max_chunk_size: PositiveInt = 32_768  # tokens
    max_seq_len: Annotated[int, Field(ge=0)] = 0  # width of decode's logits; 0 fits the longest request of a job
    linear: LinearKind = "bf16"  # the four large projections: bf16, or e4m3 in blocks by block_gemm or by cuBLASLt
    llama_4_scaling: bool = False  # refused: the DSA path would silently ignore it


MAX_WORLD = 8  # GPUs of one host


class TpSpec(Part):
    """Tensor parallel ranks that run the layer together, their outputs summed behind o_proj. 1: one rank, alone."""

    world: Annotated[int, Field(ge=1, le=MAX_WORLD)] = 1


class LayerSpec(Part):
    """What to build: shape, depth, weights and switches. The same for every Point of a Study."""

    preset: str  # the preset's name, or the study's own name for its shape
    shape: LayerShape  # what one rank holds
    tp: TpSpec = TpSpec()
    num_layers: PositiveInt = 1
    mlp: Literal["none", "dense"] = "none"
    weights: WeightsSpec = WeightsSpec()
    options: LayerOptions = LayerOptions()


class BatchSpec(Part):
    """How num_tokens becomes requests. prefill: split over num_contexts; decode: next_n tokens a request;
    mixed: num_generations requests of next_n tokens, the rest split over num_contexts."""

    num_contexts: PositiveInt = 1
    num_generations: PositiveInt = 4
    next_n: Annotated[int, Field(ge=1, le=4)] = 1
    seed: int = 0  # of hidden states, cache contents and page tables


Seconds = Annotated[float, Field(gt=0)]


class StageLimits(Part):
    """The longest that a worker may be silent in a stage of one cell, in seconds; None: measure.point_timeout_s."""

    build: Seconds | None = None
    compile: Seconds | None = None
    capture: Seconds | None = None
    verify: Seconds | None = None
    measure: Seconds | None = None


class MeasureSpec(Part):
    """How a cell is timed. The defaults are the preset `standard`."""

    cache: Literal["cold", "warm"] = "cold"  # cold: L2 is flushed before each sample
    processes: PositiveInt = 3  # fresh ones, each of which times every cell
    min_samples: Annotated[int, Field(ge=6)] = 20  # rounds of a cell in one process
    max_samples: PositiveInt = 500
    ci_half_width: Annotated[float, Field(gt=0, lt=1)] = 0.005  # of every arm's median: reached, the rounds end
    cell_time_s: Annotated[float, Field(gt=0)] = 15.0  # most that the rounds of a cell may take in one process
    warmup_s: Annotated[float, Field(ge=0)] = 0.2  # of all arms in rotation
    min_clock_ratio: Annotated[float, Field(ge=0, le=1)] = (
        0.75  # a round at a lower SM clock, over the warm one, is void
    )
    twin: bool = True  # each cell's baseline is timed twice: what the two differ by is the run's A/A floor
    point_timeout_s: Annotated[float, Field(gt=0)] = 300.0  # one stage of one cell, in the worker
    limits_s: StageLimits = StageLimits()  # in place of point_timeout_s, of single stages
    memory: bool = True  # one fresh process a mode for the memory ledger
    counts: bool = True  # one profiled process for what each step launches, copies and waits for

    def limit_s(self, stage: str) -> float:
        """The longest that a worker may be silent in a stage, in seconds; one without a limit has point_timeout_s."""
        limit_s: float | None = getattr(self.limits_s, stage, None)
        return self.point_timeout_s if limit_s is None else limit_s


Preset = Literal["quick", "standard", "rigorous"]
PRESETS: dict[Preset, dict[str, int | float]] = {  # what each sets of MeasureSpec
    "quick": {"processes": 1, "min_samples": 10, "max_samples": 30, "cell_time_s": 5.0},
    "standard": {},
    "rigorous": {
        "processes": 5,
        "min_samples": 100,
        "max_samples": 5000,
        "ci_half_width": 0.0025,
        "cell_time_s": 60.0,
        "min_clock_ratio": 0.9,
    },
}


class CaptureSpec(Part):
    """How graphs are captured and kept."""

    sizes: tuple[PositiveInt, ...] | None = None  # tokens a step, of the bucketed modes; None: those of the sweep
    hold: Hold = "strong"  # weak: tensors that cross a segment are views that own nothing, as in TensorRT-LLM
    multi_stream: MultiStream = "off"  # where `maybe_execute_in_parallel` forks: nowhere, in graphs, in eager runs too
    max_num_tokens: PositiveInt | None = None  # the engine's limit; larger sizes are dropped
    max_batch_size: PositiveInt | None = (
        None  # with max_seq_len, the reachable ceiling: max_batch_size * (max_seq_len - 1)
    )
    max_seq_len: Annotated[int, Field(ge=2)] | None = None


class BudgetSpec(Part):
    """Most that one step may ask for; None is no limit. A breach exits 1."""

    syncs: Annotated[int, Field(ge=0)] | None = None  # of streams, events and the device, in every mode
    d2h: Annotated[int, Field(ge=0)] | None = None  # copies from device to host, in every mode
    eager_launches: Annotated[int, Field(ge=0)] | None = None  # kernels outside graphs, in modes with graphs


class TileChoice(Part):
    """The tile configuration of one kernel, e.g. kernel sparse_attn, values {block_n: 64, num_warps: 4}."""

    kernel: str
    values: dict[str, int]


Launch = Literal["eager", "graph"]


class KernelSweep(Part):
    """One kernel of a kernel study: every provider at every shape, its tiles where it has any."""

    shapes: tuple[dict[str, int], ...]  # axis -> size, complete
    provider: tuple[str, ...]
    tiles: dict[str, tuple[TileChoice, ...]] = {}  # provider -> alternatives to its own choice


class KernelStudy(Part):
    """What `mlaprof kernels` measures: single kernels, without a layer."""

    name: str
    seed: int = 0  # of inputs and orders
    launch: tuple[Launch, ...] = ("eager",)
    kernels: dict[str, KernelSweep]
    measure: MeasureSpec = MeasureSpec()


class TuneTarget(Part):
    """One kernel at one shape under one launch: what one search is for."""

    kernel: str
    shape: dict[str, int]  # axis -> size, complete
    launch: Launch = "eager"
    deployed: TileChoice | None = None  # what a library served for it when the tuning began


class TuneStudy(Part):
    """What `mlaprof tune` does: a search a target, then its finalists measured in fresh processes."""

    name: str
    seed: int = 0  # of inputs, orders and searches
    targets: tuple[TuneTarget, ...]
    budget_s: Annotated[float, Field(gt=0)] = 60.0  # wall time a target, finalists included
    max_evals: PositiveInt | None = None  # configurations measured a target; None: as many as the budget allows
    exhaust: bool = False  # every legal configuration, however many
    measure: MeasureSpec = MeasureSpec()  # of the finalists


class Axes(Part):
    """The sweep's axes in the order of the Point key, each at least one value."""

    phase: tuple[Phase, ...] = ("prefill",)
    num_tokens: tuple[PositiveInt, ...]
    context_len: tuple[Annotated[int, Field(ge=0)], ...] = (0,)  # tokens already cached, a request
    mode: tuple[Mode, ...] = DEFAULT_MODES
    boundary: tuple[Boundary, ...] = (PR_BOUNDARY,)  # of BOUNDED_MODES; the others have none


class Selector(Part):
    """One include or exclude rule: a combination matches when it agrees with every field given."""

    phase: Phase | None = None
    num_tokens: PositiveInt | None = None
    context_len: Annotated[int, Field(ge=0)] | None = None
    mode: Mode | None = None
    boundary: Boundary | None = None


DRILL_VARIABLE = "MLAPROF_DRILL"  # "1" lets a checkout read and do what a study's `faults:` say
DrilledFault = Literal[
    "illegal_address",
    "misaligned_address",
    "endless_kernel",
    "device_oom",
    "host_oom",
    "abort",
    "segfault",
    "sigkill",
    "sigint",
    "sigterm",
    "exit",
    "rubbish",
    "hang",
    "slow_compile",
    "broken_compiler",
    "nan",
    "nvml_gone",
]


class FaultSpec(Part):
    """A fault on purpose, for mlaprof's own tests: what mlaprof.drill, which no wheel holds, does to a worker."""

    fault: DrilledFault
    at: Literal["build", "compile", "capture", "verify", "measure"]
    key: str  # of the Point that it strikes; of the first one of a job for build
    kind: Literal["timing", "memory", "counts", "compile"] = "timing"
    process: int | None = 0  # None: every one
    rank: int = 0  # of a tensor parallel layer


class Study(Part):
    """One sweep, fully resolved: presets looked up, generators expanded, command-line changes applied."""

    name: str
    layer: LayerSpec
    axes: Axes
    exclude: tuple[Selector, ...] = ()
    include: tuple[Selector, ...] = ()
    tiles: dict[str, tuple[TileChoice, ...]] = {}  # kernel -> alternatives to its default tiles
    batch: BatchSpec = BatchSpec()
    capture: CaptureSpec = CaptureSpec()
    budget: BudgetSpec = BudgetSpec()
    tuned: str = "auto"  # library of tuned tiles: auto, off, or a folder
    measure: MeasureSpec = MeasureSpec()
    faults: tuple[FaultSpec, ...] = ()  # in drills


KERNEL_STUDY_ONLY = ("block_gemm",)  # whose tiles a layer chooses by the shape of each product


def kernel_dims(shape: LayerShape) -> Dims:
    """What the kernels' tile legality depends on, taken from the layer's shape."""
    return Dims(
        num_heads=shape.num_heads,
        kv_lora_rank=shape.kv_lora_rank,
        qk_rope_head_dim=shape.qk_rope_head_dim,
        index_n_heads=shape.index_n_heads,
        index_head_dim=shape.index_head_dim,
        index_topk=shape.index_topk,
        qk_nope_head_dim=shape.qk_nope_head_dim,
        v_head_dim=shape.v_head_dim,
    )
