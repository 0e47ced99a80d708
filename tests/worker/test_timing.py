"""Timing jobs on a CPU: every mode proven, then timed; and what goes wrong costs its own arm."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mlaprof.capture.full import FullRunner
from mlaprof.capture.graphs import CaptureError
from mlaprof.capture.piecewise import PiecewiseRunner
from mlaprof.kernels import reference
from mlaprof.layer.mla import MLA
from mlaprof.machine.nvml import Reading
from mlaprof.measure import rounds
from mlaprof.records import Measurement, Started
from mlaprof.study import MODES
from mlaprof.worker import rig, timing
from mlaprof.worker.gate import Gate

EAGER = ("monolithic_eager", "split_eager")
PADDED = ("monolithic_piecewise", "split_piecewise", "breakable")
CAPTURED = (*PADDED, "full")
ALL = f"mode: [{', '.join(MODES)}]"
FAST = "mode: [monolithic_eager, split_eager, full]"
PLAIN_MLA = """\
shape:
  {name: plain, hidden_size: 256, num_heads: 4, q_lora_rank: 128, kv_lora_rank: 64, qk_nope_head_dim: 32,
   qk_rope_head_dim: 16, v_head_dim: 32, index_n_heads: 0, index_head_dim: 0, index_topk: 0,
   indexer_rope_interleave: false, max_position_embeddings: 1024, rms_norm_eps: 1.0e-6, intermediate_size: 512}"""


def sound(found: Measurement) -> None:
    """Timed, labelled as emulated, and proven."""
    assert (found.outcome.status, found.outcome.reason, found.emulated) == ("ok", "", True)
    assert found.timing is not None and found.graph is not None
    assert len(found.timing.device_s) == len(found.timing.submit_s) == len(found.timing.latency_s) >= 20
    assert len(found.timing.sustained_s) == len(found.timing.warm_device_s) >= 2 and found.timing.burst_steps >= 3
    assert min(found.timing.device_s) > 0 and found.timing.first_call_s > 0
    assert (found.timing.clock, found.timing.cache, found.timing.sm_clock_hz) == ("perf_counter", "warm", ())
    assert found.checks and all(check.passed for check in found.checks)
    replayed = found.graph.state == "replayed"
    assert replayed == (found.graph.graph_launches > 0) == (found.gate is not None)
    if found.gate is not None:
        assert found.gate.after_timing and found.gate.replays == len(found.gate.sets) + 1
        names = {check.name for check in found.checks}
        every = (*found.gate.sets, "own batch, after timing")
        assert {f"{each}{what}: differing bytes vs eager" for each in every for what in ("", ", cache rows")} <= names


def sets(found: Measurement) -> tuple[str, ...]:
    return () if found.gate is None else found.gate.sets


@pytest.fixture(scope="module")
def prefill(planned, measured) -> dict[str, Measurement]:
    """All six modes of a prefill that needs its top-k: 5 tokens behind 66, tiny selects 64."""
    plan = planned("num_layers: 2", "mlp: dense", f"sweep: {{num_tokens: 5, context_len: 66, {ALL}}}")
    (job,) = plan.jobs
    return measured(job)


def test_every_mode_of_a_prefill_is_proven_and_timed(prefill) -> None:
    assert set(prefill) == set(MODES)
    for found in prefill.values():
        sound(found)


def test_one_eager_arm_meets_the_oracle_and_the_other_its_bits(prefill) -> None:
    """Each layer of the first arm against the dense fp32 reference; the second arm must equal the first."""
    first, second = (prefill[mode].checks for mode in EAGER)

    assert [check.name for check in first if "oracle" in check.name] == [
        f"own batch, layer {number}: {what}"
        for number in (0, 1)
        for what in ("worst row error vs oracle", "top-k sets missing vs oracle")
    ]
    assert [check.name for check in second if "schema" not in check.name] == [
        "eager output, own batch: non-finite elements",
        *(f"eager, own batch{what}: differing bytes vs eager" for what in ("", ", cache rows")),
    ]


def test_every_captured_arm_is_replayed_under_batches_it_was_not_captured_with(prefill) -> None:
    """A full graph of a prefill serves no other lengths: it froze them."""
    assert {mode: sets(found) for mode, found in prefill.items()} == {
        **dict.fromkeys(EAGER, ()),
        **dict.fromkeys(PADDED, ("other pages", "other lengths", "fewer tokens", "own batch")),
        "full": ("other pages", "other pages, draw 4", "own batch"),
    }


def test_pieces_merge_across_the_layer_boundary(prefill) -> None:
    """Two layers are cut twice: three captured pieces, not four; the full graph is one, eager none."""
    graphs = {mode: found.graph for mode, found in prefill.items()}
    pieces = {mode: (graph.captured_segments, graph.eager_segments) for mode, graph in graphs.items()}

    assert {pieces[mode] for mode in PADDED} == {(3, 2)}
    assert pieces["full"] == (1, 0)
    assert [graphs[mode].graph_launches for mode in MODES] == [0, 3, 0, 3, 3, 1]
    assert graphs["monolithic_eager"].graph_nodes == graphs["split_eager"].graph_nodes == 0
    assert all(graphs[mode].capture_s > 0 for mode in CAPTURED)
    assert all(graphs[mode].first_replay_s > 0 for mode in CAPTURED if mode != "breakable")
    assert all(graphs[mode].prepare_s > graphs[mode].capture_s for mode in CAPTURED)
    assert all(graphs[mode].capture_s == graphs[mode].prepare_s == 0 for mode in EAGER)


def test_each_mode_says_how_its_step_was_run(prefill) -> None:
    assert {mode: found.graph.state for mode, found in prefill.items()} == {
        **dict.fromkeys(EAGER, "eager"),
        **dict.fromkeys(CAPTURED, "replayed"),
    }
    assert {found.graph.padded_tokens for found in prefill.values()} == {5}
    assert {mode for mode, found in prefill.items() if found.graph.hold == "strong"} == set(CAPTURED)


def test_the_split_captures_more_of_the_step_than_the_monolith(prefill) -> None:
    """What PR #12503 is about: Op 1 joins its neighbours in the graph."""
    nodes = {mode: prefill[mode].graph.graph_nodes for mode in CAPTURED}

    assert 0 < nodes["monolithic_piecewise"] < nodes["split_piecewise"] == nodes["breakable"] < nodes["full"]


def test_the_modes_of_one_cell_are_paired_round_by_round(prefill) -> None:
    assert len({len(found.timing.device_s) for found in prefill.values()}) == 1


@pytest.fixture(scope="module")
def bucketed(planned) -> dict[tuple[str, int], Measurement]:
    """Captured at 6 and 8 tokens; one Point below both, one above."""
    plan = planned(f"sweep: {{num_tokens: [12, 5], {ALL}}}", "capture: {sizes: [6, 8], hold: weak}")
    (job,) = plan.jobs
    with torch.inference_mode():
        events = list(timing.timing_job(rig.Rig(job)))
    found = [event for event in events if isinstance(event, Measurement)]
    return {(each.point.mode, each.point.num_tokens): each for each in found}


def test_a_step_pads_up_to_the_next_captured_size_or_falls_back(bucketed) -> None:
    """Full graphs pad to nothing: the token counts of the sweep are their sizes, whatever the buckets."""
    states = {who: (found.graph.state, found.graph.padded_tokens) for who, found in bucketed.items()}

    for mode in EAGER:
        assert (states[mode, 12], states[mode, 5]) == (("eager", 12), ("eager", 5))
    for mode in PADDED:
        assert (states[mode, 12], states[mode, 5]) == (("fell_back", 12), ("replayed", 6))
    assert (states["full", 12], states["full", 5]) == (("replayed", 12), ("replayed", 5))
    for found in bucketed.values():
        sound(found)


def test_sizes_replayed_in_between_are_those_captured(bucketed) -> None:
    interleaved = {who: found.gate.interleaved for who, found in bucketed.items() if found.gate is not None}

    assert interleaved == {
        **{(mode, 5): (8,) for mode in PADDED},
        ("full", 12): (5,),
        ("full", 5): (12,),
    }


def test_a_weak_hold_is_told_of_modes_with_graphs_alone(bucketed) -> None:
    for (mode, _), found in bucketed.items():
        assert found.graph.hold == (None if mode in EAGER else "weak")


@pytest.mark.parametrize("sizes", ["[8, 16]", "[4, 16]"], ids=["cannot be captured", "has no batch"])
def test_a_bucket_that_is_not_captured_is_passed_over(
    planned, measured, monkeypatch: pytest.MonkeyPatch, sizes: str
) -> None:
    """As engines do: the step pads to the next one."""
    capture = PiecewiseRunner._capture

    def capricious(self: PiecewiseRunner, size: int) -> object:
        if size == 8:
            raise CaptureError("piecewise graph of 8 tokens: no luck")
        return capture(self, size)

    monkeypatch.setattr(PiecewiseRunner, "_capture", capricious)
    sweep = "sweep: {num_tokens: 6, mode: [split_eager, split_piecewise]}"
    (job,) = planned(sweep, f"capture: {{sizes: {sizes}}}", "batch: {num_contexts: 5}").jobs
    found = measured(job)

    for each in found.values():
        sound(each)
    graph = found["split_piecewise"].graph
    assert (graph.state, graph.padded_tokens) == ("replayed", 16)


def test_every_arm_is_captured_at_every_size_before_any_is_timed(planned) -> None:
    """All arms see the same allocator, and the gate can replay every size."""
    (job,) = planned("sweep: {num_tokens: [5, 3], mode: [split_eager, full]}").jobs
    with torch.inference_mode():
        stages = [event.stage for event in timing.timing_job(rig.Rig(job)) if isinstance(event, Started)]

    assert stages == [*["capture"] * 4, *[*["verify"] * 2, "measure"] * 2]


@pytest.mark.parametrize(
    ("setting", "forked"),
    [("off", ()), ("graphs", ("breakable", "full")), ("always", ("split_eager", "breakable", "full"))],
)
def test_multi_stream_is_recorded(planned, measured, setting: str, forked: tuple[str, ...]) -> None:
    """Where independent work was told to fork; a CPU has no streams to fork to."""
    sweep = "sweep: {num_tokens: 3, mode: [split_eager, breakable, full]}"
    (job,) = planned(sweep, f"capture: {{multi_stream: {setting}}}").jobs

    assert {mode for mode, found in measured(job).items() if found.graph.multi_stream} == set(forked)


def test_a_mixed_batch_runs_in_every_mode_of_the_title(planned, measured) -> None:
    """Contexts with a past beside generations of two tokens each."""
    plan = planned("sweep: {phase: mixed, num_tokens: 9, context_len: 65}", "batch: {num_generations: 2, next_n: 2}")
    (job,) = plan.jobs

    for found in measured(job).values():
        sound(found)


def test_a_decode_batch_is_captured_whole(planned, measured) -> None:
    """Piecewise is for batches with contexts; the plan answers it, the worker never sees it."""
    plan = planned(f"sweep: {{phase: decode, num_tokens: 3, context_len: 65, {ALL}}}")
    (job,) = plan.jobs
    found = measured(job)

    assert set(found) == {"monolithic_eager", "split_eager", "full"}
    assert {skip.point.mode for skip in plan.skips} == set(PADDED)
    for each in found.values():
        sound(each)
    assert sets(found["full"]) == ("other pages", "other lengths", "idle requests", "short sequences", "own batch")


def test_plain_mla_runs_as_one_op(planned, measured) -> None:
    """index_topk 0: no indexer, no split; the monolithic modes and full."""
    modes = "mode: [monolithic_eager, monolithic_piecewise, full]"
    (job,) = planned(f"sweep: {{num_tokens: 5, {modes}}}", layer=PLAIN_MLA).jobs
    found = measured(job)

    assert set(found) == {"monolithic_eager", "monolithic_piecewise", "full"}
    for each in found.values():
        sound(each)
    assert not any("top-k" in check.name for check in found["monolithic_eager"].checks)


def test_a_wrong_kernel_is_incorrect_and_has_no_time(planned, measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel 5 % off shows in every arm's reason, and no latency is stored."""
    right = reference.sparse_attn

    def wrong(*args: Any, out: torch.Tensor, **kwargs: Any) -> None:
        right(*args, out=out, **kwargs)
        out.mul_(1.05)

    monkeypatch.setattr(reference, "sparse_attn", wrong)
    (job,) = planned("sweep: {num_tokens: 3, mode: [monolithic_eager]}").jobs
    found = measured(job)["monolithic_eager"]

    assert (found.outcome.status, found.outcome.stage, found.timing) == ("incorrect", "verify", None)
    assert (
        "own batch, layer 0: worst row error vs oracle" in found.outcome.reason and "limit 0.02" in found.outcome.reason
    )
    assert any(not check.passed for check in found.checks)


def test_a_tampered_weight_is_incorrect(planned, measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer runs on other weights than it was given: the oracle, which has the given ones, disagrees."""
    build = rig.build_stack

    def tampered(*args: Any, **kwargs: Any) -> Any:
        stack = build(*args, **kwargs)
        for parameter in stack.parameters():
            parameter.data.mul_(1.1)
        return stack

    monkeypatch.setattr(rig, "build_stack", lambda shape, weights, **kwargs: tampered(shape, copies(weights), **kwargs))
    (job,) = planned("sweep: {num_tokens: 3, mode: [split_eager]}").jobs
    found = measured(job)["split_eager"]

    assert (found.outcome.status, found.timing) == ("incorrect", None)


def copies(weights: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    return [{name: value.clone() for name, value in each.items()} for each in weights]


def test_a_stale_replay_is_incorrect_and_the_others_are_timed(
    planned, measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that answers with what it was captured with passes on its own inputs alone; the gate has others."""
    run = FullRunner.run
    first: dict[int, torch.Tensor] = {}

    def stale(self: FullRunner, num_tokens: int) -> torch.Tensor:
        output = run(self, num_tokens)
        output.copy_(first.setdefault(num_tokens, output.clone()))
        return output

    monkeypatch.setattr(FullRunner, "run", stale)
    monkeypatch.setattr(FullRunner, "verified_run", stale)
    (job,) = planned(f"sweep: {{num_tokens: 3, {FAST}}}").jobs
    found = measured(job)

    assert (found["full"].outcome.status, found["full"].timing) == ("incorrect", None)
    assert "other pages: differing bytes vs eager" in found["full"].outcome.reason
    assert found["full"].graph is not None
    for mode in EAGER:
        sound(found[mode])


def test_what_cannot_be_captured_is_skipped_with_the_op_named(
    planned, measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host sync inside Op 2: the full graph is refused, the eager arms are measured."""
    right = MLA.dsa_attn

    def synchronising(self: MLA, q: torch.Tensor, *args: Any) -> None:
        assert q.float().abs().sum().item() > 0
        right(self, q, *args)

    monkeypatch.setattr(MLA, "dsa_attn", synchronising)
    (job,) = planned(f"sweep: {{num_tokens: 3, {FAST}}}").jobs
    found = measured(job)

    assert (found["full"].outcome.status, found["full"].outcome.stage) == ("skipped", "capture")
    assert "aten::_local_scalar_dense" in found["full"].outcome.reason
    for mode in EAGER:
        sound(found[mode])


def test_memory_that_runs_out_during_a_capture_is_a_failure(planned, measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another day it may fit: `skipped` would say that the mode cannot be captured."""

    def too_large(self: FullRunner, sizes: list[int]) -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError as error:
            raise CaptureError("full graph of 3 tokens: CUDA out of memory") from error

    monkeypatch.setattr(FullRunner, "prepare", too_large)
    (job,) = planned("sweep: {num_tokens: 3, mode: [full]}").jobs
    outcome = measured(job)["full"].outcome

    assert (outcome.status, outcome.stage) == ("failed", "capture") and "out of memory" in outcome.reason


@pytest.mark.parametrize("stage", ["capture", "verify"])
def test_an_exception_in_one_arm_leaves_the_others_measured(
    planned, measured, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    if stage == "capture":
        monkeypatch.setattr(FullRunner, "prepare", lambda self, sizes: boom())
    else:
        check = Gate.check
        monkeypatch.setattr(Gate, "check", lambda self, arm: boom() if arm.point.mode == "full" else check(self, arm))
    (job,) = planned(f"sweep: {{num_tokens: 3, {FAST}}}").jobs
    found = measured(job)

    failed = found["full"].outcome
    assert (failed.status, failed.stage, failed.reason) == ("failed", stage, "RuntimeError: out of luck, twice")
    for mode in EAGER:
        sound(found[mode])


def boom(*_: object, **__: object) -> None:
    raise RuntimeError("out of luck,\n  twice")


def test_a_fault_while_sampling_fails_the_arms_that_shared_it(
    planned, measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interleaved samples fall together; the next cell has its own."""
    sample = timing.sample_rounds
    calls = []

    def once(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return boom() if len(calls) == 1 else sample(*args, **kwargs)

    monkeypatch.setattr(timing, "sample_rounds", once)
    (job,) = planned("sweep: {num_tokens: [5, 3], mode: [monolithic_eager, split_eager]}").jobs

    by_size: dict[int, set[tuple[str, str]]] = {}
    for event in timing.timing_job(rig.Rig(job)):
        if isinstance(event, Measurement):
            by_size.setdefault(event.point.num_tokens, set()).add((event.outcome.status, event.outcome.stage))

    assert by_size == {5: {("failed", "measure")}, 3: {("ok", "measure")}}


def test_an_arm_that_breaks_while_it_is_timed_shows_no_time(planned, measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate behind the clock: what was right before the timed rounds is looked at once more."""
    sample, run = timing.sample_rounds, FullRunner.verified_run

    def breaking(*args: Any, **kwargs: Any) -> Any:
        samples = sample(*args, **kwargs)
        monkeypatch.setattr(FullRunner, "verified_run", lambda self, num_tokens: run(self, num_tokens).mul_(2))
        return samples

    monkeypatch.setattr(timing, "sample_rounds", breaking)
    (job,) = planned(f"sweep: {{num_tokens: 3, {FAST}}}").jobs
    found = measured(job)

    full = found["full"]
    assert (full.outcome.status, full.outcome.stage, full.timing) == ("incorrect", "verify", None)
    assert full.outcome.reason.startswith("own batch, after timing: differing bytes vs eager")
    assert full.gate is not None and full.gate.after_timing
    for mode in EAGER:
        sound(found[mode])


def test_the_own_batch_is_timed_whatever_the_gate_was_at_when_an_arm_failed(
    planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An arm that raises in the middle leaves another batch loaded; the arms after it must not be timed on that."""
    compare, sample = Gate._compare, timing.sample_rounds
    tried: list[str] = []
    timed: list[tuple[int, str]] = []

    def failing(self: Gate, arm: Any, name: str, *rest: Any) -> Any:
        if name == "fewer tokens" and arm.point.mode == "breakable":
            tried.append(name)
            boom()
        return compare(self, arm, name, *rest)

    def watched(*args: Any, **kwargs: Any) -> Any:
        timed.append((bench.metadata.num_tokens, bench.loaded[1].name))
        return sample(*args, **kwargs)

    monkeypatch.setattr(Gate, "_compare", failing)
    monkeypatch.setattr(timing, "sample_rounds", watched)
    (job,) = planned("sweep: {num_tokens: 6, mode: [split_eager, breakable]}").jobs
    with torch.inference_mode():
        bench = rig.Rig(job)
        found = [event for event in timing.timing_job(bench) if isinstance(event, Measurement)]

    assert tried and timed == [(6, "own batch")]
    assert {each.point.mode: each.outcome.status for each in found} == {"split_eager": "ok", "breakable": "failed"}


def test_a_layer_that_cannot_be_built_fails_every_point_with_the_reason(
    planned, measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory for the caches, for example: no traceback of a dead worker, but rows."""
    monkeypatch.setattr(rig, "allocate", boom)
    (job,) = planned(f"sweep: {{num_tokens: 3, {ALL}}}").jobs
    found = measured(job)

    assert set(found) == set(MODES)
    outcomes = {(each.outcome.status, each.outcome.stage, each.outcome.reason) for each in found.values()}
    assert outcomes == {("failed", "build", "RuntimeError: out of luck, twice")}


class Meter:
    """A GPU's readings for a Watch: held down by heat in those rounds whose numbers `hot` says."""

    def __init__(self, hot) -> None:
        self.hot, self.asked = hot, 0

    def reading(self) -> Reading:
        self.asked += 1
        events = 0x20 if self.hot(self.asked) else 0x4
        return Reading(
            sm_clock_hz=1.9e9, mem_clock_hz=None, power_w=500.0, temperature_c=70.0 + self.asked, event_reasons=events
        )


def watched(monkeypatch: pytest.MonkeyPatch, hot) -> Meter:
    meter = Meter(hot)
    monkeypatch.setattr(timing.Watch, "reading", lambda self: meter.reading())
    monkeypatch.setattr(timing.Watch, "other_processes", lambda self: 2)
    monkeypatch.setattr(rounds, "FIRST_PAUSE_S", 0.0)
    return meter


def test_a_round_that_heat_held_down_is_told_as_dropped_and_not_kept(
    planned, measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three arms the 20th reading is hot: that round is measured again in all of them, and the power cap is kept."""
    watched(monkeypatch, lambda asked: asked == 20)
    (job,) = planned(f"sweep: {{num_tokens: 4, {FAST}}}").jobs
    for found in measured(job).values():
        kept = found.timing
        assert kept is not None and len(kept.device_s) == len(kept.sm_clock_hz) == len(kept.temperature_c) == 20
        assert (kept.dropped_rounds, kept.throttled, kept.other_processes) == (1, False, 2)
        assert set(kept.clock_event_reasons) == {0x4} and set(kept.power_w) == {500.0}
        assert kept.stop in ("interval", "samples", "time")


def test_a_gpu_that_stays_hot_is_told_as_throttled_with_what_was_measured(
    planned, measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched(monkeypatch, lambda asked: True)
    (job,) = planned(f"sweep: {{num_tokens: 4, {FAST}}}").jobs
    for found in measured(job).values():
        kept = found.timing
        assert kept is not None and kept.throttled and kept.dropped_rounds == 5
        assert len(kept.device_s) == 20 and set(kept.clock_event_reasons) == {0x20}
