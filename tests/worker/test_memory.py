"""Memory jobs on a CPU."""

from __future__ import annotations

import pytest
import torch

from mlaprof.capture.breakable import BreakableRunner
from mlaprof.capture.full import FullRunner
from mlaprof.capture.graphs import CaptureError
from mlaprof.capture.program import Prepared, Program
from mlaprof.facts import Ledger
from mlaprof.records import Job, Measurement
from mlaprof.worker import prepare
from mlaprof.worker.jobs import run_job

SIZES = (70, 5)


def weighed(job: Job) -> list[Measurement]:
    return [event for event in run_job(job) if isinstance(event, Measurement)]


def memory_job(planned, *lines: str) -> Job:
    """The one memory job of a study."""
    plan = planned(*lines, settings=("measure.memory=true",))
    (job,) = [job for job in plan.jobs if job.kind == "memory"]
    return job


def ledger_of(found: list[Measurement]) -> Ledger:
    """The same at every Point of a process."""
    (ledger,) = {each.memory.ledger.model_dump_json(): each.memory.ledger for each in found}.values()
    return ledger


@pytest.fixture(scope="module")
def jobs(planned) -> dict[str, Job]:
    plan = planned("sweep: {num_tokens: [5, 70], mode: [split_eager, full]}", settings=("measure.memory=true",))
    return {job.points[0].mode: job for job in plan.jobs if job.kind == "memory"}


def test_an_eager_mode_has_no_graph_pool(jobs) -> None:
    """Weights, caches and buffers are told in bytes; what a CPU cannot tell is None, not 0."""
    found = weighed(jobs["split_eager"])

    assert [each.point.num_tokens for each in found] == list(SIZES)
    for each in found:
        assert (each.outcome.status, each.kind, each.timing, each.emulated) == ("ok", "memory", None, True)
        use = each.memory
        assert use is not None and use.graph_pool_bytes == 0
        assert min(use.weights_bytes, use.caches_bytes, use.buffers_bytes) > 0
        assert use.host_peak_bytes is not None and use.host_peak_bytes > use.weights_bytes
        assert (use.allocator_peak_bytes, use.nvml_process_bytes) == (None, None)


def test_a_graph_pool_is_that_of_all_sizes_so_far(jobs) -> None:
    """Largest first into one pool, as engines capture."""
    eager, full = weighed(jobs["split_eager"]), weighed(jobs["full"])

    pools = [each.memory.graph_pool_bytes for each in full]
    assert [each.point.num_tokens for each in full] == list(SIZES)
    assert 0 < pools[0] <= pools[1] < 2 * pools[0]
    for fixed in ("weights_bytes", "caches_bytes"):
        assert len({getattr(each.memory, fixed) for each in (*eager, *full)}) == 1


def test_a_size_that_fails_leaves_the_others_weighed(jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlaprof.capture.eager import EagerRunner

    run = EagerRunner.run

    def fragile(self: EagerRunner, num_tokens: int) -> object:
        if num_tokens == SIZES[0]:
            raise MemoryError("no room")
        return run(self, num_tokens)

    monkeypatch.setattr(EagerRunner, "run", fragile)
    large, small = weighed(jobs["split_eager"])

    assert (large.outcome.status, large.outcome.reason, large.memory) == ("failed", "MemoryError: no room", None)
    assert small.outcome.status == "ok" and small.memory is not None


def test_an_eager_mode_has_a_ledger_without_sizes(jobs) -> None:
    """What the machine cannot tell is None; a residual of unknown parts is none."""
    ledger = ledger_of(weighed(jobs["split_eager"]))

    assert (ledger.hold, ledger.sizes) == ("strong", ())
    assert min(ledger.weights_bytes, ledger.caches_bytes, ledger.buffers_bytes) > 0
    assert {ledger.context_bytes, ledger.workspace_bytes, ledger.slack_bytes} == {None}
    assert (ledger.device_bytes, ledger.residual_bytes) == (None, None)


@pytest.mark.parametrize("mode", ["split_piecewise", "breakable", "full"])
def test_what_the_sizes_add_to_the_pool_is_the_pool(planned, mode: str) -> None:
    """Each size, in the order of capture, with its nodes and seconds."""
    found = weighed(memory_job(planned, f"sweep: {{num_tokens: [3, 20, 9], mode: [{mode}]}}"))
    ledger = ledger_of(found)

    assert [size.num_tokens for size in ledger.sizes] == [20, 9, 3]
    assert {size.state for size in ledger.sizes} == {"captured"}
    assert sum(size.pool_bytes for size in ledger.sizes) == found[0].memory.graph_pool_bytes > 0
    assert ledger.sizes[0].pool_bytes > max(size.pool_bytes for size in ledger.sizes[1:])
    for size in ledger.sizes:
        assert size.nodes.total > 0 and size.capture_s > 0
        assert (size.driver_bytes, size.transient_bytes) == (None, None)
    for each in found:
        assert (each.graph.state, each.graph.graph_nodes) == ("replayed", ledger.sizes[0].nodes.total)


@pytest.mark.parametrize("mode", ["split_piecewise", "breakable"])
def test_a_weak_hold_needs_no_more_pool_than_a_strong_one(planned, mode: str) -> None:
    """Hand-overs of one size may lie where those of another did; the ledger says which hold it was."""
    holds = {}
    for hold in ("strong", "weak"):
        capture = f"capture: {{hold: {hold}}}"
        job = memory_job(planned, "num_layers: 2", capture, f"sweep: {{num_tokens: [3, 9], mode: [{mode}]}}")
        found = weighed(job)
        assert {each.memory.ledger.hold for each in found} == {each.graph.hold for each in found} == {hold}
        holds[hold] = found[0].memory.graph_pool_bytes

    assert 0 < holds["weak"] < holds["strong"]


def test_buckets_are_weighed_whatever_the_sweep_asks_for(planned) -> None:
    """One without a batch says why it was not captured; a Point above all of them runs eagerly."""
    lines = ("capture: {sizes: [2, 16, 8]}", "batch: {num_contexts: 3}")
    small, large = sorted(
        weighed(memory_job(planned, *lines, "sweep: {num_tokens: [20, 5], mode: [breakable]}")),
        key=lambda each: each.point.num_tokens,
    )
    sizes = {size.num_tokens: size for size in ledger_of([small, large]).sizes}

    assert [(number, size.state) for number, size in sizes.items()] == [
        (16, "captured"),
        (8, "captured"),
        (2, "not_captured"),
    ]
    assert sizes[2].reason == "ValueError: num_tokens: expected at least 3 in a prefill batch, got 2"
    assert (sizes[2].pool_bytes, sizes[2].nodes.total) == (0, 0)
    assert (small.graph.state, small.graph.padded_tokens) == ("replayed", 8)
    assert (large.graph.state, large.graph.padded_tokens) == ("fell_back", 20)


def test_a_bucket_that_fails_is_told_and_its_point_takes_the_next(planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine would pad further, so that is what is weighed."""
    capture = BreakableRunner._capture

    def capricious(self: BreakableRunner, size: int) -> object:
        if size == 8:
            raise CaptureError("broken graph of 8 tokens: no luck")
        return capture(self, size)

    monkeypatch.setattr(BreakableRunner, "_capture", capricious)
    (found,) = weighed(memory_job(planned, "capture: {sizes: [8, 16]}", "sweep: {num_tokens: 8, mode: [breakable]}"))

    assert (found.outcome.status, found.graph.state, found.graph.padded_tokens) == ("ok", "replayed", 16)
    states = [(size.num_tokens, size.state, size.reason) for size in found.memory.ledger.sizes]
    assert states == [
        (16, "captured", ""),
        (8, "not_captured", "CaptureError: broken graph of 8 tokens: no luck"),
    ]


def test_a_size_of_its_own_that_fails_is_skipped_and_told_by_the_others(
    planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = FullRunner._capture

    def capricious(self: FullRunner, size: int) -> object:
        if size == 20:
            raise CaptureError("full graph of 20 tokens: no luck")
        return capture(self, size)

    monkeypatch.setattr(FullRunner, "_capture", capricious)
    large, small = weighed(memory_job(planned, "sweep: {num_tokens: [20, 5], mode: [full]}"))

    assert (large.outcome.status, large.outcome.stage, large.memory) == ("skipped", "capture", None)
    assert (small.outcome.status, small.graph.state) == ("ok", "replayed")
    assert [(size.num_tokens, size.state) for size in small.memory.ledger.sizes] == [
        (20, "not_captured"),
        (5, "captured"),
    ]


def test_a_size_of_which_no_piece_can_be_captured_is_not_captured(rig_of, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut at its first operator, say: the runner is ready, and there is no graph."""
    rig = rig_of(5, modes=("breakable",), phase="prefill", context_len=0)
    arm = rig.arm(rig.job.points[0])
    nothing = Prepared(5, "fell_back", captured_segments=0, eager_segments=1, graph_launches=0)
    monkeypatch.setattr(BreakableRunner, "prepare", lambda self, sizes: (nothing,))

    with torch.inference_mode():
        facts = prepare.capture_size(rig, arm, 5)

    assert (facts.state, facts.reason) == ("not_captured", "no piece of the step can be captured")


@pytest.mark.parametrize(("skip", "graphs"), [("true", 2), ("false", 1)])
def test_a_full_decode_graph_is_weighed_with_its_short_variant(
    planned, monkeypatch: pytest.MonkeyPatch, skip: str, graphs: int
) -> None:
    """Two graphs a size where the indexer may be skipped, in one pool; the nodes are those of the own, long batch."""
    capture, captured = FullRunner._capture, []

    def watched(self: FullRunner, size: int) -> Program:
        captured.append(capture(self, size))
        return captured[-1]

    monkeypatch.setattr(FullRunner, "_capture", watched)
    sweep = "sweep: {phase: decode, num_tokens: 3, context_len: 100, mode: [full]}"
    (found,) = weighed(memory_job(planned, sweep, f"layer: {{skip_indexer_for_short_seqs: {skip}}}"))
    (size,) = found.memory.ledger.sizes
    nodes = [program.prepared.nodes.kernel for program in captured]

    assert len(nodes) == graphs and nodes == sorted(set(nodes))
    assert size.nodes.kernel == found.graph.graph_nodes == nodes[-1]
    assert size.capture_s == pytest.approx(sum(program.prepared.capture_s for program in captured))
    assert size.pool_bytes == found.memory.graph_pool_bytes
