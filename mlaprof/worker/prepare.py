"""An arm made ready: its sizes captured, largest first, and what that took."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

from mlaprof.capture import program
from mlaprof.capture.graphs import CaptureError, Nodes
from mlaprof.facts import GraphFacts, NodeCounts, SizeFacts
from mlaprof.records import Point
from mlaprof.study import BUCKETED_MODES
from mlaprof.worker.arms import Arm
from mlaprof.worker.rig import Rig


@dataclass(frozen=True)
class Prepared:
    """An arm whose Point can be run."""

    arm: Arm
    prepare_s: float | None  # tracing, warm-ups, capture, instantiation and first replay of what this Point needed


def prepare(rig: Rig, point: Point) -> Prepared:
    """Capture what the Point needs: its own token count, or, of a bucketed mode with sizes given, all of those once.

    Raises CaptureError where its own token count cannot be captured. A bucket that cannot be is passed over, as engines
    do: the memory job tells of it, and the Points that it would have served fall back to a larger one or to eager.
    """
    arm = rig.arm(point)
    begin_s = perf_counter()
    if passes_over(rig, point):
        if not arm.tried:
            arm.tried.update(rig.capture_sizes(point))
            for size in rig.capture_sizes(point):
                with suppress(CaptureError, ValueError):
                    capture_size(rig, arm, size)
        rig.load(point.num_tokens)
    else:
        capture_size(rig, arm, point.num_tokens)
    prepare_s = perf_counter() - begin_s if arm.graphs is not None else 0.0
    rig.settle()
    return Prepared(arm, prepare_s)


def passes_over(rig: Rig, point: Point) -> bool:
    """Whether a size that cannot be captured is left to larger ones or to eager runs, as engines leave a bucket."""
    return point.mode in BUCKETED_MODES and rig.job.capture.sizes is not None


def capture_size(rig: Rig, arm: Arm, size: int) -> SizeFacts:
    """Capture one size on the study's own batch of that many tokens, which is in place afterwards; of a full decode
    graph also its short variant. The nodes are the own batch's, the seconds those of all. Memory is left to who weighs.

    Raises ValueError where there is no such batch, CaptureError where the capture fails, on whatever rank.
    """
    found: list[program.Prepared] = []
    batches = rig.captured_with(arm.point, size)
    with rig.group.together():
        for number, variation in batches:
            rig.load_variation(variation, number)
            with arm.context:
                found += arm.runner.prepare([size])
    if not found[-1].graph_launches:
        cut = f": it is cut at {arm.runner.stop}" if arm.runner.stop else ""
        return SizeFacts(num_tokens=size, state="not_captured", reason=f"no piece of the step can be captured{cut}")
    return SizeFacts(
        num_tokens=size,
        state="captured",
        nodes=node_counts(found[-1].nodes),
        capture_s=sum(each.capture_s for each in found),
        instantiate_s=sum(each.instantiate_s for each in found),
        first_replay_s=sum(each.first_replay_s for each in found),
    )


def not_captured(size: int, error: Exception) -> SizeFacts:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return SizeFacts(num_tokens=size, state="not_captured", reason=reason[:2000])


def graph_facts(prepared: Prepared) -> GraphFacts:
    """How the Point is run, as of now; its batch must be loaded."""
    arm, switch = prepared.arm, prepared.arm.context.multi_stream
    facts = arm.runner.facts(arm.point.num_tokens)
    return GraphFacts(
        state=facts.state,
        captured_segments=facts.captured_segments,
        eager_segments=facts.eager_segments,
        graph_launches=facts.graph_launches,
        graph_nodes=facts.nodes.total,
        nodes=node_counts(facts.nodes),
        prepare_s=prepared.prepare_s,
        capture_s=facts.capture_s,
        instantiate_s=facts.instantiate_s,
        first_replay_s=facts.first_replay_s,
        padded_tokens=facts.num_tokens,
        hold=None if arm.graphs is None else arm.hold,
        multi_stream=switch == "always" or (switch == "graphs" and facts.graph_launches > 0),
    )


def node_counts(nodes: Nodes) -> NodeCounts:
    return NodeCounts(kernel=nodes.kernel, memcpy=nodes.memcpy, memset=nodes.memset, other=nodes.other)
