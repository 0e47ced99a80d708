"""A counts job: what one step of each arm asks of the driver. Profiled, in its own process: no time comes from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from mlaprof.capture.cpu_graph import CpuGraphs
from mlaprof.facts import SegmentFacts, StepCounts
from mlaprof.measure.counts import Counter, CpuCounter, CudaCounter, complete
from mlaprof.records import Outcome, Point
from mlaprof.worker.arms import SEE_THROUGH, Arm
from mlaprof.worker.events import Event, failure, measurement, recover, started
from mlaprof.worker.prepare import graph_facts, node_counts, prepare
from mlaprof.worker.rig import Rig


def counts_job(rig: Rig) -> Iterator[Event]:
    job = rig.job
    for point in job.points:
        yield started(job, point, "capture")
        try:
            prepared = prepare(rig, point)
        except Exception as error:
            yield failure(job, point, "capture", error)
            recover(job, error)
            continue
        yield started(job, point, "measure")
        try:
            with rig.group.together():
                rig.load(point.num_tokens)
                counts = _counts(prepared.arm, point)
            event = measurement(job, point, Outcome(status="ok"), counts=counts, graph=graph_facts(prepared))
        except Exception as error:
            yield failure(job, point, "measure", error)
            recover(job, error)
            continue
        yield event


def _counts(arm: Arm, point: Point) -> StepCounts:
    with arm.context:
        found = _counter(arm).count_steps(lambda: arm.runner.run(point.num_tokens))
        nodes = arm.runner.facts(point.num_tokens).nodes
        pieces = arm.runner.pieces(point.num_tokens)
    seen = asdict(found)
    del seen["steady"]  # a part of complete
    return StepCounts(
        **seen,
        nodes=node_counts(nodes),
        complete=complete(found, nodes.kernel),
        segments=tuple(
            SegmentFacts(name=piece.name, kind=piece.kind, ops=piece.ops, kernels=piece.kernels) for piece in pieces
        ),
        stop=arm.runner.stop,
    )


def _counter(arm: Arm) -> Counter:
    if arm.graphs is None or not arm.graphs.emulated:
        return CudaCounter() if _on_cuda(arm) else CpuCounter(SEE_THROUGH)
    assert isinstance(arm.graphs, CpuGraphs)
    return CpuCounter(SEE_THROUGH, arm.graphs.replayed)


def _on_cuda(arm: Arm) -> bool:
    return next(arm.stack.parameters()).is_cuda
