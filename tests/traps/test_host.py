"""What no output shows: a host that waits, a step that is not captured, a stream that is not joined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.analysis.findings import breaches
from mlaprof.capture import cpu_graph
from mlaprof.capture.captured import CapturedRunner
from mlaprof.capture.graphs import CaptureError
from mlaprof.facts import StepCounts
from mlaprof.layer import indexer, mla
from mlaprof.layer.mla import MLA
from mlaprof.layer.stack import Stack
from mlaprof.records import Measurement, Point
from mlaprof.study import BudgetSpec, Mode
from mlaprof.worker.counting import counts_job
from mlaprof.worker.memory import memory_job
from mlaprof.worker.prepare import graph_facts, prepare

NO_WAITING = BudgetSpec(syncs=0, d2h=0)


def counted(planted: Any, mode: Mode) -> StepCounts:
    """One step of the arm, in a pass of its own."""
    rig = planted.rig
    points = tuple(point.model_copy(update={"mode": mode}) for point in rig.job.points)
    rig.job = rig.job.model_copy(update={"kind": "counts", "points": points})
    [found] = [event for event in counts_job(rig) if isinstance(event, Measurement)]
    assert found.counts is not None, found.outcome.reason
    return found.counts


def broken(counts: StepCounts, mode: Mode) -> set[str]:
    return {breach.name for breach in breaches(counts, mode, NO_WAITING)}


def assert_in(op: str, monkeypatch: pytest.MonkeyPatch, unless: Callable[[], bool] = lambda: False) -> None:
    """A debug assertion looks at a device tensor: the host waits for everything before it."""
    real = getattr(MLA, op)

    def checked(layer: MLA, first: Tensor, *args: Any) -> Any:
        if not unless():
            assert (first.shape[0] * torch.ones(1, device=first.device) > 0).all().item(), "no rows"
        return real(layer, first, *args)

    monkeypatch.setattr(MLA, op, checked)


@pytest.mark.parametrize("mode", ["split_piecewise", "breakable", "full"])
def test_trap_sync_in_an_assert_of_op_1_is_refused(bench, device, monkeypatch, mode):
    """A GPU names the line, the emulation the operator."""
    assert_in("dsa_proj", monkeypatch)
    error, outcome = bench().refusal(mode)
    assert ("test_host.py" if device == "cuda" else "aten::_local_scalar_dense") in error.op
    assert error.op in str(error) and outcome.status == "skipped"


def test_trap_sync_in_an_assert_goes_unseen_without_the_refusal_of_captures(monkeypatch, make_bench):
    """What a driver cannot be talked into, the emulation can: the value is read once, at capture, and frozen."""
    assert_in("dsa_proj", monkeypatch)
    monkeypatch.setattr(cpu_graph, "_refusal", lambda *call: "")
    planted = make_bench("cpu")
    assert planted.wrong(planted.arm("split_piecewise")) == []
    assert broken(counted(planted, "split_piecewise"), "split_piecewise") == set()


@pytest.mark.parametrize("mode", ["split_eager", "split_piecewise", "breakable"])
def test_trap_sync_in_an_assert_of_op_2_is_caught_by_the_budget(bench, monkeypatch, mode):
    """Nobody captures Op 2, so nobody refuses it; the profiled pass counts it."""
    assert_in("dsa_attn", monkeypatch)
    counts = counted(bench(), mode)
    assert counts.syncs >= 1 and counts.d2h_copies >= 1
    assert broken(counts, mode) == {"syncs", "d2h"}


def test_trap_sync_in_an_assert_of_op_2_goes_unseen_without_counts(bench, monkeypatch):
    """The gate looks at values, and those are right."""
    assert_in("dsa_attn", monkeypatch)
    planted = bench()
    for mode in ("split_eager", "split_piecewise", "breakable"):
        assert planted.wrong(planted.arm(mode)) == []


def test_trap_sync_behind_a_capture_guard_is_caught_in_eager_runs(bench, device, monkeypatch):
    """Left out of captures alone, the assertion costs its wait in every run without a graph."""
    capturing = torch.cuda.is_current_stream_capturing if device == "cuda" else _emulated_capture(monkeypatch)
    assert_in("dsa_proj", monkeypatch, unless=capturing)
    planted = bench()
    assert broken(counted(planted, "split_piecewise"), "split_piecewise") == set()
    assert broken(counted(planted, "split_eager"), "split_eager") == {"syncs", "d2h"}


def _emulated_capture(monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """What torch.cuda.is_current_stream_capturing tells, of the emulation."""
    running: list[bool] = []
    capture = cpu_graph.CpuGraphs.capture

    def flag(graphs: Any, fn: Callable[[], Any]) -> Any:
        running.append(True)
        try:
            return capture(graphs, fn)
        finally:
            running.clear()

    monkeypatch.setattr(cpu_graph.CpuGraphs, "capture", flag)
    return lambda: bool(running)


def test_a_step_as_it_is_never_waits(bench):
    """The control, eager and captured."""
    sound = bench()
    for mode in ("split_eager", "split_piecewise", "breakable", "full"):
        assert broken(counted(sound, mode), mode) == set()


def count_before_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cumsum ahead of the first layer, as of sequence lengths: an engine captures nothing from there on."""
    forward = Stack.forward

    def counts(stack: Stack, hidden_states: Tensor, position_ids: Tensor) -> Tensor:
        seen = position_ids.ge(0).cumsum(0).ge(0)
        return forward(stack, hidden_states * seen[:, None], position_ids)

    monkeypatch.setattr(Stack, "forward", counts)


def test_trap_cumsum_before_attention_is_told(bench, monkeypatch):
    """The stop has a name, coverage is nothing, and the size fell back."""
    count_before_attention(monkeypatch)
    planted = bench()
    counts = counted(planted, "split_piecewise")
    assert (counts.stop, counts.coverage) == ("aten::cumsum", 0.0)
    assert [segment.kind for segment in counts.segments] == ["eager"]
    assert planted.arm("split_piecewise").runner.facts(9).state == "fell_back"


def test_trap_cumsum_before_attention_goes_unseen_without_the_stop_rule(bench, monkeypatch, without):
    """All is captured, all is right, and nothing of it is what the engine would do."""
    count_before_attention(monkeypatch)
    without.stops()
    planted = bench()
    assert planted.wrong(planted.arm("split_piecewise")) == []
    counts = counted(planted, "split_piecewise")
    assert counts.stop is None and counts.coverage is not None and counts.coverage > 0


def fail_to_capture(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the sizes that an engine advertises cannot be captured."""
    real = CapturedRunner.prepare

    def fails(runner: CapturedRunner, sizes: list[int]) -> Any:
        if size in sizes:
            raise CaptureError(f"no dummy batch of {size} tokens")
        return real(runner, sizes)

    monkeypatch.setattr(CapturedRunner, "prepare", fails)


def point_of(planted: Any, num_tokens: int) -> Point:
    [point] = [each for each in planted.rig.job.points if each.num_tokens == num_tokens]
    return point.model_copy(update={"mode": "breakable"})


@pytest.mark.parametrize(
    ("failing", "other", "state"), [(9, 70, "replayed"), (70, 9, "fell_back")], ids=["far bucket", "eager"]
)
def test_trap_advertised_but_uncaptured_size_is_told(bench, monkeypatch, failing, other, state):
    """Its tokens go to a far larger size or run eagerly: a fact of the point; and the ledger lists the failure."""
    fail_to_capture(failing, monkeypatch)
    planted = bench(9, 70)
    ready = prepare(planted.rig, point_of(planted, failing))
    with ready.arm.context:
        ready.arm.runner.run(failing)
    facts = graph_facts(ready)
    assert (facts.state, facts.padded_tokens) == (state, 70)

    rig = bench(9, 70).rig
    rig.job = rig.job.model_copy(update={"kind": "memory", "points": (point_of(planted, other),)})
    [found] = [event for event in memory_job(rig) if isinstance(event, Measurement)]
    assert found.memory is not None and found.memory.ledger is not None
    sizes = {size.num_tokens: (size.state, size.reason) for size in found.memory.ledger.sizes}
    assert sizes[other] == ("captured", "")
    assert sizes[failing] == ("not_captured", f"CaptureError: no dummy batch of {failing} tokens")


@pytest.mark.parametrize("failing", [9, 70])
def test_trap_advertised_but_uncaptured_size_goes_unseen_without_its_state(bench, monkeypatch, failing):
    """The gate has nothing to say: the output is right, only not what was asked for."""
    fail_to_capture(failing, monkeypatch)
    planted = bench(9, 70)
    assert planted.wrong(prepare(planted.rig, point_of(planted, failing)).arm) == []


@pytest.mark.gpu
def test_trap_fork_without_a_join_is_refused(make_bench, monkeypatch):
    """Work on a second stream that no event brings back is not in the graph; the driver will not end such a capture."""

    def forked(first: Callable[[], Any], second: Callable[[], Any], context: Any) -> tuple[Any, Any]:
        if not context.forks or not torch.cuda.is_current_stream_capturing():
            return first(), second()
        current = torch.cuda.current_stream()
        aux, fork = context.aux_stream(current), current.record_event()
        with torch.cuda.stream(aux):
            aux.wait_event(fork)
            right = second()
        return first(), right

    sound = make_bench("cuda", multi_stream="graphs")
    assert sound.wrong(sound.arm("full")) == []
    for room in (mla, indexer):  # a later fork on the same stream would join this one, too
        monkeypatch.setattr(room, "maybe_execute_in_parallel", forked)
    _, outcome = make_bench("cuda", multi_stream="graphs").refusal("full")
    assert outcome.status == "skipped"
