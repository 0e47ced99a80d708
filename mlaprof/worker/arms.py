"""An arm: the stack in the form, with the tiles and under the runner that a Point asks for."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

from mlaprof.capture.breakable import BreakableRunner
from mlaprof.capture.buffers import InputBuffers
from mlaprof.capture.eager import EagerRunner
from mlaprof.capture.full import FullRunner
from mlaprof.capture.graphs import GraphMaker
from mlaprof.capture.piecewise import PiecewiseRunner
from mlaprof.capture.program import Runner
from mlaprof.layer.context import ForwardContext
from mlaprof.layer.metadata import AttnMetadata
from mlaprof.layer.mla import Form
from mlaprof.layer.ops import ATTN, MONOLITH, PROJ
from mlaprof.layer.stack import Stack
from mlaprof.layer.tiling import LayerTiles, tuned_tiles
from mlaprof.records import Job, Point
from mlaprof.study import Hold, Mode, kernel_dims
from mlaprof.worker.group import Group

SEE_THROUGH = (PROJ, ATTN, MONOLITH)  # operators whose CPU kernels are Python made of operators


@dataclass(frozen=True)
class Arm:
    """One Point, ready to run. `with arm.context` around every call of runner or stack."""

    point: Point
    stack: Stack
    runner: Runner
    graphs: GraphMaker | None  # None in eager modes
    context: ForwardContext
    hold: Hold
    tiles: LayerTiles
    tried: set[int] = field(default_factory=set)  # buckets whose capture was begun, shared by all token counts

    def at(self, point: Point) -> Arm:
        """The same arm for another token count."""
        return replace(self, point=point)


def build_arm(job: Job, point: Point, stack: Stack, buffers: InputBuffers, metadata: AttnMetadata, group: Group) -> Arm:
    """A runner of its own over a variant of stack, with a graph pool of its own."""
    mode, capture = point.mode, job.capture
    chosen = {choice.kernel: choice.values for choice in point.tiles}
    form = _form(mode, is_dsa=job.layer.shape.is_dsa)
    tuned = [(use.num_tokens, use.form, use.values) for use in job.tuned if use.way == point.way and use.values]
    tiles = tuned_tiles(kernel_dims(job.layer.shape), chosen, tuned)
    variant = stack.variant(form=form, tiles=tiles, boundary=point.boundary)
    eager = mode.endswith("_eager")
    graphs = None if eager else _graph_maker(job)
    excluded = (ATTN if form == "split" else MONOLITH,)
    # Op 1 reads the batch in Python at this boundary alone; elsewhere asking would only cost submit time.
    piece_key = functools.partial(metadata.proj_control_flow, "logits") if point.boundary == "logits" else None
    runner: Runner
    if graphs is None:
        runner = EagerRunner(variant, buffers)
    elif mode == "full":
        runner = FullRunner(variant, buffers, graphs, hold=capture.hold, variant=metadata.control_flow)
    elif mode == "breakable":
        runner = BreakableRunner(variant, buffers, graphs, excluded, hold=capture.hold, variant=piece_key)
    else:
        runner = PiecewiseRunner(variant, buffers, graphs, excluded, hold=capture.hold, variant=piece_key)
    context = ForwardContext(
        variant.attention, metadata, compiled=not eager, multi_stream=capture.multi_stream, reduce=group.reduce
    )
    return Arm(point, variant, runner, graphs, context, capture.hold, tiles)


def _form(mode: Mode, *, is_dsa: bool) -> Form:
    return "split" if is_dsa and not mode.startswith("monolithic") else "monolithic"


def _graph_maker(job: Job) -> GraphMaker:
    if job.device == "cuda":
        from mlaprof.capture.cuda_graph import CudaGraphs

        return CudaGraphs()
    from mlaprof.capture.cpu_graph import CpuGraphs

    return CpuGraphs(see_through=SEE_THROUGH)
